// Objects of a schema: the members that it names, and those that it describes by their keys.
#include <algorithm>
#include <cctype>

#include "base/check.h"
#include "text/grammar/schema.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kNamesMax = 1000;         // members of one object
constexpr size_t kCountNodesMax = 20'000;  // of the members times how many were written
constexpr size_t kKeyPatternsMax = 3;      // patternProperties whose every combination is told apart

// Gemma's keys are bare words, so they cannot contain a delimiter.
constexpr const char* kBareDelimiters = ":,{}[]\" \t\r\n<>";
constexpr const char* kBareKey = "^[^:,{}\\[\\]\" \\t\\r\\n<>]+$";

}  // namespace

int SchemaGrammar::separator(int next) { return a_.byte(',', text_.space(next)); }
int SchemaGrammar::name_then(int next) { return a_.byte(':', text_.space(next)); }

int SchemaGrammar::key(const std::string& name, int next) {
  if (syntax_ == Syntax::kGemma) return a_.literal(name, name_then(next));
  return a_.one_of({text_.quoted(name)}, name_then(next));
}

// What must hold for the member of this name: of each part what it says of the name, or of all others.
Conjunction SchemaGrammar::property(const Conjunction& all, const std::string& name, const std::string& path) {
  Conjunction value;
  for (const Conjunction::Part& part : all.parts) {
    const Json& schema = *part.schema;
    bool known = false;
    a_.budget().charge(10);
    if (const auto properties = schema.find("properties"); properties != schema.end() && properties->contains(name)) {
      build_.add(value, (*properties)[name], path);
      known = true;
    }
    if (const auto patterns = schema.find("patternProperties"); patterns != schema.end()) {
      for (const auto& [pattern, one] : patterns->items()) {
        if (!build_.checker().matches(name, pattern)) continue;
        build_.add(value, one, path);
        known = true;
      }
    }
    const auto others = schema.find("additionalProperties"), names = schema.find("propertyNames");
    if (!known && others != schema.end()) build_.add(value, *others, path);
    if (names != schema.end() && !build_.checker().holds(name, *names)) value.never = true;
  }
  return value;
}

// Those that the schema names, in its order; `more`: names that propertyNames lists.
std::vector<SchemaGrammar::Member> SchemaGrammar::members(const Conjunction& all, const Exclusions& no,
                                                          const std::vector<std::string>& more,
                                                          const std::string& path) {
  std::vector<std::string> names;
  std::set<std::string> known, required;
  const auto add = [&](const std::string& name) {
    a_.budget().charge(20 + name.size() / 8);
    if (known.insert(name).second) names.push_back(name);
  };
  all.each("required", [&](const Json& list) {
    for (const Json& name : list) a_.budget().charge(20), required.insert(name.get<std::string>());
  });
  all.each("properties", [&](const Json& properties) {
    for (const auto& [name, property] : properties.items()) add(name);
  });
  for (const std::string& name : more) add(name);
  for (const std::string& name : required) add(name);
  std::vector<Member> result;
  for (const std::string& name : names) {
    const std::string at = path + "/properties/" + name;
    const Conjunction value = property(all, name, at);
    const bool forbidden = value.never || no.names.contains(name);
    if (forbidden && !required.contains(name)) continue;
    const int of_value = forbidden ? -1 : rule(value, at);
    if (forbidden) empty(path, name + " is required, but the schema forbids it, so it allows no value");
    result.push_back({name, of_value, required.contains(name)});
  }
  if (result.size() > kNamesMax) cannot_enforce(path, "has too many properties");
  return result;
}

void SchemaGrammar::sort_for_calls(std::vector<Member>& members, const std::string& path) const {
  const auto lower = [](std::string name) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return c < 128 ? std::tolower(c) : c; });
    return name;
  };
  std::stable_sort(members.begin(), members.end(),
                   [&](const Member& a, const Member& b) { return lower(a.name) < lower(b.name); });
  for (const Member& member : members) {
    if (member.name.empty() || member.name.find_first_of(kBareDelimiters) != std::string::npos) {
      cannot_enforce(path, "the property name '" + member.name + "' cannot be written in a tool call");
    }
  }
}

// Whether there may be members that no name and no pattern describes.
bool SchemaGrammar::is_open(const Conjunction& all, size_t members) const {
  bool closed = false, said = false, described = all.has("patternProperties");
  all.each("properties", [&](const Json& properties) { described |= !properties.empty(); });
  for (const char* keyword : {"additionalProperties", "unevaluatedProperties"}) {
    all.each(keyword, [&](const Json& schema) { schema == false ? closed = true : said = true; });
  }
  if (closed) return false;
  return said || !described || all.most_of("minProperties", 0) > members;
}

std::vector<SchemaGrammar::FreeMembers> SchemaGrammar::free_members(const Conjunction& all, const Exclusions& no,
                                                                    const Conjunction& names,
                                                                    const std::vector<Member>& members,
                                                                    const std::string& path) {
  std::vector<std::string> patterns;
  all.each("patternProperties", [&](const Json& these) {
    for (const auto& [pattern, one] : these.items()) {
      if (std::find(patterns.begin(), patterns.end(), pattern) == patterns.end()) patterns.push_back(pattern);
    }
  });
  std::vector<std::string> described;  // names that are not free
  for (const Member& member : members) described.push_back(member.name);
  described.insert(described.end(), no.names.begin(), no.names.end());
  all.each("properties", [&](const Json& these) {  // with those that may not be there
    for (const auto& [name, property] : these.items()) {
      if (std::find(described.begin(), described.end(), name) == described.end()) described.push_back(name);
    }
  });
  const bool each_set = patterns.size() <= kKeyPatternsMax, open = is_open(all, members.size());
  std::vector<FreeMembers> result;
  const size_t sets = each_set ? size_t{1} << patterns.size() : patterns.size() + 1;
  for (size_t set = 0; set < sets; ++set) {
    if (set == 0 && !open) continue;
    const auto in_set = [&](size_t i) { return each_set ? (set >> i & 1) != 0 : set == i + 1; };
    FreeMembers one;
    Conjunction value;
    for (size_t i = 0; i < patterns.size(); ++i) {
      (in_set(i) ? one.keys.patterns : one.keys.not_patterns).push_back(patterns[i]);
    }
    for (const Conjunction::Part& part : all.parts) {
      bool known = false;
      if (const auto these = part.schema->find("patternProperties"); these != part.schema->end()) {
        for (size_t i = 0; i < patterns.size(); ++i) {
          if (!in_set(i) || !these->contains(patterns[i])) continue;
          build_.add(value, (*these)[patterns[i]], path + "/patternProperties");
          known = true;
        }
      }
      for (const char* keyword : {"additionalProperties", "unevaluatedProperties"}) {
        const auto others = part.schema->find(keyword);
        if (!known && others != part.schema->end()) build_.add(value, *others, path + "/" + keyword);
      }
    }
    if (value.never) continue;
    one.value_rule = rule(value, path + "/additionalProperties");
    one.keys.not_strings = described;
    restrict_keys(one, names, path);
    result.push_back(std::move(one));
  }
  return result;
}

// To what propertyNames says.
void SchemaGrammar::restrict_keys(FreeMembers& free, const Conjunction& names, const std::string& path) {
  StringRules& keys = free.keys;
  const StringRules of_names = string_rules(names, {});
  keys.formats = of_names.formats;
  keys.least = of_names.least;
  keys.most = of_names.most;
  keys.patterns.insert(keys.patterns.end(), of_names.patterns.begin(), of_names.patterns.end());
  const bool simple = std::all_of(names.parts.begin(), names.parts.end(), [](const Conjunction::Part& part) {
    return std::all_of(part.schema->items().begin(), part.schema->items().end(), [](const auto& item) {
      static const std::set<std::string> kSimple = {"type", "pattern", "format", "minLength", "maxLength"};
      return !restricts(item.key()) || kSimple.contains(item.key());
    });
  });
  if (!simple && keys.plain() && syntax_ == Syntax::kJson) {
    Conjunction key = names;
    static const Json kString = {{"type", "string"}};
    build_.add(key, kString, path + "/propertyNames");
    free.key_rule = rule(key, path + "/propertyNames");
  } else if (!simple) {
    note("propertyNames", path);
  }
}

int SchemaGrammar::free_key(const FreeMembers& free, const std::string& path, int next) {
  const StringRules& keys = free.keys;
  if (free.key_rule >= 0) return a_.call(free.key_rule, next);
  const bool only_names = keys.patterns.empty() && keys.formats.empty() && keys.not_patterns.empty() &&
                          keys.least == 0 && keys.most == kNoLimit;
  if (only_names && (syntax_ == Syntax::kGemma || !keys.not_strings.empty())) {
    return text_.key_other_than(keys.not_strings, next);
  }
  if (syntax_ == Syntax::kJson) return string(keys, path, next);
  StringRules bare = keys;
  bare.patterns.push_back(kBareKey);
  return content(bare, path, next);
}

// Members of any of these kinds. `first`: none was written before.
int SchemaGrammar::free_list(const std::vector<FreeMembers>& free, uint32_t least, uint32_t most, bool first,
                             const std::string& path, int close) {
  const int end = first ? close : text_.space(close);
  free_keys_ |= !free.empty();
  if (free.empty() || most == 0) return least == 0 ? end : a_.nothing();
  const auto any_of_them = [&](int next) {
    Nodes choices;
    for (const FreeMembers& one : free) {
      choices.push_back(free_key(one, path, name_then(a_.call(one.value_rule, next))));
    }
    return a_.split(std::move(choices));
  };
  const int body = separator(any_of_them(a_.finish()));
  if (!first) return a_.loop(body, least, most, end);
  const uint32_t more = most == kUnbounded ? kUnbounded : most - 1;
  const int one = any_of_them(a_.loop(body, least > 0 ? least - 1 : 0, more, text_.space(close)));
  return least == 0 ? a_.split({close, one}) : one;
}

// Built from the back. A node for each member and number of members written before it, as far as that number matters:
// whether there is any (then a comma precedes the next), and whether there are enough or too many.
int SchemaGrammar::member_list(const std::vector<Member>& members, const std::vector<FreeMembers>& free, uint32_t least,
                               uint32_t most, const std::string& path, int close) {
  const auto counts = [&] { return size_t{std::max<uint32_t>(1, most == kNoLimit ? least : most)}; };
  if (!members.empty() && (members.size() + 1) * (counts() + 1) > kCountNodesMax) {
    if (least > 0) note("minProperties", path);
    if (most != kNoLimit) note("maxProperties", path);
    least = 0, most = kNoLimit;
  }
  const size_t last = members.empty() ? 0 : counts();  // this many, or, without a limit, more
  std::vector<int> after(last + 1);                    // [members written]: the node where the rest begins
  for (size_t written = 0; written <= last; ++written) {
    const auto count = static_cast<uint32_t>(written);
    after[written] = free_list(free, least > count ? least - count : 0, most == kNoLimit ? kNoLimit : most - count,
                               written == 0, path, close);
  }
  for (size_t i = members.size(); i-- > 0;) {
    std::vector<int> before(last + 1), with(last + 1, -1);
    for (size_t written = 0; written <= last; ++written) {
      const size_t then = std::min(written + 1, last);
      Nodes choices;
      if (members[i].rule >= 0 && (most == kNoLimit || written < most)) {
        if (with[then] < 0) with[then] = key(members[i].name, a_.call(members[i].rule, after[then]));
        choices.push_back(written == 0 ? with[then] : separator(with[then]));
      }
      if (!members[i].required) choices.push_back(after[written]);
      before[written] = choices.empty() ? a_.nothing() : a_.split(std::move(choices));
    }
    after = std::move(before);
  }
  return after[0];
}

int SchemaGrammar::object(const Conjunction& all, const Exclusions& no, const std::string& path, int next) {
  const uint32_t least = all.most_of("minProperties", 0), most = all.least_of("maxProperties", kNoLimit);
  if (most < least) return empty(path, "maxProperties is less than minProperties, so it allows no value");
  Conjunction names;
  all.each("propertyNames", [&](const Json& schema) { build_.add(names, schema, path + "/propertyNames"); });
  std::vector<std::string> listed;
  const auto finite = build_.finite(names);
  if (finite) {
    for (const Json& name : *finite) {
      if (name.is_string()) listed.push_back(name.get<std::string>());
    }
  }
  std::vector<Member> all_members = members(all, no, listed, path);
  if (syntax_ == Syntax::kGemma) sort_for_calls(all_members, path);
  std::vector<FreeMembers> free;
  if (!finite && !names.never) free = free_members(all, no, names, all_members, path);
  const int list = member_list(all_members, free, least, most, path, a_.byte('}', next));
  return a_.byte('{', text_.space(list));
}

}  // namespace gemma4
