#include "text/grammar/schema.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "base/check.h"
#include "base/exact_json.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaDepthMax = 100;
constexpr int kMergesMax = 10000;
constexpr size_t kNamesMax = 1000;  // members of one object

// Keywords that do not restrict instances, or that are handled elsewhere.
const std::set<std::string>& annotations() {
  static const std::set<std::string> kNames = {
      "title", "description", "default",    "examples", "example",   "$schema",  "$id",           "$comment",
      "$defs", "definitions", "deprecated", "readOnly", "writeOnly", "nullable", "discriminator", "$anchor"};
  return kNames;
}

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

const std::map<std::string, std::string>& formats() {
  static const std::map<std::string, std::string> kPatterns = [] {
    const std::string date = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])";  // only days that every month has
    const std::string time =
        "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
    const std::string byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    const std::string hex = "[0-9a-fA-F]", label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
    const std::string host = label + "(\\." + label + "){0,8}";
    return std::map<std::string, std::string>{
        {"date", date},
        {"time", time},
        {"date-time", date + "T" + time},
        {"uuid", hex + "{8}-" + hex + "{4}-" + hex + "{4}-" + hex + "{4}-" + hex + "{12}"},
        {"ipv4", byte + "(\\." + byte + "){3}"},
        {"hostname", host},
        {"email", "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,31})?@" + host},
        {"uri", "https?://" + host + "(:[1-9][0-9]{0,3})?(/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*"}};
  }();
  return kPatterns;
}

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error("schema " + path + ": " + why);
}

bool is_type(const Json& value, const std::string& type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "integer")
    return is_long_integer(value) || value.is_number_integer() ||
           (value.is_number() && std::floor(value.get<double>()) == value);
  return value.is_number() || is_long_integer(value);
}

std::vector<std::string> types_of(const Json& schema, const std::string& path) {
  std::vector<std::string> types;
  if (const auto type = schema.find("type"); type != schema.end()) {
    for (const Json& one : type->is_array() ? *type : Json::array({*type})) {
      if (!one.is_string() || !keywords_of_types().contains(one.get<std::string>())) {
        refuse(path, "type " + one.dump() + " is no type of JSON");
      }
      types.push_back(one.get<std::string>());
    }
    if (types.empty()) refuse(path, "type names no type");
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

void check_keywords(const Json& schema, const std::vector<std::string>& types, const std::string& path) {
  static const std::set<std::string> kGeneral = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"};
  for (const auto& [keyword, value] : schema.items()) {
    if (kGeneral.contains(keyword) || annotations().contains(keyword)) continue;
    bool known = false, fits = types.empty();
    for (const auto& [type, keywords] : keywords_of_types()) {
      if (!keywords.contains(keyword)) continue;
      known = true;
      fits |= std::find(types.begin(), types.end(), type) != types.end();
    }
    if (keyword == "uniqueItems" && value == false) continue;
    if (!known) refuse(path, "the keyword " + keyword + " is not implemented");
    // A keyword of another type constrains nothing.
  }
}

uint32_t count_of(const Json& schema, const char* keyword, uint32_t otherwise, const std::string& path) {
  const auto found = schema.find(keyword);
  if (found == schema.end()) return otherwise;
  if (!found->is_number_unsigned() || found->get<uint64_t>() > 1000000) {
    refuse(path, std::string(keyword) + " is not a whole number up to 1000000");
  }
  return found->get<uint32_t>();
}

std::string decimal(const Json& value, const std::string& path) {
  if (!value.is_number() && !is_long_integer(value)) refuse(path, "a bound is not a number");
  if (!value.is_number_float()) return dump_exact_json(value);
  char buffer[400];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value.get<double>(), std::chars_format::fixed).ptr;
  return {buffer, end};
}

}  // namespace

int SchemaGrammar::rule(const Json& schema, const std::string& path) {
  if (schema == true || (schema.is_object() && schema.empty())) return any_value();
  if (!schema.is_object()) refuse(path, "is neither an object nor true");
  const std::string text = schema.dump();
  if (const auto found = rules_.find(text); found != rules_.end()) return found->second;
  if (++depth_ > kSchemaDepthMax) refuse(path, "is nested too deep");
  const int rule = rules_[text] = a_.new_rule();
  std::vector<int> choices;
  alternatives(schema, path, a_.finish(), choices);
  if (choices.empty()) refuse(path, "allows no value");
  a_.set_rule(rule, a_.split(std::move(choices)));
  --depth_;
  return rule;
}

const Json& SchemaGrammar::resolve(const Json& reference, const std::string& path) const {
  const std::string text = reference.is_string() ? reference.get<std::string>() : reference.dump();
  if (!text.starts_with("#")) refuse(path, "$ref " + text + " leads outside the schema");
  try {
    return root_.at(Json::json_pointer(text.substr(1)));
  } catch (const Json::exception&) {
    refuse(path, "$ref " + text + " leads nowhere");
  }
}

// Merges allOf, and the keywords beside $ref, into one schema. Throws Error where two of them contradict each other.
Json SchemaGrammar::merged(const Json& schema, const std::string& path, int depth) {
  Json result = schema;
  const auto add = [&](const Json& part) {
    if (!part.is_object()) refuse(path, "allOf of something that is no object");
    for (const auto& [keyword, value] : part.items()) {
      if (annotations().contains(keyword)) continue;
      if (!result.contains(keyword)) {
        result[keyword] = value;
      } else if (keyword == "required") {
        for (const Json& name : value) result[keyword].push_back(name);
      } else if (keyword == "properties") {
        for (const auto& [name, property] : value.items()) {
          if (result[keyword].contains(name) && result[keyword][name] != property)
            refuse(path, "allOf gives " + name + " twice");
          result[keyword][name] = property;
        }
      } else if (result[keyword] != value) {
        refuse(path, "allOf with two different " + keyword + " is not implemented");
      }
    }
  };
  while (result.contains("$ref") || result.contains("allOf")) {
    if (depth > kSchemaDepthMax || ++merges_ > kMergesMax) refuse(path, "$ref and allOf go on too long");
    if (result.contains("$ref")) {
      const Json& target = resolve(result["$ref"], path);
      result.erase("$ref");
      if (target != true) add(target);
    } else {
      const Json parts = result["allOf"];
      result.erase("allOf");
      for (const Json& part : parts) {
        const bool plain = part.is_object() && !part.contains("$ref") && !part.contains("allOf");
        add(plain ? part : merged(part, path, depth + 1));
      }
    }
  }
  return result;
}

void SchemaGrammar::alternatives(const Json& schema, const std::string& path, int next, std::vector<int>& out) {
  if (schema.contains("$ref") || schema.contains("allOf")) {
    Json rest = schema;  // a plain reference is a call of a rule, so a schema may contain itself
    for (const std::string& name : annotations()) rest.erase(name);
    if (rest.size() == 1 && rest.contains("$ref")) {
      out.push_back(a_.call(rule(resolve(rest["$ref"], path), schema["$ref"].get<std::string>()), next));
    } else {
      alternatives(merged(schema, path), path, next, out);
    }
    return;
  }
  const std::vector<std::string> types = types_of(schema, path);
  check_keywords(schema, types, path);
  const bool nullable = schema.value("nullable", false);
  if (nullable) enumerated(Json::array({nullptr}), Json::object(), next, out);
  for (const char* keyword : {"anyOf", "oneOf"}) {
    if (!schema.contains(keyword)) continue;
    Json beside = schema;  // the keywords beside it apply to every alternative
    beside.erase(keyword);
    beside.erase("nullable");
    for (const std::string& name : annotations()) beside.erase(name);
    if (!schema[keyword].is_array()) refuse(path, std::string(keyword) + " is no array");
    int i = 0;
    for (const Json& choice : schema[keyword]) {
      const std::string at = path + "/" + keyword + "/" + std::to_string(i++);
      Json both = beside;
      if (!beside.empty()) both["allOf"] = Json::array({choice});
      out.push_back(a_.call(rule(beside.empty() ? choice : both, at), next));
    }
    return;
  }
  if (schema.contains("const")) return enumerated(Json::array({schema["const"]}), schema, next, out);
  if (schema.contains("enum")) {
    if (!schema["enum"].is_array()) refuse(path, "enum is no array");
    return enumerated(schema["enum"], schema, next, out);
  }
  if (types.empty()) out.push_back(a_.call(any_value(), next));
  for (const std::string& type : types) typed(schema, type, path, next, out);
}

void SchemaGrammar::typed(const Json& schema, const std::string& type, const std::string& path, int next,
                          std::vector<int>& out) {
  if (type == "object") {
    const bool plain =
        !schema.contains("properties") && !schema.contains("required") && !schema.contains("additionalProperties");
    out.push_back(plain ? a_.call(any_object(), next) : object(schema, path, next));
  } else if (type == "array") {
    out.push_back(array(schema, path, next));
  } else if (type == "string") {
    out.push_back(string(schema, path, next));
  } else if (type == "boolean") {
    enumerated(Json::array({true, false}), Json::object(), next, out);
  } else if (type == "null") {
    enumerated(Json::array({nullptr}), Json::object(), next, out);
  } else {
    out.push_back(number(schema, type == "integer", path, next));
  }
}

// The values in their compact form, if the schema's type allows them.
void SchemaGrammar::enumerated(const Json& values, const Json& schema, int next, std::vector<int>& out) {
  const std::vector<std::string> types = types_of(schema, "enum");
  std::vector<std::vector<int>> sequences;
  for (const Json& value : values) {
    const auto fits = [&](const std::string& type) { return is_type(value, type); };
    if (!types.empty() && std::none_of(types.begin(), types.end(), fits)) continue;
    sequences.emplace_back();
    spell_value(value, sequences.back());
    if (value.is_null() && syntax_ == Syntax::kGemma) {  // as the prompt template writes a null
      sequences.push_back({'N', 'o', 'n', 'e'});
    }
  }
  std::sort(sequences.begin(), sequences.end());
  sequences.erase(std::unique(sequences.begin(), sequences.end()), sequences.end());
  if (!sequences.empty()) out.push_back(a_.one_of(std::move(sequences), next));
}

void SchemaGrammar::spell_value(const Json& value, std::vector<int>& inputs) const {
  const auto put = [&](std::string_view text) {
    for (const char c : text) inputs.push_back(static_cast<unsigned char>(c));
  };
  if (value.is_string()) {
    const std::vector<int> quoted = text_.quoted(value.get_ref<const std::string&>());
    inputs.insert(inputs.end(), quoted.begin(), quoted.end());
  } else if (value.is_structured()) {
    put(value.is_array() ? "[" : "{");
    bool first = true;
    for (const auto& [name, member] : value.items()) {
      if (!std::exchange(first, false)) put(",");
      if (value.is_object() && syntax_ == Syntax::kJson) spell_value(name, inputs);
      if (value.is_object() && syntax_ == Syntax::kGemma) put(name);
      if (value.is_object()) put(":");
      spell_value(member, inputs);
    }
    put(value.is_array() ? "]" : "}");
  } else {
    put(dump_exact_json(value));
  }
}

int SchemaGrammar::number(const Json& schema, bool integer, const std::string& path, int next) {
  LexicalGrammar::Bounds bounds;
  const auto bound = [&](const char* keyword, const char* exclusive, std::optional<std::string>& value,
                         bool& excluded) {
    if (schema.contains(keyword)) value = decimal(schema[keyword], path);
    if (!schema.contains(exclusive) || schema[exclusive] == false) return;
    excluded = true;
    if (schema[exclusive] == true) return;  // draft 4: a boolean; the bound is in the other keyword
    if (value) refuse(path, std::string(keyword) + " beside " + exclusive + " is not implemented");
    value = decimal(schema[exclusive], path);
  };
  bound("minimum", "exclusiveMinimum", bounds.least, bounds.above);
  bound("maximum", "exclusiveMaximum", bounds.most, bounds.below);
  return text_.number(integer, bounds, next);
}

int SchemaGrammar::string(const Json& schema, const std::string& path, int next) {
  const uint32_t least = count_of(schema, "minLength", 0, path), most = count_of(schema, "maxLength", kUnbounded, path);
  if (most < least) refuse(path, "maxLength is less than minLength");
  const bool length = least > 0 || most != kUnbounded;
  if (schema.contains("pattern") && schema.contains("format")) refuse(path, "pattern beside format is not implemented");
  if (length && (schema.contains("pattern") || schema.contains("format"))) {
    refuse(path, "minLength or maxLength beside pattern or format is not implemented");
  }
  if (schema.contains("pattern")) {
    if (!schema["pattern"].is_string()) refuse(path, "pattern is no string");
    return text_.pattern(schema["pattern"].get<std::string>(), "schema " + path, next);
  }
  if (schema.contains("format")) {
    const std::string format =
        schema["format"].is_string() ? schema["format"].get<std::string>() : schema["format"].dump();
    const auto known = formats().find(format);
    if (known == formats().end()) refuse(path, "the format " + format + " is not implemented");
    return text_.pattern("^(" + known->second + ")$", "format " + format, next);
  }
  return text_.string(least, most, next);
}

int SchemaGrammar::separator(int next) { return a_.byte(',', text_.space(next)); }
int SchemaGrammar::name_then(int next) { return a_.byte(':', text_.space(next)); }

int SchemaGrammar::key(const std::string& name, int next) {
  if (syntax_ == Syntax::kGemma) return a_.literal(name, name_then(next));
  return a_.one_of({text_.quoted(name)}, name_then(next));
}

int SchemaGrammar::array(const Json& schema, const std::string& path, int next) {
  const uint32_t least = count_of(schema, "minItems", 0, path);
  uint32_t most = count_of(schema, "maxItems", kUnbounded, path);
  const Json prefix = schema.value("prefixItems", Json::array());
  const Json items = schema.value("items", Json(true));
  if (!prefix.is_array()) refuse(path, "prefixItems is no array");
  if (items.is_array()) refuse(path, "items as an array is not implemented; prefixItems is");
  const auto fixed = static_cast<uint32_t>(prefix.size());
  if (items == false) most = std::min(most, fixed);
  if (most < least) refuse(path, "maxItems is less than minItems");
  const int close = a_.byte(']', next), end = text_.space(close);
  // Built from the back: the fixed items, then as many further items as the limits allow.
  int rest = end;
  if (most > fixed) {
    const int item = rule(items, path + "/items");
    const uint32_t more = most == kUnbounded ? kUnbounded : most - fixed, need = least > fixed ? least - fixed : 0;
    const int body = separator(a_.call(item, a_.finish()));
    if (fixed == 0) {
      const uint32_t after_first = more == kUnbounded ? kUnbounded : more - 1;
      const int first = a_.call(item, a_.loop(body, need > 0 ? need - 1 : 0, after_first, end));
      return a_.byte('[', text_.space(need == 0 ? a_.split({close, first}) : first));
    }
    rest = a_.loop(body, need, more, end);
  }
  for (uint32_t i = std::min(fixed, most); i-- > 0;) {
    const int item = a_.call(rule(prefix[i], path + "/prefixItems/" + std::to_string(i)), rest);
    rest = i == 0 ? item : separator(item);
    if (i >= least) rest = a_.split({i == 0 ? close : end, rest});
  }
  return a_.byte('[', text_.space(fixed == 0 ? close : rest));
}

int SchemaGrammar::members_of_any(int value_rule, const std::vector<std::string>& names, bool first, int close) {
  const auto member = [&](int next) {
    const int value = name_then(a_.call(value_rule, next));
    if (names.empty() && syntax_ == Syntax::kJson) return text_.string(0, kUnbounded, value);
    return text_.key_other_than(names, value);
  };
  const int more = a_.loop(separator(member(a_.finish())), 0, kUnbounded, text_.space(close));
  return first ? a_.split({close, member(more)}) : more;
}

int SchemaGrammar::object(const Json& schema, const std::string& path, int next) {
  struct Member {
    std::string name;
    int rule;
    bool required;
  };
  std::vector<Member> members;
  std::set<std::string> required;
  for (const Json& name : schema.value("required", Json::array()))
    required.insert(name.is_string() ? name.get<std::string>() : "");
  const Json properties = schema.value("properties", Json::object());
  const Json others = schema.value("additionalProperties", Json(properties.empty()));
  if (!properties.is_object()) refuse(path, "properties is no object");
  for (const auto& [name, property] : properties.items()) {
    if (property == false) {
      if (required.contains(name)) refuse(path, name + " is required but may not be there");
      continue;
    }
    members.push_back({name, rule(property, path + "/properties/" + name), required.contains(name)});
    required.erase(name);
  }
  for (const std::string& name : required) {  // required but not described: any value
    if (others == false && properties.contains(name)) continue;
    members.push_back({name, others.is_object() ? rule(others, path + "/additionalProperties") : any_value(), true});
  }
  if (members.size() > kNamesMax) refuse(path, "has too many properties");
  if (syntax_ == Syntax::kGemma) {
    const auto lower = [](std::string name) {
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return c < 128 ? std::tolower(c) : c; });
      return name;
    };
    std::stable_sort(members.begin(), members.end(),
                     [&](const Member& a, const Member& b) { return lower(a.name) < lower(b.name); });
    for (const Member& member : members) {
      if (member.name.empty() || member.name.find_first_of(":,{}[]\" \t\r\n<>") != std::string::npos) {
        refuse(path, "the property name '" + member.name + "' cannot be written in a tool call");
      }
    }
  }
  std::vector<std::string> names;
  for (const auto& [name, property] : properties.items()) names.push_back(name);
  for (const Member& member : members) names.push_back(member.name);
  const int close = a_.byte('}', next);
  // Built from the back as two chains: one for "no member written yet", and one for "a member was written", in which
  // a comma precedes the next member.
  int none = close, some = text_.space(close);
  if (others != false) {
    const int value = rule(others, path + "/additionalProperties");
    none = members_of_any(value, names, true, close);
    some = members_of_any(value, names, false, close);
  }
  for (size_t i = members.size(); i-- > 0;) {
    const int member = key(members[i].name, a_.call(members[i].rule, some));
    const int first = members[i].required ? member : a_.split({member, none});
    some = members[i].required ? separator(member) : a_.split({separator(member), some});
    none = first;
  }
  return a_.byte('{', text_.space(none));
}

int SchemaGrammar::any_value() {
  if (any_value_ >= 0) return any_value_;
  any_value_ = a_.new_rule();
  const int end = a_.finish();
  std::vector<int> choices = {text_.string(0, kUnbounded, end), text_.number(false, end), a_.call(any_object(), end)};
  enumerated(Json::array({true, false, nullptr}), Json::object(), end, choices);
  choices.push_back(array(Json::object(), "", end));
  a_.set_rule(any_value_, a_.split(std::move(choices)));
  return any_value_;
}

int SchemaGrammar::any_object() {
  if (any_object_ >= 0) return any_object_;
  any_object_ = a_.new_rule();
  const int close = a_.byte('}', a_.finish());
  a_.set_rule(any_object_, a_.byte('{', text_.space(members_of_any(any_value(), {}, true, close))));
  return any_object_;
}

}  // namespace gemma4
