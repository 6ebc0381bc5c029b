#include "text/chat/tool_schema.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kReferenceDepth = 32;  // below it no $ref is written out
constexpr size_t kUnitBytes = 64;    // of names and values that count as one schema

// Members that hold values, not schemas, or schemas that the template cannot show.
bool is_raw(std::string_view key) {
  static const std::set<std::string_view> keys = {"default",
                                                  "examples",
                                                  "example",
                                                  "enum",
                                                  "const",
                                                  "not",
                                                  "if",
                                                  "then",
                                                  "else",
                                                  "patternProperties",
                                                  "dependentSchemas",
                                                  "dependentRequired",
                                                  "xml",
                                                  "externalDocs",
                                                  "contains",
                                                  "propertyNames"};
  return keys.contains(key);
}

int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

// One part of a JSON pointer (RFC 6901) in a URI's fragment.
std::string pointer_part(std::string_view part) {
  std::string out;
  for (size_t i = 0; i < part.size(); ++i) {
    const char next = i + 1 < part.size() ? part[i + 1] : '\0';
    if (part[i] == '~' && (next == '0' || next == '1')) {
      out += next == '0' ? '~' : '/';
      ++i;
    } else if (part[i] == '%' && i + 2 < part.size() && hex_digit(next) >= 0 && hex_digit(part[i + 2]) >= 0) {
      out += static_cast<char>(hex_digit(next) * 16 + hex_digit(part[i + 2]));
      i += 2;
    } else {
      out += part[i];
    }
  }
  return out;
}

// Null if the reference is not one into `root`, or leads nowhere.
const Json* find_target(const Json& root, std::string_view reference) {
  if (!reference.starts_with('#')) return nullptr;
  reference.remove_prefix(1);
  const Json* at = &root;
  while (!reference.empty()) {
    if (reference[0] != '/') return nullptr;
    reference.remove_prefix(1);
    const size_t end = std::min(reference.find('/'), reference.size());
    const std::string part = pointer_part(reference.substr(0, end));
    reference.remove_prefix(end);
    if (at->is_object()) {
      const auto found = at->find(part);
      if (found == at->end()) return nullptr;
      at = &*found;
    } else if (at->is_array() && !part.empty() && part.size() < 7 &&
               part.find_first_not_of("0123456789") == part.npos && std::stoul(part) < at->size()) {
      at = &(*at)[std::stoul(part)];
    } else {
      return nullptr;
    }
  }
  return at->is_object() ? at : nullptr;
}

std::string type_of_values(const Json& values) {
  std::string type;
  for (const Json& value : values) {
    const std::string one = value.is_string()           ? "string"
                            : value.is_boolean()        ? "boolean"
                            : value.is_number_integer() ? "integer"
                            : value.is_number()         ? "number"
                            : value.is_object()         ? "object"
                            : value.is_array()          ? "array"
                                                        : "null";
    if (type.empty() || type == one) {
      type = one;
    } else if ((type == "integer" && one == "number") || (type == "number" && one == "integer")) {
      type = "number";
    } else {
      return "";
    }
  }
  return type;
}

bool has_any(const Json& schema, std::initializer_list<const char*> keys) {
  return std::ranges::any_of(keys, [&](const char* key) { return schema.contains(key); });
}

// The type of a schema that names none.
std::string guess_type(const Json& schema) {
  if (schema.contains("enum") && schema["enum"].is_array()) {
    if (const std::string type = type_of_values(schema["enum"]); !type.empty()) return type;
  }
  if (has_any(schema, {"properties", "additionalProperties", "required"})) return "object";
  if (has_any(schema, {"items", "prefixItems", "minItems", "maxItems"})) return "array";
  if (has_any(schema, {"pattern", "minLength", "maxLength", "format"})) return "string";
  if (has_any(schema, {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})) return "number";
  return "any";
}

// Has a type and nothing that a type's name would not say.
bool is_plain(const Json& branch) {
  const Json& type = branch["type"];
  return type.is_string() && type != "object" && type != "array" && !has_any(branch, {"enum", "description", "anyOf"});
}

}  // namespace

// The types that a schema allows.
struct ToolSchemas::Types {
  std::vector<std::string> names;
  bool null = false;

  void add(const Json& type) {
    if (type == "null") {
      null = true;
    } else if (type.is_string() && std::ranges::find(names, type.get_ref<const std::string&>()) == names.end()) {
      names.push_back(type);
    }
  }
  void add_all(const Json& type) {
    if (!type.is_array()) return add(type);
    for (const Json& one : type) add(one);
  }
};

// A schema with what its $ref and allOf bring; of equal members the first counts.
struct ToolSchemas::Flat {
  std::vector<std::pair<std::string, const Json*>> members, properties;
  std::vector<const Json*> unions, targets;
  std::vector<std::string> required;
  bool has_properties = false;
  std::string cut;  // a $ref that is not written out
  const Json* cut_target = nullptr;

  const Json* find(std::string_view key) const {
    const auto found = std::ranges::find(members, key, &std::pair<std::string, const Json*>::first);
    return found == members.end() ? nullptr : found->second;
  }
};

const Json* ToolSchemas::follow(const Json& reference, int depth, Flat& flat) {
  const std::string& text = reference.get_ref<const std::string&>();
  const Json* target = find_target(*root_, text);
  if (target != nullptr && std::ranges::find(flat.targets, target) != flat.targets.end()) return nullptr;
  const bool inside = target != nullptr && std::ranges::find(open_, target) != open_.end();
  if (target != nullptr && !inside && depth < kReferenceDepth && left_ > 0) {
    flat.targets.push_back(target);
    return target;
  }
  flat.cut = target == root_ ? "the whole" : pointer_part(text.substr(text.find_last_of("/#") + 1));
  if (inside) flat.cut += " (see above)";
  flat.cut_target = target;
  return nullptr;
}

ToolSchemas::Flat ToolSchemas::flatten(const Json& schema, int depth) {
  Flat flat;
  std::set<std::string> known, named, needed;
  std::vector<const Json*> list = {&schema};
  for (size_t i = 0; i < list.size(); ++i) {
    for (const auto& [key, value] : list[i]->items()) {
      if (key == "$ref" && value.is_string()) {
        if (const Json* target = follow(value, depth, flat)) list.push_back(target);
      } else if (key == "allOf" && value.is_array()) {
        for (const Json& one : value) {
          if (one.is_object()) list.push_back(&one);
        }
      } else if ((key == "anyOf" || key == "oneOf") && value.is_array()) {
        flat.unions.push_back(&value);
      } else if (key == "properties" && value.is_object()) {
        flat.has_properties = true;
        for (const auto& [name, one] : value.items()) {
          if (named.insert(name).second) flat.properties.emplace_back(name, &one);
        }
      } else if (key == "required" && value.is_array()) {
        for (const Json& name : value) {
          if (name.is_string() && (needed.insert(name).second || i == 0)) flat.required.push_back(name);
        }
      } else if (!key.starts_with('$') && key != "definitions" && key != "discriminator" && known.insert(key).second) {
        flat.members.emplace_back(key, &value);
      }
    }
  }
  return flat;
}

void ToolSchemas::read_children(const Flat& flat, int depth, Json& out) {
  for (const auto& [key, value] : flat.members) {
    if (key == "type" || key == "nullable") continue;
    if (key == "const") {
      if (flat.find("enum") == nullptr) out["enum"] = Json::array({*value});
    } else if (key == "prefixItems" && value->is_array()) {
      out[key] = Json::array();
      for (const Json& one : *value) out[key].push_back(read(one, depth + 1));
    } else if (value->is_object() && !is_raw(key)) {
      out[key] = read(*value, depth + 1);
    } else {
      out[key] = *value;
      if (open_.size() > 1) left_ -= static_cast<int>(value->dump().size() / kUnitBytes);
    }
  }
  if (flat.has_properties) out["properties"] = Json::object();
  for (const auto& [name, value] : flat.properties) {
    out["properties"][name] = read(*value, depth + 1);
    if (open_.size() > 1) left_ -= static_cast<int>(name.size() / kUnitBytes);
  }
  if (!flat.required.empty()) out["required"] = flat.required;
}

void ToolSchemas::read_unions(const Flat& flat, int depth, Json& out, Types& types) {
  Json rest = Json::array();
  for (const Json* branches : flat.unions) {
    Json some = Json::array();
    for (const Json& one : *branches) {
      Json branch = read(one, depth + 1);
      if (branch.contains("nullable")) types.null = true;
      branch.erase("nullable");
      if (branch["type"] == "null") {
        types.null = true;
      } else {
        some.push_back(std::move(branch));
      }
    }
    if (some.size() != 1) {
      for (Json& branch : some) rest.push_back(std::move(branch));
      continue;
    }
    for (const auto& [key, value] : some[0].items()) {  // one schema, or null: it stands for the whole
      if (key == "type") {
        if (types.names.empty()) types.add_all(value);
      } else if (!out.contains(key)) {
        out[key] = value;
      }
    }
  }
  if (rest.empty()) return;
  if (types.names.empty()) {
    for (const Json& branch : rest) types.add_all(branch["type"]);
  }
  if (!std::ranges::all_of(rest, is_plain)) out["anyOf"] = std::move(rest);
}

// Sets the type, and takes null out of an enum.
void ToolSchemas::write_type(const Flat& flat, Types& types, Json& out) {
  if (types.names.empty() && flat.cut_target != nullptr) types.add(flat.cut_target->value("type", Json()));
  const bool open = types.names.empty() || types.null;  // null may be among the values
  if (const auto found = out.find("enum"); open && found != out.end() && found->is_array() && found->size() > 1) {
    const auto end = std::remove(found->begin(), found->end(), Json());
    types.null |= end != found->end();
    found->erase(end, found->end());
  }
  if (types.names.empty()) {
    const std::string guess = guess_type(out);
    const Json* nullable = flat.find("nullable");
    types.add(guess == "any" && types.null && (nullable == nullptr || *nullable != true) ? "null" : guess);
  }
  if (types.names.empty()) {
    out["type"] = "null";
    return;
  }
  if (types.null) out["nullable"] = true;
  out["type"] = types.names.size() == 1 ? Json(types.names[0]) : Json(types.names);
}

Json ToolSchemas::read(const Json& schema, int depth) {
  if (!schema.is_object()) return {{"type", "any"}};  // true, or no schema at all
  const Flat flat = flatten(schema, depth);
  const size_t before = open_.size();
  open_.insert(open_.end(), flat.targets.begin(), flat.targets.end());
  if (open_.size() > 1) --left_;
  Json out = Json::object();
  Types types;
  if (const Json* type = flat.find("type")) types.add_all(*type);
  if (const Json* nullable = flat.find("nullable")) types.null |= *nullable == true;
  read_children(flat, depth, out);
  read_unions(flat, depth, out, types);
  open_.resize(before);
  if (!flat.cut.empty() && !out.contains("description")) out["description"] = flat.cut;
  write_type(flat, types, out);
  return out;
}

Json ToolSchemas::readable(const Json& parameters) {
  root_ = &parameters;
  open_ = {root_};
  return read(parameters, 0);
}

}  // namespace gemma4
