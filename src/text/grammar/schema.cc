#include "text/grammar/schema.h"

#include <algorithm>

#include "base/check.h"
#include "base/exact_json.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kSchemaDepthMax = 100;
// Steps of a new rule and of each schema that holds in it: some forty keywords are looked up, about 2 us and 1 us.
constexpr uint64_t kRuleSteps = 200, kPartSteps = 100;

// The values that a property must have in an alternative of oneOf, as texts; empty: any.
std::vector<std::string> fixed_values(const Json& property, WorkBudget& budget) {
  std::vector<std::string> texts;
  if (!property.is_object()) return texts;
  if (property.contains("const")) texts.push_back(canonical_text(property["const"], budget));
  if (property.contains("enum")) {
    for (const Json& one : property["enum"]) texts.push_back(canonical_text(one, budget));
  }
  return texts;
}

}  // namespace

SchemaGrammar::SchemaGrammar(PushdownAutomaton& automaton, Syntax spelling, const Json& root)
    : a_(automaton), text_(automaton, spelling), syntax_(spelling), build_(root, automaton.budget()) {
  check_kinds(root, "#", automaton.budget());
  check_cycles(root, build_.references(), automaton.budget());
}

int SchemaGrammar::rule(const Json& schema, const std::string& path) {
  Conjunction all;
  build_.add(all, schema, path);
  return rule(all, path);
}

int SchemaGrammar::rule(const Conjunction& all, const std::string& path) {
  if (all.parts.empty() && !all.never) return any_value();
  std::vector<int32_t> key = {all.never};
  for (const Conjunction::Part& part : all.parts) key.push_back(part.id << 8 | part.expanded);
  std::sort(key.begin() + 1, key.end());
  a_.budget().charge(20 + key.size() + path.size() / 8);
  const auto [found, is_new] = rules_.try_emplace(std::move(key), -1);
  if (!is_new) return found->second;
  a_.budget().charge(kRuleSteps + kPartSteps * all.parts.size());
  if (++depth_ > kSchemaDepthMax) cannot_enforce(path, "is nested too deep");
  const int rule = found->second = a_.new_rule();
  Nodes choices;
  alternatives(all, path, a_.finish(), choices);
  if (choices.empty()) choices.push_back(empty(path, "allows no value"));
  a_.set_rule(rule, a_.split(std::move(choices)));
  constexpr size_t kPathMax = 400;
  made_.emplace_back(rule, path.substr(0, kPathMax));
  --depth_;
  return rule;
}

// Of the rules without end, the first that was complete is part of itself: what it needs was being made.
std::string SchemaGrammar::why_endless(const EndlessGrammar& error) const {
  if (!reason_.empty()) return reason_;
  const auto inner = std::find_if(made_.begin(), made_.end(), [&](const auto& one) {
    return std::binary_search(error.rules.begin(), error.rules.end(), one.first);
  });
  return "schema " + (inner == made_.end() ? "#" : inner->second) +
         ": allows no value that comes to an end (it refers to itself without end)";
}

int SchemaGrammar::empty(const std::string& path, const std::string& why) {
  if (reason_.empty()) reason_ = "schema " + path + ": " + why;
  return a_.nothing();
}

void SchemaGrammar::note(const std::string& keyword, const std::string& path, bool checked, const std::string& why) {
  SchemaNote& known = notes_.try_emplace(keyword, SchemaNote{keyword, path, checked, why}).first->second;
  if (known.checked && !checked) known = {keyword, path, checked, why};  // the one that is worse
}

std::vector<SchemaNote> SchemaGrammar::notes() const {
  std::vector<SchemaNote> all;
  for (const auto& [keyword, note] : notes_) all.push_back(note);
  return all;
}

void SchemaGrammar::alternatives(Conjunction all, const std::string& path, int next, Nodes& out) {
  if (all.never) return;
  bool nullable = false;
  for (Conjunction::Part& part : all.parts) {
    const auto found = part.schema->find("nullable");
    nullable |= found != part.schema->end() && *found == true && !(part.expanded & Conjunction::kNullable);
    part.expanded |= Conjunction::kNullable;
  }
  if (nullable && build_.holds(nullptr, all)) enumerated({nullptr}, next, out);
  if (all.has("enum") || all.has("const")) {
    return enumerated(*build_.finite(all), next, out);
  }
  if (expand(all, path, next, out)) return;
  unsigned types = kAnyType, implied = 0;
  for (const Conjunction::Part& part : all.parts) implied |= implied_types(*part.schema);
  if (all.has("type")) {
    all.each("type", [&](const Json& type) { types &= type_bits(type); });
  } else if (implied != 0) {
    types = implied;
  }
  const Exclusions no = excluded(all, path);
  if (no.all) return;
  types &= ~no.types;
  for (const char* keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
    if (all.has(keyword) && types & kObjectType) note(keyword, path);
  }
  for (const char* keyword : {"contains", "minContains", "maxContains"}) {
    if (all.has(keyword) && types & kArrayType) note(keyword, path);
  }
  if (all.has("unevaluatedItems") && types & kArrayType && !closes_items(all)) note("unevaluatedItems", path);
  if (types == kAnyType && implied == 0 && no.strings.empty() && no.patterns.empty()) {
    out.push_back(a_.call(any_value(), next));
  } else {
    typed(all, types, no, path, next, out);
  }
}

// One alternative: a rule for all that holds with `schema`.
void SchemaGrammar::branch(const Conjunction& all, const Json& schema, const std::string& at, int next, Nodes& out) {
  Conjunction both = all;
  a_.budget().charge(10 + all.parts.size() + at.size() / 8);
  build_.add(both, schema, at);
  if (!both.never) out.push_back(a_.call(rule(both, at), next));
}

// anyOf, oneOf or if: the keywords beside it apply to every alternative. True where there was one.
bool SchemaGrammar::expand(const Conjunction& all, const std::string& path, int next, Nodes& out) {
  for (size_t i = 0; i < all.parts.size(); ++i) {
    const Conjunction::Part part = all.parts[i];
    Conjunction rest = all;
    for (const auto& [keyword, bit] :
         {std::pair("anyOf", Conjunction::kAnyOf), std::pair("oneOf", Conjunction::kOneOf)}) {
      const auto list = part.schema->find(keyword);
      if (list == part.schema->end() || part.expanded & bit) continue;
      rest.parts[i].expanded |= bit;
      if (bit == Conjunction::kOneOf && !are_disjoint(*list)) note("oneOf", path);
      int n = 0;
      for (const Json& choice : *list)
        branch(rest, choice, path + "/" + keyword + "/" + std::to_string(n++), next, out);
      return true;
    }
    const auto condition = part.schema->find("if");
    if (condition == part.schema->end() || part.expanded & Conjunction::kIf) continue;
    rest.parts[i].expanded |= Conjunction::kIf;
    note("if", path);
    const auto then = part.schema->find("then"), otherwise = part.schema->find("else");
    Conjunction met = rest;
    build_.add(met, *condition, path + "/if");
    branch(met, then == part.schema->end() ? Json(true) : *then, path + "/then", next, out);
    branch(rest, otherwise == part.schema->end() ? Json(true) : *otherwise, path + "/else", next, out);
    return true;
  }
  return false;
}

// Whether no value can be two of them: their types differ, or a property that each requires has other values in each.
bool SchemaGrammar::are_disjoint(const Json& list) {
  unsigned types = 0;
  bool by_type = true;
  std::map<std::string, std::set<std::string>> values;  // of properties that could tell them apart
  std::map<std::string, size_t> alternatives_with;
  for (const Json& one : list) {
    Conjunction all;
    build_.add(all, one, "#");
    unsigned mine = all.has("type") ? unsigned{kAnyType} : 0u;
    all.each("type", [&](const Json& type) { mine &= type_bits(type); });
    by_type &= mine != 0 && !(types & mine);
    types |= mine;
    std::set<std::string> required;
    all.each("required", [&](const Json& names) {
      for (const Json& name : names) required.insert(name.get<std::string>());
    });
    all.each("properties", [&](const Json& properties) {
      for (const auto& [name, property] : properties.items()) {
        if (!required.contains(name)) continue;
        const std::vector<std::string> mine_of_name = fixed_values(property, a_.budget());
        auto& taken = values[name];
        const bool are_new = std::all_of(mine_of_name.begin(), mine_of_name.end(),
                                         [&](const std::string& value) { return taken.insert(value).second; });
        if (!mine_of_name.empty() && are_new) ++alternatives_with[name];
      }
    });
  }
  return by_type || std::any_of(alternatives_with.begin(), alternatives_with.end(),
                                [&](const auto& property) { return property.second == list.size(); });
}

void SchemaGrammar::typed(const Conjunction& all, unsigned types, const Exclusions& no, const std::string& path,
                          int next, Nodes& out) {
  if (types & kObjectType) {
    const bool plain =
        no.names.empty() && std::none_of(all.parts.begin(), all.parts.end(), [](const Conjunction::Part& part) {
          return implied_types(*part.schema) & kObjectType;
        });
    out.push_back(plain ? a_.call(any_object(), next) : object(all, no, path, next));
  }
  if (types & kArrayType) out.push_back(array(all, path, next));
  if (types & kStringType) out.push_back(string(string_rules(all, no), path, next));
  if (types & kBooleanType) enumerated({true, false}, next, out);
  if (types & kNullType) enumerated({nullptr}, next, out);
  if (types & kNumberType) numbers(all, !(types & kFractionType), path, next, out);
}

// What `not` says, where it is of a kind that the rules can keep. False: it is not.
bool SchemaGrammar::exclude(const Json& schema, Exclusions& no) {
  if (schema == false) return true;
  std::set<std::string> keywords;
  if (schema.is_object()) {
    for (const auto& [keyword, value] : schema.items()) {
      if (restricts(keyword)) keywords.insert(keyword);
    }
  }
  if (keywords.empty()) return no.all = true;  // not anything
  const bool of_strings = keywords.erase("type") > 0 && keywords.size() == 1 && schema["type"] == "string";
  if (keywords.empty()) {
    const unsigned types = type_bits(schema["type"]);
    no.types |= types;
    return (types & kNumberType) == kNumberType || !(types & kNumberType);
  }
  if (keywords.size() > 1) return false;
  const std::string& keyword = *keywords.begin();
  const bool typed = schema.contains("type");
  if (keyword == "required" && schema["required"].size() == 1 && !typed) {
    no.names.insert(schema["required"][0].get<std::string>());
    no.types |= kAnyType & ~kObjectType;
    return true;
  }
  if (keyword == "pattern" && (of_strings || !typed)) {
    no.patterns.push_back(schema["pattern"].get<std::string>());
    if (!typed) no.types |= kAnyType & ~kStringType;
    return true;
  }
  if ((keyword != "const" && keyword != "enum") || typed) return false;
  bool kept = true;
  for (const Json& value : keyword == "enum" ? schema["enum"] : Json::array({schema["const"]})) {
    if (value.is_string()) {
      no.strings.push_back(value.get<std::string>());
    } else if (value.is_null()) {
      no.types |= kNullType;
    } else {
      kept = false;
    }
  }
  return kept;
}

SchemaGrammar::Exclusions SchemaGrammar::excluded(const Conjunction& all, const std::string& path) {
  Exclusions no;
  all.each("not", [&](const Json& schema) {
    Exclusions these = no;
    if (schema.is_object() && schema.contains("anyOf") &&
        std::all_of(schema["anyOf"].begin(), schema["anyOf"].end(),
                    [&](const Json& one) { return exclude(one, these); })) {
      no = these;  // not (a or b): neither
    } else if (exclude(schema, these)) {
      no = these;
    } else {
      note("not", path);
    }
  });
  return no;
}

// The values in their compact form.
void SchemaGrammar::enumerated(const std::vector<Json>& values, int next, Nodes& out) {
  std::vector<std::vector<int>> sequences;
  for (const Json& value : values) {
    sequences.emplace_back();
    spell_value(value, sequences.back());
    a_.budget().charge(10 + sequences.back().size());
    if (value.is_null() && syntax_ == Syntax::kGemma) {  // as the prompt template writes a null
      sequences.push_back({'N', 'o', 'n', 'e'});
    }
  }
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

int SchemaGrammar::any_value() {
  if (any_value_ >= 0) return any_value_;
  any_value_ = a_.new_rule();
  const int end = a_.finish();
  Nodes choices = {text_.string(0, kUnbounded, end), text_.number(false, end), a_.call(any_object(), end)};
  enumerated({true, false, nullptr}, end, choices);
  choices.push_back(array({}, "", end));
  a_.set_rule(any_value_, a_.split(std::move(choices)));
  return any_value_;
}

int SchemaGrammar::any_object() {
  if (any_object_ >= 0) return any_object_;
  any_object_ = a_.new_rule();
  FreeMembers any;
  any.value_rule = any_value();
  const int list = member_list({}, {any}, 0, kNoLimit, "", a_.byte('}', a_.finish()));
  a_.set_rule(any_object_, a_.byte('{', text_.space(list)));
  return any_object_;
}

}  // namespace gemma4
