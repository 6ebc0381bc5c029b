// Numbers, strings and arrays of a schema.
#include <algorithm>
#include <charconv>
#include <numeric>

#include "base/check.h"
#include "base/exact_json.h"
#include "base/utf8.h"
#include "text/grammar/schema.h"
#include "text/schema/formats.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kUnitMax = 1000;  // of multipleOf: larger ones make too many nodes
constexpr size_t kPatternStatesMax = 2000;
constexpr size_t kDistinctMax = 6;      // values of an enum whose subsets are the nodes of a list without repeats
constexpr size_t kBoundDigitsMax = 18;  // digits before the point that a number has

std::string decimal(const Json& value) {
  if (!value.is_number_float()) return dump_exact_json(value);
  char buffer[400];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value.get<double>(), std::chars_format::fixed).ptr;
  return {buffer, end};
}

// One bound of those of all parts: the one that excludes most.
struct OneBound {
  std::optional<std::string> text;
  bool excluded = false;
  long double value = 0;

  void take(const Json& bound, bool excludes, bool is_lower) {
    std::string digits = decimal(bound);
    const long double other = std::strtold(digits.c_str(), nullptr);
    if (text && (is_lower ? other < value : other > value)) return;
    excluded = excludes || (excluded && text && other == value);
    text = std::move(digits);
    value = other;
  }
};

bool is_long(const std::string& bound) {
  const std::string_view digits = std::string_view(bound).substr(bound.starts_with('-'));
  return std::min(digits.find('.'), digits.size()) > kBoundDigitsMax;
}

Regex without_conditions(const Regex& regex) {
  if (regex.type == Regex::kLookahead || regex.type == Regex::kWordBoundary) return {Regex::kSequence};
  Regex plain = regex;
  for (Regex& operand : plain.operands) operand = without_conditions(operand);
  return plain;
}

// A lookahead at the beginning that only bounds the length: ^(?=.{1,253}$).
bool take_length(Regex& regex, uint32_t& least, uint32_t& most) {
  Regex* at = &regex;
  while (at->type == Regex::kChoice && at->operands.size() == 1) at = &at->operands[0];
  if (at->type != Regex::kSequence || at->operands.size() < 2 || at->operands[0].type != Regex::kBegin) return false;
  Regex& look = at->operands[1];
  if (look.type != Regex::kLookahead || look.negative || look.operands[0].operands.size() != 1) return false;
  Regex& inner = look.operands[0].operands[0];
  if (inner.type != Regex::kSequence || inner.operands.size() != 2 || inner.operands[1].type != Regex::kEnd)
    return false;
  Regex& repeat = inner.operands[0];
  if (repeat.type != Regex::kRepeat || repeat.operands[0].type != Regex::kCharacters) return false;
  least = std::max(least, repeat.least);
  most = std::min(most, repeat.most);
  repeat.least = 0;
  repeat.most = kNoLimit;  // what is left says which characters there are
  return true;
}

// A character class that repeats, and nothing else.
const Regex* only_repeat(const Regex& whole) {
  const Regex* at = &whole;
  while ((at->type == Regex::kChoice || at->type == Regex::kSequence) && at->operands.size() == 1) {
    at = &at->operands[0];
  }
  return at->type == Regex::kRepeat && at->operands[0].type == Regex::kCharacters ? at : nullptr;
}

// The strings that are one of these.
Regex any_of(const std::vector<std::string>& texts) {
  Regex all{Regex::kChoice};
  for (const std::string& text : texts) {
    Regex one{Regex::kSequence};
    for (size_t at = 0; at < text.size();) {
      const std::string_view rest = std::string_view(text).substr(at);
      Regex character{Regex::kCharacters};
      const uint32_t point = utf8_point(rest);
      character.ranges = {{point, point}};
      one.operands.push_back(std::move(character));
      at += std::max<size_t>(utf8_length(rest), 1);
    }
    all.operands.push_back(std::move(one));
  }
  return {Regex::kSequence, {}, {{Regex::kBegin}, std::move(all), {Regex::kEnd}}};
}

}  // namespace

void SchemaGrammar::numbers(const Conjunction& all, bool integer, const std::string& path, int next, Nodes& out) {
  OneBound least, most;
  const auto take = [&](const char* keyword, const char* exclusive, OneBound& bound, bool is_lower) {
    for (const Conjunction::Part& part : all.parts) {
      const auto plain = part.schema->find(keyword), other = part.schema->find(exclusive);
      const bool draft4 = other != part.schema->end() && *other == true;  // makes the other one exclusive
      if (plain != part.schema->end()) bound.take(*plain, draft4, is_lower);
      if (other != part.schema->end() && is_number(*other)) bound.take(*other, true, is_lower);
    }
  };
  take("minimum", "exclusiveMinimum", least, true);
  take("maximum", "exclusiveMaximum", most, false);
  // Bounds beyond the digits that a number has: it has no exponent then, so it is within them.
  const std::string longest(kBoundDigitsMax, '9');
  if (least.text && is_long(*least.text) && least.value < 0) least.text = "-" + longest;
  if (most.text && is_long(*most.text) && most.value > 0) most.text = longest;
  LexicalGrammar::Bounds bounds{least.text, most.text, least.excluded, most.excluded};
  if (all.has("multipleOf")) unit(all, bounds, path);
  const int node = text_.number(integer, bounds, next);
  out.push_back(node >= 0 ? node : empty(path, "minimum and maximum leave no number, so it allows no value"));
}

// multipleOf as a unit of the digits: of several, their least common multiple.
void SchemaGrammar::unit(const Conjunction& all, LexicalGrammar::Bounds& bounds, const std::string& path) {
  all.each("multipleOf", [&](const Json& value) {
    std::string text = decimal(value);
    const size_t point = text.find('.');
    uint32_t digits = 0;
    if (point != std::string::npos) {
      while (text.ends_with('0')) text.pop_back();
      digits = static_cast<uint32_t>(text.size() - point - 1);
      text.erase(point, 1);
    }
    if (text.size() > 9 || digits > kBoundDigitsMax) return note("multipleOf", path);
    uint64_t unit = std::stoul(text), other = bounds.unit == 0 ? unit : bounds.unit;
    uint32_t other_digits = bounds.unit == 0 ? digits : bounds.unit_digits;
    for (; digits < other_digits && unit <= kUnitMax; ++digits) unit *= 10;
    for (; other_digits < digits && other <= kUnitMax; ++other_digits) other *= 10;
    const uint64_t both = std::lcm(unit, other);
    if (both > kUnitMax || digits != other_digits) return note("multipleOf", path);
    bounds.unit = static_cast<uint32_t>(both);
    bounds.unit_digits = digits;
  });
}

// Strings.

SchemaGrammar::StringRules SchemaGrammar::string_rules(const Conjunction& all, const Exclusions& no) {
  StringRules rules;
  const auto add = [](std::vector<std::string>& to, const std::string& text) {
    if (std::find(to.begin(), to.end(), text) == to.end()) to.push_back(text);
  };
  all.each("pattern", [&](const Json& pattern) { add(rules.patterns, pattern); });
  all.each("format", [&](const Json& format) {
    if (format_pattern(format, FormatUse::kAlone) != nullptr) add(rules.formats, format);
  });
  rules.not_patterns = no.patterns;
  rules.not_strings = no.strings;
  rules.least = all.most_of("minLength", 0);
  rules.most = all.least_of("maxLength", kNoLimit);
  return rules;
}

int SchemaGrammar::string(const StringRules& rules, const std::string& path, int next) {
  if (rules.most < rules.least) return empty(path, "maxLength is less than minLength, so it allows no value");
  if (rules.plain()) return text_.string(rules.least, rules.most, next);
  return text_.open_quote(content(rules, path, text_.close_quote(next)));
}

Regex SchemaGrammar::parse(const std::string& pattern, const std::string& path) {
  return parse_regex(pattern, "schema " + path, a_.budget());
}

// A pattern that no automaton decides is checked; what it matches without that is kept.
void SchemaGrammar::widen(const std::string& pattern, const std::string& path, const std::string& why,
                          StringRules& rules) {
  const std::string where = "schema " + path;
  const auto reason = [&](const std::string& sentence) { return sentence.substr(where.size() + 2); };
  try {
    rules.wider.push_back(without_references(parse_whole_regex(pattern, where, a_.budget())));
    note("pattern", path, true, reason(why));
  } catch (const UnsupportedRegex& error) {
    note("pattern", path, false, reason(error.what()));
  }
}

// All rules at once, if that makes an automaton of bounded size; else fewer of them, with a note for what is left out.
int SchemaGrammar::content(const StringRules& rules, const std::string& path, int next) {
  StringRules fewer = rules;
  const auto attempt = [&](bool by_structure) { return try_content(fewer, by_structure, path, next); };
  std::erase_if(fewer.patterns, [&](const std::string& pattern) {
    try {
      parse(pattern, path);
      return false;
    } catch (const UnsupportedRegex& error) {
      widen(pattern, path, error.what(), fewer);
      return true;
    }
  });
  if (const int node = attempt(false); node >= 0) return node;
  if (!fewer.wider.empty()) {
    fewer.wider.clear();
    if (const int node = attempt(false); node >= 0) return node;
  }
  if (!fewer.patterns.empty() && !fewer.formats.empty()) {  // formats are narrower here than they need be
    fewer.formats.clear();
    note("format", path);
    if (const int node = attempt(false); node >= 0) return node;
  }
  if (!fewer.not_strings.empty() || !fewer.not_patterns.empty()) {
    note("not", path);
    fewer.not_strings.clear();
    fewer.not_patterns.clear();
    if (const int node = attempt(false); node >= 0) return node;
  }
  for (const char* keyword : {"maxLength", "minLength"}) {
    const bool is_set = keyword[1] == 'a' ? fewer.most != kNoLimit : fewer.least > 0;
    if (!is_set) continue;
    note(keyword, path);
    (keyword[1] == 'a' ? fewer.most : fewer.least) = keyword[1] == 'a' ? kNoLimit : 0;
    if (const int node = attempt(false); node >= 0) return node;
  }
  note(fewer.patterns.empty() ? "format" : "pattern", path);
  if (!fewer.patterns.empty()) {
    fewer.patterns.resize(1);
    if (const int node = attempt(true); node >= 0) return node;
  }
  const int again = a_.reserve();
  a_.set(again, a_.split({next, text_.character(again)}));
  return again;
}

// -1 where the rules together take too many states, or where what they allow has gaps in its lengths.
int SchemaGrammar::try_content(const StringRules& rules, bool by_structure, const std::string& path, int next) {
  std::vector<Regex> found, not_found;
  uint32_t least = rules.least, most = rules.most;
  for (const std::string& pattern : rules.patterns) {
    found.push_back(parse(pattern, path));
    take_length(found.back(), least, most);
  }
  found.insert(found.end(), rules.wider.begin(), rules.wider.end());
  const bool alone = rules.formats.size() == 1 && found.empty() && rules.not_patterns.empty() &&
                     rules.not_strings.empty() && least == 0 && most == kNoLimit;
  const FormatUse use = !found.empty() ? FormatUse::kCheck : alone ? FormatUse::kAlone : FormatUse::kCombined;
  for (const std::string& format : rules.formats) found.push_back(parse(*format_pattern(format, use), path));
  for (const std::string& pattern : rules.not_patterns) not_found.push_back(parse(pattern, path));
  if (!rules.not_strings.empty()) not_found.push_back(any_of(rules.not_strings));
  Regex whole;
  if (found.size() == 1 && not_found.empty()) {
    if (as_whole_string(by_structure ? without_conditions(found[0]) : found[0], whole)) {
      const bool counted = least > 0 || most != kNoLimit;
      if (!counted) return text_.regex(whole, next);
      if (const Regex* repeat = only_repeat(whole)) {
        const uint32_t from = std::max(least, repeat->least), to = std::min(most, repeat->most);
        if (to < from) return empty(path, "pattern and lengths leave no string, so it allows no value");
        return text_.regex(Regex::repeat(repeat->operands[0], from, to), next);
      }
    }
    if (by_structure) return -1;
  }
  StringSet::Terms terms;
  for (const Regex& regex : found) terms.found.push_back(&regex);
  for (const Regex& regex : not_found) terms.not_found.push_back(&regex);
  const std::unique_ptr<StringSet> set = StringSet::make(terms, a_.budget());
  if (set == nullptr) return -1;
  const auto dfa = set->dfa(kPatternStatesMax);
  if (!dfa) return -1;
  if (dfa->states.empty() && !rules.formats.empty()) return -1;
  if (const int node = text_.strings_of(*dfa, least, most, next); node >= 0) {
    if (dfa->states.empty()) empty(path, "its patterns leave no string, so it allows no value");
    return node;
  }
  // Lengths with gaps: each length is a state of its own, if they are few.
  terms.least = least;
  terms.most = most;
  const std::unique_ptr<StringSet> exact = StringSet::make(terms, a_.budget());
  const auto lengths = exact == nullptr ? std::nullopt : exact->dfa(kPatternStatesMax);
  return lengths ? text_.strings_of(*lengths, 0, kNoLimit, next) : -1;
}

// Arrays.

Conjunction SchemaGrammar::item(const Conjunction& all, size_t index, bool fixed, const std::string& path) {
  Conjunction one;
  for (const Conjunction::Part& part : all.parts) {
    const Json& schema = *part.schema;
    auto prefix = schema.find("prefixItems");
    auto rest = schema.find("items");
    if (prefix == schema.end() && rest != schema.end() && rest->is_array()) {  // drafts 4 to 7
      prefix = rest;
      rest = schema.find("additionalItems");
    }
    if (fixed && prefix != schema.end() && index < prefix->size()) {
      build_.add(one, (*prefix)[index], path);
    } else if (rest != schema.end()) {
      build_.add(one, *rest, path);
    } else if (closes_items(all)) {
      build_.add(one, schema["unevaluatedItems"], path);
    }
  }
  return one;
}

// Whether unevaluatedItems means the items after the fixed ones, as additionalItems does.
bool SchemaGrammar::closes_items(const Conjunction& all) {
  if (all.parts.size() != 1 || !all.has("unevaluatedItems") || all.has("contains")) return false;
  const Json& schema = *all.parts[0].schema;
  return !schema.contains("items") && !schema.contains("additionalItems");
}

int SchemaGrammar::array(const Conjunction& all, const std::string& path, int next) {
  const uint32_t least = all.most_of("minItems", 0);
  uint32_t most = all.least_of("maxItems", kUnbounded), fixed = 0;
  bool unique = false;
  const auto longest = [&](const Json& list) {
    if (list.is_array()) fixed = std::max(fixed, static_cast<uint32_t>(list.size()));
  };
  all.each("prefixItems", longest);
  all.each("items", longest);
  all.each("uniqueItems", [&](const Json& value) { unique |= value == true; });
  const Conjunction rest_of = item(all, 0, false, path + "/items");
  if (rest_of.never) most = std::min(most, fixed);
  std::vector<Conjunction> prefix;
  for (uint32_t i = 0; i < std::min(fixed, most); ++i) {
    a_.budget().charge(10);
    prefix.push_back(item(all, i, true, path + "/prefixItems/" + std::to_string(i)));
    if (prefix.back().never) most = i;  // no item can be there, nor after it
  }
  if (most < least) return empty(path, "maxItems is less than minItems, so it allows no value");
  const int close = a_.byte(']', next), end = text_.space(close);
  if (unique && most > 1) {
    const auto values = fixed == 0 ? build_.finite(rest_of) : std::nullopt;
    if (values && values->size() < least) {
      return empty(path, "minItems asks for " + std::to_string(least) +
                             " different items (uniqueItems), but items allows only " + std::to_string(values->size()) +
                             ", so it allows no value");
    }
    if (values && values->size() <= kDistinctMax) return distinct(*values, least, most, next);
    note("uniqueItems", path);
  }
  // Built from the back: the fixed items, then as many further items as the limits allow.
  int rest = end;
  if (most > fixed) {
    const int one = rule(rest_of, path + "/items");
    const uint32_t more = most == kUnbounded ? kUnbounded : most - fixed, need = least > fixed ? least - fixed : 0;
    const int body = separator(a_.call(one, a_.finish()));
    if (fixed == 0) {
      const uint32_t after_first = more == kUnbounded ? kUnbounded : more - 1;
      const int first = a_.call(one, a_.loop(body, need > 0 ? need - 1 : 0, after_first, end));
      return a_.byte('[', text_.space(need == 0 ? a_.split({close, first}) : first));
    }
    rest = a_.loop(body, need, more, end);
  }
  for (uint32_t i = std::min(fixed, most); i-- > 0;) {
    const int one = a_.call(rule(prefix[i], path + "/prefixItems/" + std::to_string(i)), rest);
    rest = i == 0 ? one : separator(one);
    if (i >= least) rest = a_.split({i == 0 ? close : end, rest});
  }
  return a_.byte('[', text_.space(fixed == 0 || most == 0 ? close : rest));
}

// A list of different values: a node for each set of those that are still there.
int SchemaGrammar::distinct(const std::vector<Json>& values, uint32_t least, uint32_t most, int next) {
  const auto count = static_cast<uint32_t>(values.size());
  const int close = a_.byte(']', next);
  std::vector<int> nodes(size_t{1} << count, -1);  // [sets of values that were written]
  for (size_t set = nodes.size(); set-- > 0;) {
    const auto written = static_cast<uint32_t>(__builtin_popcountll(set));
    Nodes choices;
    if (written >= least) choices.push_back(set == 0 ? close : text_.space(close));
    for (uint32_t i = 0; i < count && written < most; ++i) {
      if (set >> i & 1) continue;
      Nodes spelled;
      enumerated({values[i]}, nodes[set | size_t{1} << i], spelled);
      choices.push_back(set == 0 ? spelled[0] : separator(spelled[0]));
    }
    nodes[set] = choices.empty() ? a_.nothing() : a_.split(std::move(choices));
  }
  return a_.byte('[', text_.space(nodes[0]));
}

}  // namespace gemma4
