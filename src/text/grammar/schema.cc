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
constexpr size_t kNamesMax = 1000;  // members of one object

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

std::string decimal(const Json& value, const std::string& path) {
  if (!value.is_number() && !is_long_integer(value)) refuse_schema(path, "a bound is not a number");
  if (!value.is_number_float()) return dump_exact_json(value);
  char buffer[400];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value.get<double>(), std::chars_format::fixed).ptr;
  return {buffer, end};
}

}  // namespace

int SchemaGrammar::rule(const Json& schema, const std::string& path) {
  if (schema == true || (schema.is_object() && schema.empty())) return any_value();
  if (schema == false) refuse_schema(path, "allows no value");
  if (!schema.is_object()) refuse_schema(path, "is neither an object nor true");
  const auto [found, is_new] = rules_.try_emplace(fingerprint(schema, a_.budget()), -1);
  if (!is_new) return found->second;
  if (++depth_ > kSchemaDepthMax) refuse_schema(path, "is nested too deep");
  const int rule = found->second = a_.new_rule();
  std::vector<int> choices;
  alternatives(schema, path, a_.finish(), choices);
  if (choices.empty()) refuse_schema(path, "allows no value");
  a_.set_rule(rule, a_.split(std::move(choices)));
  --depth_;
  return rule;
}

int SchemaGrammar::rule_of_reference(const Json& reference, const std::string& path) {
  const Json& target = references_.resolve(reference, path);
  if (const auto found = rules_of_targets_.find(&target); found != rules_of_targets_.end()) return found->second;
  const int result = rule(target, reference.get<std::string>());
  return rules_of_targets_[&target] = result;
}

void SchemaGrammar::alternatives(const Json& schema, const std::string& path, int next, std::vector<int>& out) {
  check_kinds(schema, path);
  if (schema.contains("$ref") || schema.contains("allOf")) {
    const auto keywords = std::count_if(schema.items().begin(), schema.items().end(),
                                        [](const auto& item) { return !is_annotation(item.key()); });
    if (keywords == 1 && schema.contains("$ref")) {  // a call of a rule, so a schema may contain itself
      out.push_back(a_.call(rule_of_reference(schema["$ref"], path), next));
    } else {
      alternatives(merge_schemas(schema, path, references_, a_.budget()), path, next, out);
    }
    return;
  }
  const std::vector<std::string> types = types_of(schema, path);
  check_keywords(schema, path);
  if (schema.value("nullable", false)) enumerated(Json::array({nullptr}), Json::object(), path, next, out);
  for (const char* keyword : {"anyOf", "oneOf"}) {
    if (schema.contains(keyword)) return choices_of(schema, keyword, path, next, out);
  }
  if (schema.contains("const")) {
    const Json& value = schema["const"];
    const auto listed = schema.find("enum");
    if (listed != schema.end() && std::find(listed->begin(), listed->end(), value) == listed->end()) {
      refuse_schema(path, "const is not in enum, so it allows no value");
    }
    return enumerated(Json::array({value}), schema, path, next, out);
  }
  if (schema.contains("enum")) return enumerated(schema["enum"], schema, path, next, out);
  if (types.empty()) out.push_back(a_.call(any_value(), next));
  for (const std::string& type : types) typed(schema, type, path, next, out);
}

// anyOf or oneOf: the keywords beside it apply to every alternative.
void SchemaGrammar::choices_of(const Json& schema, const std::string& keyword, const std::string& path, int next,
                               std::vector<int>& out) {
  Json beside = Json::object();
  for (const auto& [name, value] : schema.items()) {
    if (name != keyword && !is_annotation(name)) beside[name] = value;
  }
  const uint64_t steps = copy_steps(beside);
  int i = 0;
  for (const Json& choice : schema[keyword]) {
    const std::string at = path + "/" + keyword + "/" + std::to_string(i++);
    a_.budget().charge(steps + at.size());
    if (choice == false) continue;
    Json both = beside;
    if (!beside.empty()) both["allOf"] = Json::array({choice});
    out.push_back(a_.call(rule(beside.empty() ? choice : both, at), next));
  }
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
    enumerated(Json::array({true, false}), Json::object(), path, next, out);
  } else if (type == "null") {
    enumerated(Json::array({nullptr}), Json::object(), path, next, out);
  } else {
    out.push_back(number(schema, type == "integer", path, next));
  }
}

// The values in their compact form, if the schema's type and bounds allow them.
void SchemaGrammar::enumerated(const Json& values, const Json& schema, const std::string& path, int next,
                               std::vector<int>& out) {
  std::vector<std::vector<int>> sequences;
  for (const Json& value : values) {
    a_.budget().charge(copy_steps(value));
    if (!is_within(value, schema, path)) continue;
    sequences.emplace_back();
    spell_value(value, sequences.back());
    a_.budget().charge(sequences.back().size());
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
    if (value) refuse_schema(path, std::string(keyword) + " beside " + exclusive + " is not implemented");
    value = decimal(schema[exclusive], path);
  };
  bound("minimum", "exclusiveMinimum", bounds.least, bounds.above);
  bound("maximum", "exclusiveMaximum", bounds.most, bounds.below);
  return text_.number(integer, bounds, next);
}

int SchemaGrammar::string(const Json& schema, const std::string& path, int next) {
  const uint32_t least = count_of(schema, "minLength", 0, path), most = count_of(schema, "maxLength", kUnbounded, path);
  if (most < least) refuse_schema(path, "maxLength is less than minLength");
  const bool length = least > 0 || most != kUnbounded;
  if (schema.contains("pattern") && schema.contains("format")) refuse_schema(path, "pattern beside format is not implemented");
  if (length && (schema.contains("pattern") || schema.contains("format"))) {
    refuse_schema(path, "minLength or maxLength beside pattern or format is not implemented");
  }
  if (schema.contains("pattern")) {
    return text_.pattern(schema["pattern"].get<std::string>(), "schema " + path, next);
  }
  if (schema.contains("format")) {
    const auto format = schema["format"].get<std::string>();
    const auto known = formats().find(format);
    if (known == formats().end()) refuse_schema(path, "the format " + format + " is not implemented");
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
  const auto fixed = static_cast<uint32_t>(prefix.size());
  if (items == false) most = std::min(most, fixed);
  const auto none = std::find(prefix.begin(), prefix.end(), Json(false));  // no item can be there, nor after it
  most = std::min<uint32_t>(most, none == prefix.end() ? most : static_cast<uint32_t>(none - prefix.begin()));
  if (most < least) refuse_schema(path, "maxItems is less than minItems");
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
  for (const Json& name : schema.value("required", Json::array())) required.insert(name.get<std::string>());
  const Json properties = schema.value("properties", Json::object());
  const Json others = schema.value("additionalProperties", Json(properties.empty()));
  for (const auto& [name, property] : properties.items()) {
    if (property == false) {
      if (required.contains(name)) refuse_schema(path, name + " is required but may not be there");
      continue;
    }
    members.push_back({name, rule(property, path + "/properties/" + name), required.contains(name)});
    required.erase(name);
  }
  for (const std::string& name : required) {  // required but not described: any value
    if (others == false && schema.contains("additionalProperties")) {
      refuse_schema(path, name + " is required, but additionalProperties forbids it");
    }
    members.push_back({name, others.is_object() ? rule(others, path + "/additionalProperties") : any_value(), true});
  }
  if (members.size() > kNamesMax) refuse_schema(path, "has too many properties");
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
        refuse_schema(path, "the property name '" + member.name + "' cannot be written in a tool call");
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
  enumerated(Json::array({true, false, nullptr}), Json::object(), "", end, choices);
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
