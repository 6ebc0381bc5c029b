#include "text/schema/regex.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/utf8.h"
#include "text/schema/unicode_classes.h"

namespace gemma4 {
namespace {

constexpr int kRegexDepthMax = 100;
constexpr uint32_t kRegexCountMax = 100000;
constexpr uint64_t kRegexSteps = 100;  // of a WorkBudget, for each byte

// d, w, s and their complements D, W, S; empty for any other name.
std::vector<PointRange> named_class(char name) {
  std::vector<PointRange> ranges;
  switch (name | 0x20) {
    case 'd':
      ranges = {{'0', '9'}};
      break;
    case 'w':
      ranges = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
      break;
    case 's':
      ranges = {{9, 13},          {' ', ' '},       {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
                {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
      break;
    default:
      return {};
  }
  return name & 0x20 ? ranges : complement_of(ranges);
}

void add_other_case(std::vector<PointRange>& ranges) {  // of ASCII letters
  const size_t count = ranges.size();
  for (size_t i = 0; i < count; ++i) {
    const PointRange range = ranges[i];
    const auto add = [&](uint32_t from, uint32_t to, int32_t by) {
      const uint32_t first = std::max(range.first, from), last = std::min(range.second, to);
      if (first <= last) ranges.emplace_back(first + static_cast<uint32_t>(by), last + static_cast<uint32_t>(by));
    };
    add('a', 'z', 'A' - 'a');
    add('A', 'Z', 'a' - 'A');
  }
}

class RegexParser {
 public:
  // `whole`: with groups, back references and lookbehind.
  RegexParser(std::string_view text, const std::string& what, bool whole) : text_(text), what_(what), whole_(whole) {}

  Regex parse() {
    if (whole_) find_groups();
    const size_t begin = at_;
    if (!accept("(?") || !flags() || !accept(')')) {
      at_ = begin;
      any_case_ = dot_all_ = false;
    }
    Regex all = choice(0);
    if (at_ != text_.size()) fail("has a ) without its (");
    return all;
  }

 private:
  std::string sentence(const std::string& why) const {
    return what_ + ": pattern '" + std::string(text_.substr(0, 200)) + "' " + why;
  }
  [[noreturn]] void fail(const std::string& why) const { throw Error(sentence(why)); }
  [[noreturn]] void unsupported(const std::string& why) const { throw UnsupportedRegex(sentence(why)); }
  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  bool accept(char c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool accept(std::string_view text) {
    if (!text_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  Regex choice(int depth) {
    if (depth > kRegexDepthMax) unsupported("is nested too deep");
    Regex all{Regex::kChoice};
    const size_t begin = names_.size();
    std::vector<std::string> others;  // names of the alternatives before
    do {
      all.operands.push_back(sequence(depth));
      for (; names_.size() > begin; names_.pop_back()) {
        others.push_back(names_.back());
        taken_names_.erase(names_.back());
      }
    } while (accept('|'));
    for (std::string& name : others) {
      if (taken_names_.insert(name).second) names_.push_back(std::move(name));
    }
    return all;
  }

  // Two groups may have one name only where they are in two alternatives (ECMA-262, 2025).
  void take_name(std::string name) {
    if (!taken_names_.insert(name).second) fail("has two groups with the name " + name);
    names_.push_back(std::move(name));
  }

  // A group's name and its >. Empty, and nothing is read, where there is none.
  std::string group_name() {
    const size_t begin = at_;
    std::string name;
    while (more() && peek() != '>') {
      const char c = peek(), lower = static_cast<char>(c | 0x20);
      const bool digit = c >= '0' && c <= '9';
      const bool letter = (lower >= 'a' && lower <= 'z') || c == '_' || c == '$' || (c & 0x80) != 0;
      if (!letter && !(digit && !name.empty())) break;
      utf8_append(name, literal());
    }
    if (!name.empty() && accept('>')) return name;
    at_ = begin;
    return "";
  }

  // The flags before a ) or a :, as in (?i) or (?s-i:...), of those that are understood.
  bool flags() {
    const size_t begin = at_;
    bool any_case = any_case_, dot_all = dot_all_, on = true, some = false;
    for (; peek() == 'i' || peek() == 's' || (on && peek() == '-'); ++at_) {
      if (peek() == 'i') any_case = on;
      if (peek() == 's') dot_all = on;
      if (peek() == '-') on = false;
      some |= peek() != '-';
    }
    if (!some || (peek() != ')' && peek() != ':')) {
      at_ = begin;
      return false;
    }
    any_case_ = any_case;
    dot_all_ = dot_all;
    return true;
  }

  Regex sequence(int depth) {
    Regex all{Regex::kSequence};
    while (more() && peek() != '|' && peek() != ')') {
      Regex one = atom(depth);
      repeat(one);
      all.operands.push_back(std::move(one));
    }
    return all;
  }

  // Whether {m}, {m,} or {m,n} is here; otherwise { is a character.
  bool is_count() const {
    size_t at = at_ + 1;
    const auto digits = [&] {
      const size_t begin = at;
      while (at < text_.size() && text_[at] >= '0' && text_[at] <= '9') ++at;
      return at > begin;
    };
    if (peek() != '{' || !digits()) return false;
    if (at < text_.size() && text_[at] == ',') ++at, digits();
    return at < text_.size() && text_[at] == '}';
  }

  static bool is_assertion(const Regex& one) {
    return (one.type >= Regex::kLookahead && one.type <= Regex::kWordBoundary) || one.type == Regex::kLookbehind;
  }

  void repeat(Regex& one) {
    uint32_t least = 0, most = kNoLimit;
    const size_t begin = at_;
    if (accept('+')) {
      least = 1;
    } else if (accept('?')) {
      most = 1;
    } else if (is_count()) {
      ++at_;
      least = most = count();
      if (accept(',')) most = peek() == '}' ? kNoLimit : count();
      if (!accept('}') || most < least) fail("has a repeat {m,n} with m above n");
    } else if (!accept('*')) {
      return;
    }
    if (is_assertion(one)) fail("repeats an anchor or what looks around ('" + std::string(1, text_[begin]) + "')");
    if (!whole_ && peek() == '+') unsupported("has a possessive repeat, which ECMA-262 has not");
    const bool lazy = accept('?');  // the same strings match; but groups may hold others
    const bool possessive = !lazy && accept('+');
    if (peek() == '*' || peek() == '+' || peek() == '?' || is_count()) fail("has a repeat of a repeat");
    if (whole_) {
      Regex repeated{Regex::kRepeat, {}, {}, least, most};
      repeated.lazy = lazy;
      repeated.operands.push_back(std::move(one));
      one = possessive ? Regex{Regex::kAtomic, {}, {std::move(repeated)}} : std::move(repeated);
    } else {
      one = Regex::repeat(std::move(one), least, most);
    }
  }

  // Their number and their names, since a reference may come before its group.
  void find_groups() {
    bool in_brackets = false;
    for (size_t i = 0; i < text_.size(); ++i) {
      const std::string_view rest = text_.substr(i);
      if (rest[0] == '\\') ++i;
      if (rest[0] == '[') in_brackets = true;
      if (rest[0] == ']') in_brackets = false;
      if (rest[0] != '(' || in_brackets) continue;
      const size_t name = rest.starts_with("(?P<") ? 4 : rest.starts_with("(?<") ? 3 : 0;
      const bool named = name > 0 && rest.size() > name && rest[name] != '=' && rest[name] != '!';
      if (rest.size() > 1 && rest[1] == '?' && !named) continue;
      ++group_count_;
      const size_t end = rest.find('>');
      if (named && end != rest.npos) group_names_[rest.substr(name, end - name)].push_back(group_count_);
    }
  }

  uint32_t count() {
    uint32_t value = 0;
    while (more() && peek() >= '0' && peek() <= '9' && value <= kRegexCountMax) {
      value = value * 10 + static_cast<uint32_t>(text_[at_++] - '0');
    }
    if (value > kRegexCountMax) unsupported("repeats more than " + std::to_string(kRegexCountMax) + " times");
    return value;
  }

  Regex group(int depth) {  // after the (
    Regex look{Regex::kLookahead}, group{Regex::kGroup};
    bool captures = false;
    if (accept("?=") || accept("?!")) {
      look.negative = text_[at_ - 1] == '!';
      look.operands.push_back(choice(depth + 1));
    } else if (accept("?<=") || accept("?<!")) {
      if (!whole_) unsupported("looks behind ((?<= or (?<!)");
      look.type = Regex::kLookbehind;
      look.negative = text_[at_ - 1] == '!';
      look.operands.push_back(choice(depth + 1));
    } else if (accept("?<") || accept("?P<")) {
      std::string name = group_name();
      if (name.empty()) fail("has a group whose name is none, or without its >");
      take_name(std::move(name));
      captures = true;
    } else if (accept("?>")) {
      if (!whole_) unsupported("has an atomic group, which ECMA-262 has not");
      look.type = Regex::kAtomic;
      look.operands.push_back(choice(depth + 1));
    } else if (whole_ && accept("?P=")) {
      return named_reference(')');
    } else if (peek() == '?' && text_.substr(at_).starts_with("?:")) {
      at_ += 2;
    } else if (peek() == '?') {
      return group_with_flags(depth);
    } else {
      captures = true;
    }
    if (captures) group.least = ++groups_begun_;
    Regex inner = look.operands.empty() ? choice(depth + 1) : std::move(look);
    if (!accept(')')) fail("has a ( without its )");
    if (!captures || !whole_) return inner;
    group.operands.push_back(std::move(inner));
    return group;
  }

  Regex group_with_flags(int depth) {  // after (, at the ?
    const size_t begin = at_++;
    const bool any_case = any_case_, dot_all = dot_all_;
    if (!flags() || !accept(':')) {
      const std::string why = "has a group that begins with " + std::string(text_.substr(begin - 1, 3));
      if (!more() || std::string_view("?*+){}[]").find(peek()) != std::string_view::npos) fail(why);
      unsupported(why + ", which is not known here");
    }
    Regex inner = choice(depth + 1);
    if (!accept(')')) fail("has a ( without its )");
    any_case_ = any_case;
    dot_all_ = dot_all;
    return inner;
  }

  Regex reference(uint64_t group) const {
    if (group == 0 || group > group_count_) fail("refers to a group that is not there");
    Regex one{Regex::kBackReference};
    one.least = static_cast<uint32_t>(group);
    one.any_case = any_case_;
    return one;
  }

  Regex numbered_reference() {
    uint64_t number = 0;
    for (; more() && peek() >= '0' && peek() <= '9'; ++at_) {
      number = std::min<uint64_t>(number * 10 + static_cast<uint64_t>(peek() - '0'), kNoLimit);
    }
    return reference(number);
  }

  // Of several groups with the name one at most holds something; the others match the empty text.
  Regex named_reference(char end) {  // after its beginning
    const size_t to = text_.find(end, at_);
    if (to == std::string_view::npos) fail("has a reference without its end");
    const auto found = group_names_.find(text_.substr(at_, to - at_));
    at_ = to + 1;
    if (found == group_names_.end()) return reference(0);
    Regex all{Regex::kSequence};
    for (const uint32_t group : found->second) all.operands.push_back(reference(group));
    return all;
  }

  Regex atom(int depth) {
    if (accept('(')) return group(depth);
    if (accept('^')) return {Regex::kBegin};
    if (accept('$')) return {Regex::kEnd};
    Regex one{Regex::kCharacters};
    if (accept('[')) {
      one.ranges = brackets();
    } else if (accept('.')) {
      one.ranges = dot_all_ ? std::vector<PointRange>{{0, kLastPoint}}
                            : complement_of({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
    } else if (accept('\\')) {
      if (accept('b') || accept('B')) {
        Regex boundary{Regex::kWordBoundary};
        boundary.negative = text_[at_ - 1] == 'B';
        return boundary;
      }
      if (accept('A')) return {Regex::kBegin};
      if (accept('Z') || accept('z')) return {Regex::kEnd};
      if (whole_ && peek() >= '1' && peek() <= '9') return numbered_reference();
      if (whole_ && accept("k<")) return named_reference('>');
      one.ranges = with_case(escaped());
    } else if (std::string_view("*+?").find(peek()) != std::string_view::npos || is_count()) {
      fail(std::string("has a ") + peek() + " with nothing to repeat");
    } else {
      if (peek() == '{') refuse_open_repeat();
      const uint32_t point = literal();
      one.ranges = with_case({{point, point}});
    }
    return one;
  }

  // {,n} is up to n times in Python, and a text in ECMA-262 without the flag u.
  void refuse_open_repeat() const {
    const size_t begin = at_ + 2, end = std::min(text_.find_first_not_of("0123456789", begin), text_.size());
    if (!text_.substr(at_).starts_with("{,") || end == begin || end == text_.size() || text_[end] != '}') return;
    const std::string most(text_.substr(begin, std::min<size_t>(end - begin, 20)));
    fail("has the repeat {," + most + "}, which ECMA-262 has not: {0," + most + "} is what it has");
  }

  std::vector<PointRange> with_case(std::vector<PointRange> ranges) const {
    if (any_case_) add_other_case(ranges);
    return complement_of(complement_of(std::move(ranges)));  // twice: sorted and without overlap
  }

  uint32_t literal() {
    const size_t length = utf8_length(text_.substr(at_));
    if (length == 0) fail("is not UTF-8");
    const uint32_t point = utf8_point(text_.substr(at_));
    at_ += length;
    return point;
  }

  std::vector<PointRange> escaped() {  // after the backslash
    if (!more()) fail("ends in a backslash");
    if (auto ranges = named_class(peek()); !ranges.empty()) {
      ++at_;
      return ranges;
    }
    const char c = text_[at_];
    constexpr std::string_view kNames = "nrtfv0", kValues("\n\r\t\f\v\0", 6);
    uint32_t point = 0;
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      ++at_, point = static_cast<unsigned char>(kValues[i]);
      if (c == '0' && peek() >= '0' && peek() <= '9') fail("has an octal escape (\\0 and a digit)");
    } else if (c == 'c' && is_letter(1)) {
      point = static_cast<uint32_t>(text_[at_ + 1]) % 32;
      at_ += 2;
    } else if (c == 'p' || c == 'P') {
      ++at_;
      return unicode_property(c == 'P');
    } else if (c == 'u' || c == 'x') {
      ++at_, point = accept('{') ? hex_until_brace() : hex(c == 'u' ? 4 : 2);
      point = with_low_half(point);
    } else if (c >= '1' && c <= '9') {
      unsupported(std::string("refers back to a group (\\") + c + ")");
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      unsupported(std::string("has the escape \\") + c + ", which ECMA-262 has not");
    } else {
      point = literal();
    }
    return {{point, point}};
  }

  std::vector<PointRange> unicode_property(bool negated) {
    const size_t end = text_.find('}', at_);
    const bool braces = accept('{');
    if (braces && end == std::string_view::npos) fail("has a { without its }");
    const std::string name(braces ? text_.substr(at_, end - at_) : text_.substr(at_, 1));
    at_ = braces ? end + 1 : std::min(at_ + 1, text_.size());
    const std::vector<PointRange> ranges = unicode_class(name);
    if (ranges.empty()) unsupported("has the property \\p{" + name + "}, which is not known here");
    return negated ? complement_of(ranges) : ranges;
  }

  bool is_letter(size_t ahead) const {
    const char c = at_ + ahead < text_.size() ? static_cast<char>(text_[at_ + ahead] | 0x20) : '\0';
    return c >= 'a' && c <= 'z';
  }

  // \ud83d\ude00 is one character.
  uint32_t with_low_half(uint32_t high) {
    const size_t begin = at_;
    if (high < 0xd800 || high > 0xdbff || !accept("\\u") || peek() == '{') return at_ = begin, high;
    const uint32_t low = hex(4);
    if (low < 0xdc00 || low > 0xdfff) return at_ = begin, high;
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  int digit() {
    const char c = peek(), lower = static_cast<char>(c | 0x20);
    const int value = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
    if (value < 0) fail("has an unfinished \\x or \\u");
    ++at_;
    return value;
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) value = value * 16 + static_cast<uint32_t>(digit());
    return value;
  }

  uint32_t hex_until_brace() {
    uint32_t value = 0;
    do {
      value = value * 16 + static_cast<uint32_t>(digit());
      if (value > kLastPoint) fail("has a code point above 10FFFF");
    } while (!accept('}'));
    return value;
  }

  std::vector<PointRange> brackets() {  // after the [
    std::vector<PointRange> ranges;
    const bool negated = accept('^');
    while (!accept(']')) {
      if (!more()) fail("has a [ without its ]");
      std::vector<PointRange> first = one_of_brackets();
      const bool single = first.size() == 1 && first[0].first == first[0].second;
      if (single && peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        const size_t dash = at_++;
        const std::vector<PointRange> last = one_of_brackets();
        if (last.size() == 1 && last[0].first == last[0].second) {
          if (last[0].first < first[0].first) fail("has a range that ends before it begins");
          first[0].second = last[0].first;
        } else {
          at_ = dash;  // [a-\d]: the dash stands for itself
        }
      }
      ranges.insert(ranges.end(), first.begin(), first.end());
    }
    ranges = with_case(std::move(ranges));
    return negated ? complement_of(std::move(ranges)) : ranges;
  }

  std::vector<PointRange> one_of_brackets() {
    if (!accept('\\')) {
      const uint32_t point = literal();
      return {{point, point}};
    }
    if (accept('b')) return {{8, 8}};
    return escaped();
  }

  std::string_view text_;
  const std::string& what_;
  const bool whole_;
  size_t at_ = 0;
  bool any_case_ = false, dot_all_ = false;
  uint32_t group_count_ = 0, groups_begun_ = 0;
  std::map<std::string_view, std::vector<uint32_t>> group_names_;
  std::set<std::string> taken_names_;  // of groups before, but for those of other alternatives
  std::vector<std::string> names_;     // the same, in the order in which they came
};

}  // namespace

Regex parse_regex(std::string_view text, const std::string& what, WorkBudget& budget) {
  budget.charge(text.size() * kRegexSteps);
  HeldBytes held(budget);
  held.add(text.size() * sizeof(Regex) * 2);
  return RegexParser(text, what, false).parse();
}

Regex parse_whole_regex(std::string_view text, const std::string& what, WorkBudget& budget) {
  budget.charge(text.size() * kRegexSteps);
  HeldBytes held(budget);
  held.add(text.size() * sizeof(Regex) * 2);
  return RegexParser(text, what, true).parse();
}

}  // namespace gemma4
