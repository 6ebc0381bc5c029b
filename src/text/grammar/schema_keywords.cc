#include "text/grammar/schema_keywords.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/check.h"
#include "base/exact_json.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

const std::map<std::string, std::set<std::string>>& keywords_of_types() {
  static const std::map<std::string, std::set<std::string>> kKeywords = {
      {"object", {"properties", "required", "additionalProperties"}},
      {"array", {"items", "prefixItems", "minItems", "maxItems"}},
      {"string", {"minLength", "maxLength", "pattern", "format"}},
      {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"integer", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}},
      {"boolean", {}},
      {"null", {}}};
  return kKeywords;
}

bool is_number(const Json& value) { return value.is_number() || is_long_integer(value); }
bool is_string(const Json& value) { return value.is_string(); }
bool is_array(const Json& value) { return value.is_array(); }
bool is_object(const Json& value) { return value.is_object(); }
bool is_schema(const Json& value) { return value.is_object() || value.is_boolean(); }
bool is_bool(const Json& value) { return value.is_boolean(); }
bool is_bound(const Json& value) { return is_number(value) || value.is_boolean(); }
bool is_names(const Json& value) { return value.is_array() && std::all_of(value.begin(), value.end(), is_string); }
bool is_name_or_names(const Json& value) { return value.is_string() || is_names(value); }

struct Kind {
  const char* keyword;
  bool (*fits)(const Json&);
  const char* name;
};
constexpr Kind kKinds[] = {{"type", is_name_or_names, "a string or an array of strings"},
                           {"$ref", is_string, "a string"},
                           {"properties", is_object, "an object"},
                           {"required", is_names, "an array of strings"},
                           {"additionalProperties", is_schema, "a schema"},
                           {"items", is_schema, "a schema (for an array of schemas there is prefixItems)"},
                           {"prefixItems", is_array, "an array"},
                           {"anyOf", is_array, "an array"},
                           {"oneOf", is_array, "an array"},
                           {"allOf", is_array, "an array"},
                           {"enum", is_array, "an array"},
                           {"pattern", is_string, "a string"},
                           {"format", is_string, "a string"},
                           {"nullable", is_bool, "true or false"},
                           {"minimum", is_number, "a number"},
                           {"maximum", is_number, "a number"},
                           {"exclusiveMinimum", is_bound, "a number"},
                           {"exclusiveMaximum", is_bound, "a number"},
                           {"$defs", is_object, "an object"},
                           {"definitions", is_object, "an object"}};

bool is_type(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "integer")
    return is_long_integer(value) || value.is_number_integer() ||
           (value.is_number() && std::floor(value.get<double>()) == value);
  return is_number(value);
}

double as_double(const Json& value) {
  return is_long_integer(value) ? std::strtod(dump_exact_json(value).c_str(), nullptr) : value.get<double>();
}

bool within_bounds(double value, const Json& schema) {
  const auto bound = [&](const char* keyword) {
    const auto found = schema.find(keyword);
    return found != schema.end() && is_number(*found) ? std::optional(as_double(*found)) : std::nullopt;
  };
  const auto draft4 = [&](const char* keyword) { return schema.contains(keyword) && schema[keyword] == true; };
  const auto least = bound("minimum"), most = bound("maximum");
  const auto above = draft4("exclusiveMinimum") ? least : bound("exclusiveMinimum");
  const auto below = draft4("exclusiveMaximum") ? most : bound("exclusiveMaximum");
  return !(least && value < *least) && !(most && value > *most) && !(above && value <= *above) &&
         !(below && value >= *below);
}

class Fingerprint {
 public:
  explicit Fingerprint(WorkBudget& budget) : budget_(budget) {}

  void add_schema(const Json& schema) {
    if (!schema.is_object()) return add(schema);
    mix(kObject);
    for (const auto& [keyword, value] : schema.items()) {
      if (is_annotation(keyword) && keyword != "nullable") continue;
      add(keyword);
      if (keyword == "properties" && value.is_object()) {
        for (const auto& [name, property] : value.items()) {
          add(name);
          add_schema(property);
        }
        mix(kEnd);
      } else if (keyword == "items" || keyword == "additionalProperties") {
        add_schema(value);
      } else if (value.is_array() && (keyword == "anyOf" || keyword == "oneOf" || keyword == "allOf" ||
                                      keyword == "prefixItems")) {
        for (const Json& one : value) add_schema(one);
        mix(kEnd);
      } else {
        add(value);
      }
    }
    mix(kEnd);
  }

  SchemaFingerprint result() const { return {first_, second_}; }

 private:
  static constexpr uint64_t kObject = 0x100, kArray = 0x101, kEnd = 0x102, kString = 0x103, kOther = 0x104;

  void add(const std::string& text) {
    mix(kString);
    mix(text.size());
    budget_.charge(5 + text.size() / 4);
    for (size_t at = 0; at < text.size(); at += 8) {
      uint64_t word = 0;
      text.copy(reinterpret_cast<char*>(&word), sizeof(word), at);
      mix(word);
    }
  }

  void add(const Json& value) {
    if (value.is_string()) return add(value.get_ref<const std::string&>());
    if (!value.is_structured()) return mix(kOther), add(dump_exact_json(value));
    mix(value.is_object() ? kObject : kArray);
    for (const auto& [name, one] : value.items()) {
      if (value.is_object()) add(name);
      add(one);
    }
    mix(kEnd);
  }

  void mix(uint64_t word) {
    first_ = (first_ ^ word) * 0x9e3779b97f4a7c15u;
    first_ ^= first_ >> 29;
    second_ = (second_ + word) * 0xd1342543de82ef95u + 1;
    second_ ^= second_ >> 32;
  }

  WorkBudget& budget_;
  uint64_t first_ = 0x243f6a8885a308d3u, second_ = 0x13198a2e03707344u;
};

class Merge {
 public:
  Merge(const std::string& path, SchemaReferences& references, WorkBudget& budget)
      : path_(path), references_(references), budget_(budget) {}

  Json run(const Json& schema) {
    add(schema, 0);
    Json result = Json::object();
    if (schema.contains("nullable")) result["nullable"] = schema["nullable"];
    for (const std::string& keyword : order_) {
      if (keyword == "properties") {
        Json& properties = result[keyword] = Json::object();
        auto& members = properties.get_ref<Json::object_t&>();
        for (const std::string& name : names_) members.emplace_back(name, *properties_.at(name));  // names are unique
      } else if (keyword == "required") {
        result[keyword] = required_;
      } else {
        result[keyword] = *keywords_.at(keyword);
      }
    }
    budget_.charge(copy_steps(result));
    return result;
  }

 private:
  void add(const Json& schema, int depth) {
    constexpr int kDepthMax = 100;
    if (schema == true) return;
    if (!schema.is_object()) refuse_schema(path_, "allOf of something that is no object");
    bool& active = active_.try_emplace(&schema, false).first->second;
    if (active || depth > kDepthMax) refuse_schema(path_, "$ref and allOf go on without end");
    if (!done_.insert(&schema).second) return;  // all of it holds already
    active = true;
    check_kinds(schema, path_);
    for (const auto& [keyword, value] : schema.items()) {
      budget_.charge(10);
      if (keyword != "$ref" && keyword != "allOf" && !is_annotation(keyword)) put(keyword, value);
    }
    if (const auto target = schema.find("$ref"); target != schema.end()) {
      add(references_.resolve(*target, path_), depth + 1);
    }
    if (const auto parts = schema.find("allOf"); parts != schema.end()) {
      for (const Json& part : *parts) add(part, depth + 1);
    }
    active_.at(&schema) = false;
  }

  void put(const std::string& keyword, const Json& value) {
    const auto [known, is_new] = keywords_.try_emplace(keyword, &value);
    if (is_new) order_.push_back(keyword);
    if (keyword == "required") {
      for (const Json& name : value) {
        budget_.charge(20);
        if (required_names_.insert(name.get<std::string>()).second) required_.push_back(name);
      }
    } else if (keyword == "properties") {
      for (const auto& [name, property] : value.items()) {
        budget_.charge(20);
        const auto [there, is_new_name] = properties_.try_emplace(name, &property);
        if (is_new_name) names_.push_back(name);
        if (!equal(*there->second, property)) refuse_schema(path_, "allOf gives " + name + " twice");
      }
    } else if (!equal(*known->second, value)) {
      refuse_schema(path_, "allOf with two different " + keyword + " is not implemented");
    }
  }

  bool equal(const Json& a, const Json& b) {
    if (&a == &b) return true;
    budget_.charge(copy_steps(b));
    return a == b;
  }

  const std::string& path_;
  SchemaReferences& references_;
  WorkBudget& budget_;
  std::unordered_map<const Json*, bool> active_;
  std::set<const Json*> done_;
  std::vector<std::string> order_, names_;  // keywords, properties
  std::unordered_map<std::string, const Json*> keywords_, properties_;
  std::set<std::string> required_names_;
  Json required_ = Json::array();
};

}  // namespace

void refuse_schema(const std::string& path, const std::string& why) { throw Error("schema " + path + ": " + why); }

bool is_annotation(const std::string& keyword) {
  static const std::set<std::string> kNames = {
      "title", "description", "default",    "examples", "example",   "$schema",  "$id",           "$comment",
      "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "nullable", "discriminator", "$anchor"};
  return kNames.contains(keyword);
}

void check_kinds(const Json& schema, const std::string& path) {
  for (const Kind& kind : kKinds) {
    const auto found = schema.find(kind.keyword);
    if (found != schema.end() && !kind.fits(*found)) {
      refuse_schema(path, std::string(kind.keyword) + " is not " + kind.name);
    }
  }
}

void check_keywords(const Json& schema, const std::string& path) {
  static const std::set<std::string> kGeneral = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"};
  for (const auto& [keyword, value] : schema.items()) {
    if (kGeneral.contains(keyword) || is_annotation(keyword)) continue;
    if (keyword == "uniqueItems" && value == false) continue;
    const std::string& name = keyword;  // a keyword of another type than the schema's constrains nothing
    const bool known = std::any_of(keywords_of_types().begin(), keywords_of_types().end(),
                                   [&](const auto& type) { return type.second.contains(name); });
    if (!known) refuse_schema(path, "the keyword " + keyword + " is not implemented");
  }
}

std::vector<std::string> types_of(const Json& schema, const std::string& path) {
  std::vector<std::string> types;
  if (const auto type = schema.find("type"); type != schema.end()) {
    for (const Json& one : type->is_array() ? *type : Json::array({*type})) {
      if (!one.is_string() || !keywords_of_types().contains(one.get<std::string>())) {
        refuse_schema(path, "type " + dump_exact_json(one) + " is no type of JSON");
      }
      types.push_back(one.get<std::string>());
    }
    if (types.empty()) refuse_schema(path, "type names no type");
    std::sort(types.begin(), types.end());
    types.erase(std::unique(types.begin(), types.end()), types.end());
    return types;
  }
  // Without a type, a keyword that belongs to one type implies that type.
  for (const char* type : {"object", "array", "string", "number"}) {
    for (const std::string& keyword : keywords_of_types().at(type)) {
      if (schema.contains(keyword)) {
        types.emplace_back(type);
        break;
      }
    }
  }
  return types;
}

uint32_t count_of(const Json& schema, const char* keyword, uint32_t otherwise, const std::string& path) {
  const auto found = schema.find(keyword);
  if (found == schema.end()) return otherwise;
  if (!found->is_number_unsigned() || found->get<uint64_t>() > 1000000) {
    refuse_schema(path, std::string(keyword) + " is not a whole number up to 1000000");
  }
  return found->get<uint32_t>();
}

bool is_within(const Json& value, const Json& schema, const std::string& path) {
  const std::vector<std::string> types = types_of(schema, path);
  const auto fits = [&](const std::string& type) { return is_type(value, type); };
  if (!types.empty() && std::none_of(types.begin(), types.end(), fits)) return false;
  const auto counted = [&](size_t count, const char* least, const char* most) {
    return count >= count_of(schema, least, 0, path) && count <= count_of(schema, most, ~uint32_t{0}, path);
  };
  if (value.is_string()) {
    const auto& text = value.get_ref<const std::string&>();
    const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
    return counted(static_cast<size_t>(std::count_if(text.begin(), text.end(), begins)), "minLength", "maxLength");
  }
  if (value.is_array()) return counted(value.size(), "minItems", "maxItems");
  if (is_number(value)) return within_bounds(as_double(value), schema);
  if (!value.is_object()) return true;
  const auto required = schema.find("required");
  const auto there = [&](const Json& name) { return value.contains(name.get<std::string>()); };
  return required == schema.end() || std::all_of(required->begin(), required->end(), there);
}

uint64_t copy_steps(const Json& value) {
  uint64_t steps = 10;
  if (value.is_string()) steps += value.get_ref<const std::string&>().size() / 8;
  if (value.is_structured()) {
    for (const Json& one : value) steps += copy_steps(one);
  }
  return steps;
}

SchemaFingerprint fingerprint(const Json& schema, WorkBudget& budget) {
  Fingerprint print(budget);
  print.add_schema(schema);
  return print.result();
}

const Json& SchemaReferences::resolve(const Json& reference, const std::string& path) {
  const auto& text = reference.get_ref<const std::string&>();
  budget_.charge(20 + text.size() / 8);
  const auto [found, is_new] = found_.try_emplace(text, nullptr);
  if (!is_new && found->second != nullptr) return *found->second;
  if (!text.starts_with("#")) refuse_schema(path, "$ref " + text + " leads outside the schema");
  found->second = walk(text.substr(1));
  if (found->second == nullptr) refuse_schema(path, "$ref " + text + " leads nowhere");
  return *found->second;
}

// RFC 6901.
const Json* SchemaReferences::walk(const std::string& pointer) const {
  const Json* at = &root_;
  if (!pointer.empty() && pointer[0] != '/') return nullptr;
  for (size_t begin = 0; begin < pointer.size();) {
    const size_t end = std::min(pointer.find('/', begin + 1), pointer.size());
    std::string name;
    for (size_t i = begin + 1; i < end; ++i) {
      if (pointer[i] != '~') {
        name += pointer[i];
        continue;
      }
      if (++i >= end || (pointer[i] != '0' && pointer[i] != '1')) return nullptr;
      name += pointer[i] == '0' ? '~' : '/';
    }
    budget_.charge(at->size());
    if (at->is_object()) {
      const auto found = at->find(name);
      if (found == at->end()) return nullptr;
      at = &*found;
    } else if (at->is_array() && !name.empty() && name.size() < 8 &&
               name.find_first_not_of("0123456789") == std::string::npos) {
      const auto index = static_cast<size_t>(std::stoul(name));
      if (index >= at->size()) return nullptr;
      at = &(*at)[index];
    } else {
      return nullptr;
    }
    begin = end;
  }
  return at;
}

Json merge_schemas(const Json& schema, const std::string& path, SchemaReferences& references, WorkBudget& budget) {
  return Merge(path, references, budget).run(schema);
}

}  // namespace gemma4
