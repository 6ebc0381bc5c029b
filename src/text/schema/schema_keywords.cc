#include "text/schema/schema_keywords.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/exact_json.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
using K = SchemaKeyword;

constexpr uint32_t kCountMax = 1'000'000;

constexpr SchemaKeyword kSchemaKeywords[] = {{"type", K::kEnforced, ""},
                                             {"enum", K::kEnforced, ""},
                                             {"const", K::kEnforced, ""},
                                             {"nullable", K::kEnforced, ""},
                                             {"$ref", K::kEnforced, ""},
                                             {"allOf", K::kEnforced, ""},
                                             {"anyOf", K::kEnforced, ""},
                                             {"oneOf", K::kPartly, ""},
                                             {"not", K::kPartly, ""},
                                             {"if", K::kPartly, ""},
                                             {"then", K::kPartly, ""},
                                             {"else", K::kPartly, ""},
                                             {"properties", K::kEnforced, "object"},
                                             {"required", K::kEnforced, "object"},
                                             {"additionalProperties", K::kEnforced, "object"},
                                             {"patternProperties", K::kPartly, "object"},
                                             {"propertyNames", K::kPartly, "object"},
                                             {"minProperties", K::kPartly, "object"},
                                             {"maxProperties", K::kPartly, "object"},
                                             {"dependentRequired", K::kChecked, "object"},
                                             {"dependentSchemas", K::kChecked, "object"},
                                             {"dependencies", K::kChecked, "object"},
                                             {"unevaluatedProperties", K::kPartly, "object"},
                                             {"items", K::kEnforced, "array"},
                                             {"prefixItems", K::kEnforced, "array"},
                                             {"additionalItems", K::kEnforced, "array"},
                                             {"minItems", K::kEnforced, "array"},
                                             {"maxItems", K::kEnforced, "array"},
                                             {"uniqueItems", K::kPartly, "array"},
                                             {"contains", K::kChecked, "array"},
                                             {"minContains", K::kChecked, "array"},
                                             {"maxContains", K::kChecked, "array"},
                                             {"unevaluatedItems", K::kPartly, "array"},
                                             {"minLength", K::kPartly, "string"},
                                             {"maxLength", K::kPartly, "string"},
                                             {"pattern", K::kPartly, "string"},
                                             {"format", K::kPartly, "string"},
                                             {"minimum", K::kEnforced, "number"},
                                             {"maximum", K::kEnforced, "number"},
                                             {"exclusiveMinimum", K::kEnforced, "number"},
                                             {"exclusiveMaximum", K::kEnforced, "number"},
                                             {"multipleOf", K::kPartly, "number"}};

bool is_string(const Json& value) { return value.is_string(); }
bool is_array(const Json& value) { return value.is_array(); }
bool is_object(const Json& value) { return value.is_object(); }
bool is_schema(const Json& value) { return value.is_object() || value.is_boolean(); }
bool is_bool(const Json& value) { return value.is_boolean(); }
bool is_bound(const Json& value) { return is_number(value) || value.is_boolean(); }
bool is_names(const Json& value) { return value.is_array() && std::all_of(value.begin(), value.end(), is_string); }
bool is_name_or_names(const Json& value) { return value.is_string() || is_names(value); }
bool is_schemas(const Json& value) { return value.is_array() && std::all_of(value.begin(), value.end(), is_schema); }
bool is_schema_or_schemas(const Json& value) { return is_schema(value) || is_schemas(value); }
bool is_named_schemas(const Json& value) {
  return value.is_object() && std::all_of(value.begin(), value.end(), is_schema);
}
bool is_named_names(const Json& value) {
  return value.is_object() && std::all_of(value.begin(), value.end(), is_names);
}
bool is_dependencies(const Json& value) {
  const auto fits = [](const Json& one) { return is_names(one) || is_schema(one); };
  return value.is_object() && std::all_of(value.begin(), value.end(), fits);
}
bool is_count(const Json& value) {
  if (value.is_number_float()) return value.get<double>() >= 0 && std::floor(value.get<double>()) == value;
  return value.is_number_unsigned();
}
bool is_above_zero(const Json& value) {
  return is_long_integer(value) || (value.is_number() && value.get<double>() > 0);
}

struct Kind {
  const char* keyword;
  bool (*fits)(const Json&);
  const char* name;
};
constexpr Kind kKinds[] = {{"type", is_name_or_names, "a string or an array of strings"},
                           {"$ref", is_string, "a string"},
                           {"properties", is_object, "an object"},
                           {"properties", is_named_schemas, "an object of schemas"},
                           {"patternProperties", is_named_schemas, "an object of schemas"},
                           {"propertyNames", is_schema, "a schema"},
                           {"required", is_names, "an array of strings"},
                           {"additionalProperties", is_schema, "a schema"},
                           {"unevaluatedProperties", is_schema, "a schema"},
                           {"unevaluatedItems", is_schema, "a schema"},
                           {"dependentRequired", is_named_names, "an object of arrays of strings"},
                           {"dependentSchemas", is_named_schemas, "an object of schemas"},
                           {"dependencies", is_dependencies, "an object of schemas and arrays of strings"},
                           {"minProperties", is_count, "a whole number"},
                           {"maxProperties", is_count, "a whole number"},
                           {"items", is_schema_or_schemas, "a schema"},
                           {"additionalItems", is_schema, "a schema"},
                           {"prefixItems", is_schemas, "an array of schemas"},
                           {"contains", is_schema, "a schema"},
                           {"minContains", is_count, "a whole number"},
                           {"maxContains", is_count, "a whole number"},
                           {"minItems", is_count, "a whole number"},
                           {"maxItems", is_count, "a whole number"},
                           {"uniqueItems", is_bool, "true or false"},
                           {"minLength", is_count, "a whole number"},
                           {"maxLength", is_count, "a whole number"},
                           {"anyOf", is_schemas, "an array of schemas"},
                           {"oneOf", is_schemas, "an array of schemas"},
                           {"allOf", is_schemas, "an array of schemas"},
                           {"not", is_schema, "a schema"},
                           {"if", is_schema, "a schema"},
                           {"then", is_schema, "a schema"},
                           {"else", is_schema, "a schema"},
                           {"enum", is_array, "an array"},
                           {"pattern", is_string, "a string"},
                           {"format", is_string, "a string"},
                           {"nullable", is_bool, "true or false"},
                           {"minimum", is_number, "a number"},
                           {"maximum", is_number, "a number"},
                           {"exclusiveMinimum", is_bound, "a number"},
                           {"exclusiveMaximum", is_bound, "a number"},
                           {"multipleOf", is_above_zero, "a number above 0"},
                           {"$defs", is_object, "an object"},
                           {"definitions", is_object, "an object"}};

// Keywords beside each other that leave nothing.
void check_order(const Json& schema, const std::string& path) {
  constexpr const char* kPairs[][2] = {
      {"minLength", "maxLength"}, {"minItems", "maxItems"}, {"minProperties", "maxProperties"}};
  for (const auto& [least, most] : kPairs) {
    if (count_of(schema, most, ~uint32_t{0}) < count_of(schema, least, 0)) {
      refuse_schema(path, std::string(most) + " is less than " + least);
    }
  }
  const auto type = schema.find("type");
  if (type == schema.end()) return;
  if (type->is_array() && type->empty()) refuse_schema(path, "type names no type");
  for (const Json& one : type->is_array() ? *type : Json::array({*type})) {
    if (type_bits(one) == 0) refuse_schema(path, "type " + dump_exact_json(one) + " is no type of JSON");
  }
}

// A schema within a schema, and where it is.
struct Within {
  const Json* schema;
  std::string path;
};

void push_within(const Json& schema, const std::string& path, WorkBudget& budget, std::vector<Within>& out) {
  constexpr size_t kPathMax = 400, kNameMax = 100;  // in an error's sentence
  const auto push = [&](const Json& value, const std::string& at) {
    budget.charge(20 + at.size() / 8);
    if (value.is_object()) out.push_back({&value, path.size() < kPathMax ? at : path});
  };
  for (const char* keyword : {"additionalProperties", "unevaluatedProperties", "propertyNames", "items",
                              "additionalItems", "unevaluatedItems", "contains", "not", "if", "then", "else"}) {
    if (const auto found = schema.find(keyword); found != schema.end()) push(*found, path + "/" + keyword);
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf", "prefixItems", "items"}) {
    const auto found = schema.find(keyword);
    if (found == schema.end() || !found->is_array()) continue;
    for (size_t i = 0; i < found->size(); ++i) push((*found)[i], path + "/" + keyword + "/" + std::to_string(i));
  }
  for (const char* keyword :
       {"properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"}) {
    const auto found = schema.find(keyword);
    if (found == schema.end() || !found->is_object()) continue;
    for (const auto& [name, one] : found->items()) push(one, path + "/" + keyword + "/" + name.substr(0, kNameMax));
  }
}

class Fingerprint {
 public:
  explicit Fingerprint(WorkBudget& budget) : budget_(budget) {}

  void add_schema(const Json& schema) {
    if (!schema.is_object()) return add(schema);
    mix(kObject);
    for (const auto& [keyword, value] : schema.items()) {
      if (!restricts(keyword)) continue;
      add(keyword);
      if ((keyword == "properties" || keyword == "patternProperties" || keyword == "dependentSchemas") &&
          value.is_object()) {
        for (const auto& [name, property] : value.items()) {
          add(name);
          add_schema(property);
        }
        mix(kEnd);
      } else if (value.is_object() && (keyword == "items" || keyword == "additionalProperties" || keyword == "not")) {
        add_schema(value);
      } else if (value.is_array() &&
                 (keyword == "anyOf" || keyword == "oneOf" || keyword == "allOf" || keyword == "prefixItems")) {
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

}  // namespace

void refuse_schema(const std::string& path, const std::string& why) { throw Error("schema " + path + ": " + why); }

void cannot_enforce(const std::string& path, const std::string& why) {
  throw UnenforceableSchema("schema " + path + ": " + why);
}

std::span<const SchemaKeyword> schema_keywords() { return kSchemaKeywords; }

bool restricts(const std::string& keyword) {
  return std::any_of(std::begin(kSchemaKeywords), std::end(kSchemaKeywords),
                     [&](const SchemaKeyword& one) { return keyword == one.name; });
}

bool is_number(const Json& value) { return value.is_number() || is_long_integer(value); }

void check_kinds(const Json& root, const std::string& root_path, WorkBudget& budget) {
  std::vector<Within> work = {{&root, root_path}};
  while (!work.empty()) {
    const auto [schema, path] = std::move(work.back());
    work.pop_back();
    if (!schema->is_object()) continue;
    for (const auto& [keyword, value] : schema->items()) {
      budget.charge(30);
      for (const Kind& kind : kKinds) {
        if (keyword == kind.keyword && !kind.fits(value)) refuse_schema(path, keyword + " is not " + kind.name);
      }
    }
    check_order(*schema, path);
    push_within(*schema, path, budget, work);
  }
}

unsigned type_bits(const Json& type) {
  if (type.is_array()) {
    unsigned bits = 0;
    for (const Json& one : type) bits |= type_bits(one);
    return bits;
  }
  constexpr std::pair<const char*, unsigned> kNames[] = {
      {"null", kNullType},     {"boolean", kBooleanType}, {"object", kObjectType}, {"array", kArrayType},
      {"string", kStringType}, {"integer", kIntegerType}, {"number", kNumberType}};
  for (const auto& [name, bits] : kNames) {
    if (type == name) return bits;
  }
  return 0;
}

unsigned type_of(const Json& value) {
  if (value.is_object()) return kObjectType;
  if (value.is_array()) return kArrayType;
  if (value.is_string()) return kStringType;
  if (value.is_boolean()) return kBooleanType;
  if (value.is_null()) return kNullType;
  if (!value.is_number_float()) return kIntegerType;
  return std::floor(value.get<double>()) == value.get<double>() ? kIntegerType : kFractionType;
}

unsigned implied_types(const Json& schema) {
  unsigned types = 0;
  for (const SchemaKeyword& keyword : kSchemaKeywords) {
    if (keyword.type[0] != '\0' && schema.contains(keyword.name)) types |= type_bits(Json(keyword.type));
  }
  return types;
}

uint32_t count_of(const Json& schema, const char* keyword, uint32_t otherwise) {
  const auto found = schema.find(keyword);
  if (found == schema.end()) return otherwise;
  return static_cast<uint32_t>(std::min(found->get<double>(), double{kCountMax}));  // no answer has so many
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
  if (text.starts_with("#") && (text.size() == 1 || text[1] == '/')) {
    found->second = walk(text.substr(1));
  } else if (text.starts_with("#")) {
    found->second = find_named("$anchor", text.substr(1));
  } else {
    found->second = find_named("$id", text);
    if (found->second == nullptr) cannot_enforce(path, "$ref " + text + " leads outside the schema");
  }
  if (found->second == nullptr) refuse_schema(path, "$ref " + text + " leads nowhere");
  check_kinds(*found->second, text, budget_);
  return *found->second;
}

// A definition that names itself.
const Json* SchemaReferences::find_named(const std::string& keyword, const std::string& name) const {
  const auto is_named = [&](const Json& schema) {
    return schema.is_object() && schema.contains(keyword) && schema[keyword] == name;
  };
  if (is_named(root_)) return &root_;
  for (const char* definitions : {"$defs", "definitions"}) {
    if (!root_.is_object() || !root_.contains(definitions)) continue;
    for (const Json& one : root_[definitions]) {
      budget_.charge(10);
      if (is_named(one)) return &one;
    }
  }
  return nullptr;
}

static std::string percent_decoded(const std::string& text) {  // RFC 3986
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) {
      const char* const kHex = "0123456789abcdef";
      const char* found = at < text.size() ? std::strchr(kHex, text[at] | 0x20) : nullptr;
      return found == nullptr || *found == '\0' ? -1 : static_cast<int>(found - kHex);
    };
    if (text[i] == '%' && digit(i + 1) >= 0 && digit(i + 2) >= 0) {
      out += static_cast<char>(digit(i + 1) * 16 + digit(i + 2));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

// RFC 6901.
const Json* SchemaReferences::walk(const std::string& fragment) const {
  const std::string pointer = percent_decoded(fragment);
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

}  // namespace gemma4
