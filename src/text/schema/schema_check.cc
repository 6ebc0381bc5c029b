#include "text/schema/schema_check.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "base/check.h"
#include "base/exact_json.h"
#include "text/schema/formats.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kCheckDepthMax = 1200;   // schemas and values within one another
constexpr int kAnswerDepthMax = 1000;  // arrays and objects in one another
constexpr uint64_t kCheckSteps = 20;

bool broken(std::vector<std::string>* report, const std::string& at, const std::string& keyword) {
  if (report != nullptr && report->size() < SchemaCheck::kViolationsMax) {
    report->push_back((at.empty() ? "the whole value" : at) + ": " + keyword);
  }
  return false;
}

long double as_real(const Json& value) {
  if (value.is_number_float()) return value.get<double>();
  return std::strtold(dump_exact_json(value).c_str(), nullptr);
}

const Json* find(const Json& schema, const auto& keyword) {
  const auto found = schema.find(keyword);
  return found == schema.end() ? nullptr : &*found;
}

std::string member_of(const std::string& at, const std::string& name) { return at.empty() ? name : at + "." + name; }

// A decimal number: digits times a power of ten.
struct Scaled {
  std::string digits;
  int exponent = 0;
};

Scaled scaled(std::string text) {
  Scaled result;
  const size_t e = text.find_first_of("eE");
  if (e != std::string::npos) result.exponent = std::atoi(text.c_str() + e + 1);
  text = text.substr(0, e);
  const size_t point = text.find('.');
  if (point != std::string::npos) {
    result.exponent -= static_cast<int>(text.size() - point - 1);
    text.erase(point, 1);
  }
  for (const char c : text) {
    if (c >= '0' && c <= '9') result.digits += c;
  }
  while (result.digits.size() > 1 && result.digits.back() == '0') result.digits.pop_back(), ++result.exponent;
  return result;
}

}  // namespace

std::string canonical_text(const Json& value, WorkBudget& budget) {
  budget.charge(kCheckSteps);
  if (value.is_object()) {
    std::vector<std::string> members;
    for (const auto& [name, member] : value.items()) {
      members.push_back(dump_exact_json(name) + ":" + canonical_text(member, budget));
    }
    std::sort(members.begin(), members.end());
    std::string text = "{";
    for (const std::string& member : members) text += member + ",";
    budget.charge(text.size() / 4);
    return text + "}";
  }
  if (value.is_array()) {
    std::string text = "[";
    for (const Json& item : value) text += canonical_text(item, budget) + ",";
    budget.charge(text.size() / 4);
    return text + "]";
  }
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::floor(number) == number && std::abs(number) < 9e15) return std::to_string(static_cast<int64_t>(number));
  }
  std::string text = dump_exact_json(value);
  budget.charge(text.size() / 4);
  return text;
}

static bool is_multiple(const Scaled& number, Scaled unit) {
  if (number.digits == "0") return true;
  constexpr size_t kUnitDigitsMax = 18;
  constexpr int kShiftMax = 1000;
  if (unit.digits.size() > kUnitDigitsMax) return true;  // not told
  // Both in steps of the smaller power of ten.
  while (number.exponent < unit.exponent && unit.digits.size() < kUnitDigitsMax) unit.digits += '0', --unit.exponent;
  if (number.exponent < unit.exponent) return false;
  const uint64_t divisor = std::strtoull(unit.digits.c_str(), nullptr, 10);
  const int shift = number.exponent - unit.exponent;
  if (shift > kShiftMax) return true;
  unsigned __int128 rest = 0;
  for (const char c : number.digits) rest = (rest * 10 + static_cast<unsigned>(c - '0')) % divisor;
  for (int i = 0; i < shift; ++i) rest = rest * 10 % divisor;
  return rest == 0;
}

bool is_multiple(const Json& value, const Json& of) {
  const Scaled unit = scaled(dump_exact_json(of));
  if (is_multiple(scaled(dump_exact_json(value)), unit)) return true;
  if (!value.is_number_float()) return false;
  char exact[400];  // the shortest text of a number is not all of its digits: 2251799813685248.25 is written ...248.2
  std::snprintf(exact, sizeof(exact), "%.40f", value.get<double>());
  return is_multiple(scaled(exact), unit);
}

std::vector<std::string> SchemaCheck::violations(const Json& value, const Json& schema) {
  Report report;
  run(value, schema, &report, "");
  return report;
}

bool SchemaCheck::run(const Json& value, const Json& schema, Report* report, const std::string& at) {
  if (schema.is_boolean()) return schema == true || broken(report, at, "nothing is allowed here");
  if (!schema.is_object()) return true;
  budget_.charge(kCheckSteps + at.size() / 8);
  if (depth_ >= kCheckDepthMax) throw BudgetError("the answer is nested too deep to be checked against its schema");
  ++depth_;
  const bool result = check(value, schema, report, at);
  --depth_;
  return result;
}

bool SchemaCheck::check(const Json& value, const Json& schema, Report* report, const std::string& at) {
  if (value.is_null() && schema.contains("nullable") && schema["nullable"] == true) return true;
  bool good = true;
  const auto fails = [&](const char* keyword) { good = broken(report, at, keyword); };
  const unsigned type = type_of(value);
  if (const Json* types = find(schema, "type"); types != nullptr && !(type_bits(*types) & type)) fails("type");
  const std::string text = schema.contains("const") || schema.contains("enum") ? canonical_text(value, budget_) : "";
  if (const Json* one = find(schema, "const"); one != nullptr && canonical_text(*one, budget_) != text) fails("const");
  if (const Json* all = find(schema, "enum")) {
    const auto [known, is_new] = enums_.try_emplace(all);
    if (is_new) {
      for (const Json& one : *all) known->second.insert(canonical_text(one, budget_));
    }
    if (!known->second.contains(text)) fails("enum");
  }
  good &= combined(value, schema, report, at);
  if (value.is_object()) good &= object(value, schema, report, at);
  if (value.is_array()) good &= array(value, schema, report, at);
  if (value.is_string()) good &= string(value.get_ref<const std::string&>(), schema, report, at);
  if (is_number(value)) good &= number(value, schema, report, at);
  return good;
}

// A schema that is one of its own alternatives for the same value adds nothing to them (check_cycles() refuses what
// else refers to itself).
bool SchemaCheck::follow(const Json& value, const Json& target, Report* report, const std::string& at) {
  const auto [one, is_new] = open_.emplace(&value, &target);
  if (!is_new) return broken(report, at, "$ref");
  const bool good = run(value, target, report, at);
  open_.erase(one);
  return good;
}

bool SchemaCheck::combined(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  if (const Json* target = find(schema, "$ref")) good &= follow(value, references_.resolve(*target, "#"), report, at);
  if (const Json* all = find(schema, "allOf")) {
    for (const Json& one : *all) good &= run(value, one, report, at);
  }
  const auto holds_of = [&](const Json& list) {
    return std::count_if(list.begin(), list.end(), [&](const Json& one) { return holds(value, one); });
  };
  if (const Json* any = find(schema, "anyOf"); any != nullptr && holds_of(*any) == 0)
    good = broken(report, at, "anyOf");
  if (const Json* one = find(schema, "oneOf"); one != nullptr && holds_of(*one) != 1)
    good = broken(report, at, "oneOf");
  if (const Json* no = find(schema, "not"); no != nullptr && holds(value, *no)) good = broken(report, at, "not");
  return good & conditional(value, schema, report, at);
}

bool SchemaCheck::conditional(const Json& value, const Json& schema, Report* report, const std::string& at) {
  const Json* condition = find(schema, "if");
  if (condition == nullptr) return true;
  const Json* branch = find(schema, holds(value, *condition) ? "then" : "else");
  return branch == nullptr || run(value, *branch, report, at);
}

bool SchemaCheck::object(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  if (value.size() < count_of(schema, "minProperties", 0)) good = broken(report, at, "minProperties");
  if (value.size() > count_of(schema, "maxProperties", kNoLimit)) good = broken(report, at, "maxProperties");
  if (const Json* required = find(schema, "required")) {
    for (const Json& name : *required) {
      budget_.charge(5);
      if (!value.contains(name.get_ref<const std::string&>())) good = broken(report, at, "required");
    }
  }
  if (const Json* names = find(schema, "propertyNames")) {
    for (const auto& [name, member] : value.items()) {
      if (!holds(Json(name), *names)) good = broken(report, member_of(at, name), "propertyNames");
    }
  }
  good &= members(value, schema, report, at);
  good &= dependent(value, schema, report, at);
  if (const Json* others = find(schema, "unevaluatedProperties")) {
    std::set<std::string> known;
    add_evaluated(value, schema, known);
    for (const auto& [name, member] : value.items()) {
      if (!known.contains(name) && !holds(member, *others)) {
        good = broken(report, member_of(at, name), "unevaluatedProperties");
      }
    }
  }
  return good;
}

bool SchemaCheck::members(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  const Json *properties = find(schema, "properties"), *patterns = find(schema, "patternProperties"),
             *others = find(schema, "additionalProperties");
  if (properties == nullptr && patterns == nullptr && others == nullptr) return true;
  for (const auto& [name, member] : value.items()) {
    const std::string path = report == nullptr ? "" : member_of(at, name);
    bool known = false;
    if (const Json* property = properties == nullptr ? nullptr : find(*properties, name)) {
      known = true;
      good &= run(member, *property, report, path);
    }
    if (patterns != nullptr) {
      for (const auto& [pattern, one] : patterns->items()) {
        if (!matches(name, pattern)) continue;
        known = true;
        good &= run(member, one, report, path);
      }
    }
    if (!known && others != nullptr) {
      good &= *others == false ? broken(report, path, "additionalProperties") : run(member, *others, report, path);
    }
  }
  return good;
}

bool SchemaCheck::dependent(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  for (const char* keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
    const Json* all = find(schema, keyword);
    if (all == nullptr) continue;
    for (const auto& [name, needed] : all->items()) {
      if (!value.contains(name)) continue;
      if (!needed.is_array()) {
        good &= run(value, needed, report, at);
      } else if (!std::all_of(needed.begin(), needed.end(),
                              [&](const Json& one) { return value.contains(one.get_ref<const std::string&>()); })) {
        good = broken(report, at, keyword);
      }
    }
  }
  return good;
}

// The members that the schema says something of.
void SchemaCheck::add_evaluated(const Json& value, const Json& schema, std::set<std::string>& names) {
  if (!schema.is_object()) return;
  budget_.charge(kCheckSteps);
  if (depth_ >= kCheckDepthMax) throw BudgetError("the answer is nested too deep to be checked against its schema");
  ++depth_;
  const Json *properties = find(schema, "properties"), *patterns = find(schema, "patternProperties");
  for (const auto& [name, member] : value.items()) {
    bool known = schema.contains("additionalProperties");
    known |= properties != nullptr && properties->contains(name);
    if (patterns != nullptr) {
      for (const auto& [pattern, one] : patterns->items()) known |= matches(name, pattern);
    }
    if (known) names.insert(name);
  }
  each_applied(value, schema, [&](const Json& one) {
    add_evaluated(value, one, names);
    if (!one.is_object() || !one.contains("unevaluatedProperties")) return;
    for (const auto& [name, member] : value.items()) names.insert(name);
  });
  --depth_;
}

bool SchemaCheck::array(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  if (value.size() < count_of(schema, "minItems", 0)) good = broken(report, at, "minItems");
  if (value.size() > count_of(schema, "maxItems", kNoLimit)) good = broken(report, at, "maxItems");
  if (schema.contains("uniqueItems") && schema["uniqueItems"] == true) {
    std::set<std::string> seen;
    for (const Json& item : value) {
      if (seen.insert(canonical_text(item, budget_)).second) continue;
      good = broken(report, at, "uniqueItems");
      break;
    }
  }
  if (const Json* wanted = find(schema, "contains")) {
    const auto is_it = [&](const Json& item) { return holds(item, *wanted); };
    const auto count = static_cast<size_t>(std::count_if(value.begin(), value.end(), is_it));
    if (count < count_of(schema, "minContains", 1)) good = broken(report, at, "contains");
    if (count > count_of(schema, "maxContains", kNoLimit)) good = broken(report, at, "maxContains");
  }
  good &= items(value, schema, report, at);
  if (const Json* others = find(schema, "unevaluatedItems")) {
    std::vector<bool> known(value.size());
    add_evaluated_items(value, schema, known);
    for (size_t i = 0; i < value.size(); ++i) {
      if (known[i] || holds(value[i], *others)) continue;
      good = broken(report, at + "[" + std::to_string(i) + "]", "unevaluatedItems");
    }
  }
  return good;
}

// The items that the schema says something of, but for its own unevaluatedItems (2020-12, 11.2).
void SchemaCheck::add_evaluated_items(const Json& value, const Json& schema, std::vector<bool>& known) {
  if (!schema.is_object()) return;
  budget_.charge(kCheckSteps + value.size());
  if (depth_ >= kCheckDepthMax) throw BudgetError("the answer is nested too deep to be checked against its schema");
  ++depth_;
  const Json *prefix = find(schema, "prefixItems"), *rest = find(schema, "items");
  if (prefix == nullptr && rest != nullptr && rest->is_array()) prefix = rest, rest = find(schema, "additionalItems");
  const size_t fixed = prefix == nullptr ? 0 : prefix->size();
  const Json* wanted = find(schema, "contains");
  for (size_t i = 0; i < value.size(); ++i) {
    if (i < fixed || rest != nullptr || (wanted != nullptr && holds(value[i], *wanted))) known[i] = true;
  }
  const auto add = [&](const Json& one) {
    add_evaluated_items(value, one, known);
    if (one.is_object() && one.contains("unevaluatedItems")) known.assign(known.size(), true);
  };
  each_applied(value, schema, add);
  --depth_;
}

// Calls `use` with each schema within this one that holds for the same value.
template <typename Use>
void SchemaCheck::each_applied(const Json& value, const Json& schema, const Use& use) {
  if (const Json* target = find(schema, "$ref")) {
    const Json& resolved = references_.resolve(*target, "#");
    const auto [one, is_new] = open_.emplace(&value, &resolved);
    if (is_new) {
      use(resolved);
      open_.erase(one);
    }
  }
  for (const char* keyword : {"allOf", "anyOf", "oneOf"}) {
    const Json* list = find(schema, keyword);
    if (list == nullptr) continue;
    for (const Json& one : *list) {
      if (holds(value, one)) use(one);
    }
  }
  if (const Json* condition = find(schema, "if")) {
    const bool met = holds(value, *condition);
    if (met) use(*condition);
    if (const Json* branch = find(schema, met ? "then" : "else")) use(*branch);
  }
  const Json* dependent = value.is_object() ? find(schema, "dependentSchemas") : nullptr;
  if (dependent == nullptr) return;
  for (const auto& [name, one] : dependent->items()) {
    if (value.contains(name)) use(one);
  }
}

bool SchemaCheck::items(const Json& value, const Json& schema, Report* report, const std::string& at) {
  const Json *prefix = find(schema, "prefixItems"), *rest = find(schema, "items");
  if (prefix == nullptr && rest != nullptr && rest->is_array()) prefix = rest, rest = find(schema, "additionalItems");
  bool good = true;
  for (size_t i = 0; i < value.size(); ++i) {
    const bool fixed = prefix != nullptr && prefix->is_array() && i < prefix->size();
    const Json* one = fixed ? &(*prefix)[i] : rest;
    if (one == nullptr) continue;
    const std::string path = report == nullptr ? "" : at + "[" + std::to_string(i) + "]";
    good &= *one == false ? broken(report, path, "items") : run(value[i], *one, report, path);
  }
  return good;
}

SchemaCheck::Pattern& SchemaCheck::compiled(const std::string& pattern) {
  std::unique_ptr<Pattern>& entry = patterns_[pattern];
  if (entry != nullptr) return *entry;
  auto made = std::make_unique<Pattern>();
  try {
    made->regex = parse_regex(pattern, "schema", budget_);
    made->set = StringSet::make({{&made->regex}, {}}, budget_);
  } catch (const UnsupportedRegex&) {
    made->set = nullptr;
  }
  if (made->set == nullptr) {
    try {
      made->matcher = std::make_unique<BacktrackingMatcher>(parse_whole_regex(pattern, "schema", budget_), budget_);
    } catch (const UnsupportedRegex&) {
      made->matcher = nullptr;
    }
  }
  entry = std::move(made);
  return *entry;
}

bool SchemaCheck::matches(const std::string& text, const std::string& pattern) {
  Pattern& known = compiled(pattern);
  if (known.set != nullptr) return known.set->contains(text);
  return known.matcher == nullptr || known.matcher->found_in(text);
}

bool SchemaCheck::string(const std::string& text, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  if (schema.contains("minLength") || schema.contains("maxLength")) {
    budget_.charge(text.size() / 8);
    const auto begins = [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; };
    const auto length = static_cast<size_t>(std::count_if(text.begin(), text.end(), begins));
    if (length < count_of(schema, "minLength", 0)) good = broken(report, at, "minLength");
    if (length > count_of(schema, "maxLength", kNoLimit)) good = broken(report, at, "maxLength");
  }
  if (const Json* pattern = find(schema, "pattern"); pattern != nullptr && !matches(text, *pattern)) {
    good = broken(report, at, "pattern");
  }
  if (const Json* format = find(schema, "format")) {
    const std::string* pattern = format_pattern(*format, FormatUse::kCheck);
    if (pattern != nullptr && !matches(text, *pattern)) good = broken(report, at, "format");
  }
  return good;
}

bool SchemaCheck::number(const Json& value, const Json& schema, Report* report, const std::string& at) {
  bool good = true;
  const auto is_true = [&](const char* keyword) { return schema.contains(keyword) && schema[keyword] == true; };
  const auto check_bound = [&](const char* keyword, const auto& keeps) {
    const Json* bound = find(schema, keyword);
    if (bound != nullptr && is_number(*bound) && !keeps(as_real(value), as_real(*bound))) {
      good = broken(report, at, keyword);
    }
  };
  using Real = long double;
  // In draft 4 the exclusive ones are booleans, which make the others exclusive.
  const bool above = is_true("exclusiveMinimum"), below = is_true("exclusiveMaximum");
  check_bound("minimum", [&](Real a, Real b) { return above ? a > b : a >= b; });
  check_bound("maximum", [&](Real a, Real b) { return below ? a < b : a <= b; });
  check_bound("exclusiveMinimum", [](Real a, Real b) { return a > b; });
  check_bound("exclusiveMaximum", [](Real a, Real b) { return a < b; });
  if (const Json* of = find(schema, "multipleOf"); of != nullptr && !is_multiple(value, *of)) {
    good = broken(report, at, "multipleOf");
  }
  return good;
}

std::vector<std::string> check_arguments(std::string_view arguments, const Json& parameters, const std::string& tool,
                                         WorkBudget& budget) {
  std::vector<std::string> sentences;
  try {
    const Json value = parse_exact_json(arguments, kAnswerDepthMax);
    check_kinds(parameters, "#", budget);
    for (const std::string& one : SchemaCheck(parameters, budget).violations(value, parameters)) {
      sentences.push_back("the arguments of '" + tool + "' break their schema at " + one);
    }
  } catch (const nlohmann::json::exception&) {
    sentences = {"the arguments of '" + tool + "' are not JSON"};
  } catch (const UnenforceableSchema&) {
    sentences.clear();
  }
  return sentences;
}

std::vector<std::string> check_json(std::string_view text, std::string_view schema, WorkBudget& budget) {
  Json root, value;
  try {
    root = parse_exact_json(schema, kAnswerDepthMax);
    value = parse_exact_json(text, kAnswerDepthMax);
  } catch (const nlohmann::json::exception&) {
    return {"the answer is not JSON"};
  }
  check_kinds(root, "#", budget);
  std::vector<std::string> sentences;
  for (const std::string& one : SchemaCheck(root, budget).violations(value, root)) {
    sentences.push_back("the answer breaks its schema at " + one);
  }
  return sentences;
}

}  // namespace gemma4
