#include "text/chat/offered_tools.h"

#include <algorithm>

#include "base/check.h"
#include "base/exact_json.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kSchemasMax = 64;  // looked at for one place
constexpr int kToolsDepthMax = 100;

const Json* keyword(const Json& schema, const char* name) {
  const auto found = schema.find(name);
  return found == schema.end() ? nullptr : &*found;
}

unsigned type_of_name(const Json& name) {
  static const std::map<std::string, unsigned> kTypes = {
      {"string", ArgumentPlace::kString},   {"number", ArgumentPlace::kNumber | ArgumentPlace::kInteger},
      {"integer", ArgumentPlace::kInteger}, {"boolean", ArgumentPlace::kBoolean},
      {"null", ArgumentPlace::kNull},       {"object", ArgumentPlace::kObject},
      {"array", ArgumentPlace::kArray}};
  if (!name.is_string()) return ArgumentPlace::kAnyType;
  const auto found = kTypes.find(name.get<std::string>());
  return found == kTypes.end() ? ArgumentPlace::kAnyType : found->second;
}

unsigned type_of_value(const Json& value) {
  if (value.is_string()) return ArgumentPlace::kString;
  if (value.is_boolean()) return ArgumentPlace::kBoolean;
  if (value.is_null()) return ArgumentPlace::kNull;
  if (value.is_object()) return ArgumentPlace::kObject;
  if (value.is_array()) return ArgumentPlace::kArray;
  return value.is_number_float() ? ArgumentPlace::kNumber : ArgumentPlace::kNumber | ArgumentPlace::kInteger;
}

unsigned types_of_schema(const Json& schema) {
  unsigned types = 0;
  if (const Json* constant = keyword(schema, "const")) return type_of_value(*constant);
  if (const Json* values = keyword(schema, "enum"); values != nullptr && values->is_array() && !values->empty()) {
    for (const Json& value : *values) types |= type_of_value(value);
    return types;
  }
  const Json* type = keyword(schema, "type");
  if (type == nullptr) {
    if (schema.contains("properties")) types |= ArgumentPlace::kObject;
    if (schema.contains("items") || schema.contains("prefixItems")) types |= ArgumentPlace::kArray;
    if (types == 0) return ArgumentPlace::kAnyType;
  } else if (type->is_array()) {
    for (const Json& one : *type) types |= type_of_name(one);
  } else {
    types = type_of_name(*type);
  }
  const Json* nullable = keyword(schema, "nullable");
  return nullable != nullptr && *nullable == true ? types | ArgumentPlace::kNull : types;
}

const Json* referenced(const Json& root, const Json& reference) {
  if (!reference.is_string()) return nullptr;
  const auto& text = reference.get_ref<const std::string&>();
  if (!text.starts_with("#")) return nullptr;
  try {
    const Json::json_pointer pointer(text.substr(1));
    return root.contains(pointer) ? &root.at(pointer) : nullptr;
  } catch (const Json::exception&) {
    return nullptr;
  }
}

}  // namespace

void ArgumentPlace::add(const Json& schema) {
  std::vector<const Json*> open = {&schema}, seen;
  bool any = false;  // an alternative of which nothing is known
  while (!open.empty() && seen.size() < kSchemasMax) {
    const Json& next = *open.back();
    open.pop_back();
    if (std::ranges::find(seen, &next) != seen.end()) continue;
    seen.push_back(&next);
    if (!next.is_object()) {
      any |= next != false;
      continue;
    }
    bool followed = false;
    if (const Json* reference = keyword(next, "$ref")) {
      const Json* target = referenced(*root_, *reference);
      if (target != nullptr) open.push_back(target);
      followed = true, any |= target == nullptr;
    }
    for (const char* name : {"anyOf", "oneOf", "allOf"}) {
      const Json* choices = keyword(next, name);
      if (choices == nullptr || !choices->is_array()) continue;
      followed = true;
      for (const Json& choice : *choices) open.push_back(&choice);
    }
    const bool itself = next.contains("type") || next.contains("enum") || next.contains("const") ||
                        next.contains("properties") || next.contains("items");
    if (itself || !followed) schemas_.push_back(&next);
  }
  unknown_ |= any || !open.empty();
}

unsigned ArgumentPlace::types() const {
  if (unknown_ || schemas_.empty()) return kAnyType;
  unsigned types = 0;
  for (const Json* schema : schemas_) types |= types_of_schema(*schema);
  return types;
}

bool ArgumentPlace::declares(const std::string& name) const {
  return std::ranges::any_of(schemas_, [&](const Json* schema) {
    const Json* properties = keyword(*schema, "properties");
    return properties != nullptr && properties->is_object() && properties->contains(name);
  });
}

ArgumentPlace ArgumentPlace::member(const std::string& name) const {
  ArgumentPlace place;
  place.root_ = root_;
  for (const Json* schema : schemas_) {
    const Json* properties = keyword(*schema, "properties");
    const Json* others = keyword(*schema, "additionalProperties");
    if (properties != nullptr && properties->is_object() && properties->contains(name)) {
      place.add((*properties)[name]);
    } else if (others != nullptr && others->is_object()) {
      place.add(*others);
    }
  }
  return place;
}

ArgumentPlace ArgumentPlace::item(size_t index) const {
  ArgumentPlace place;
  place.root_ = root_;
  for (const Json* schema : schemas_) {
    const Json* prefix = keyword(*schema, "prefixItems");
    const Json* items = keyword(*schema, "items");
    if (prefix != nullptr && prefix->is_array() && index < prefix->size()) {
      place.add((*prefix)[index]);
    } else if (items != nullptr && items->is_object()) {
      place.add(*items);
    }
  }
  return place;
}

OfferedTools::OfferedTools(std::string_view tools) {
  if (tools.empty()) return;
  Json list;
  try {
    list = parse_exact_json(tools, kToolsDepthMax);
  } catch (const Json::exception&) {
    return;  // render_chat says so
  } catch (const Error&) {
    return;
  }
  if (!list.is_array()) return;
  for (const Json& tool : list) {
    const Json& function = tool.is_object() && tool.contains("function") ? tool["function"] : tool;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) continue;
    const Json* strict = keyword(function, "strict");
    any_strict_ |= strict != nullptr && *strict == true;
    const Json* parameters = keyword(function, "parameters");
    parameters_[function["name"].get<std::string>()] =
        std::make_unique<const Json>(parameters == nullptr ? Json::object() : *parameters);
  }
}

const Json* OfferedTools::parameters(const std::string& name) const {
  const auto found = parameters_.find(name);
  return found == parameters_.end() ? nullptr : found->second.get();
}

}  // namespace gemma4
