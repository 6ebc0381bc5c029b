#include "text/schema/regex.h"

#include <algorithm>
#include <map>

#include "base/utf8.h"
#include "text/schema/unicode_classes.h"

namespace gemma4 {
namespace {

constexpr int kRegexDepthMax = 100;
constexpr uint32_t kRegexCountMax = 100000;
constexpr uint64_t kMostMax = 1'000'000'000;  // no text is longer
constexpr uint64_t kRegexSteps = 100;         // of a WorkBudget, for each byte

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
    if (text_.starts_with("(?i)")) at_ = 4, any_case_ = true;
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
    do {
      all.operands.push_back(sequence(depth));
    } while (accept('|'));
    return all;
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

  void repeat(Regex& one) {
    uint32_t least = 0, most = kNoLimit;
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
    if (peek() == '+') unsupported("has a possessive repeat");
    const bool lazy = accept('?');  // the same strings match; but groups may hold others
    if (peek() == '*' || peek() == '+' || is_count()) fail("has a repeat of a repeat");
    if (whole_) {
      Regex repeated{Regex::kRepeat, {}, {}, least, most};
      repeated.lazy = lazy;
      repeated.operands.push_back(std::move(one));
      one = std::move(repeated);
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
      if (named && end != rest.npos) group_names_[rest.substr(name, end - name)] = group_count_;
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
      const size_t end = text_.find('>', at_);
      if (end == std::string_view::npos) fail("has a group name without its >");
      at_ = end + 1;
      captures = true;
    } else if (whole_ && accept("?P=")) {
      return named_reference(')');
    } else if (peek() == '?' && !accept("?:")) {
      unsupported("has a group that begins with " + std::string(text_.substr(at_ - 1, 3)));
    } else {
      captures = at_ == 0 || text_[at_ - 1] == '(';  // and not (?:
    }
    if (captures) group.least = ++groups_begun_;
    Regex inner = look.operands.empty() ? choice(depth + 1) : std::move(look);
    if (!accept(')')) fail("has a ( without its )");
    if (!captures || !whole_) return inner;
    group.operands.push_back(std::move(inner));
    return group;
  }

  Regex reference(uint32_t group) const {
    if (group == 0 || group > group_count_) fail("refers to a group that is not there");
    Regex one{Regex::kBackReference};
    one.least = group;
    one.any_case = any_case_;
    return one;
  }

  Regex named_reference(char end) {  // after its beginning
    const size_t to = text_.find(end, at_);
    if (to == std::string_view::npos) fail("has a reference without its end");
    const auto found = group_names_.find(text_.substr(at_, to - at_));
    at_ = to + 1;
    return reference(found == group_names_.end() ? 0 : found->second);
  }

  Regex atom(int depth) {
    if (accept('(')) return group(depth);
    if (accept('^')) return {Regex::kBegin};
    if (accept('$')) return {Regex::kEnd};
    Regex one{Regex::kCharacters};
    if (accept('[')) {
      one.ranges = brackets();
    } else if (accept('.')) {
      one.ranges = complement_of({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
    } else if (accept('\\')) {
      if (accept('b') || accept('B')) {
        Regex boundary{Regex::kWordBoundary};
        boundary.negative = text_[at_ - 1] == 'B';
        return boundary;
      }
      if (accept('A')) return {Regex::kBegin};
      if (accept('Z') || accept('z')) return {Regex::kEnd};
      if (whole_ && peek() >= '1' && peek() <= '9') return reference(count());
      if (whole_ && accept("k<")) return named_reference('>');
      one.ranges = with_case(escaped());
    } else if (std::string_view("*+?").find(peek()) != std::string_view::npos || is_count()) {
      fail(std::string("has a ") + peek() + " with nothing to repeat");
    } else {
      const uint32_t point = literal();
      one.ranges = with_case({{point, point}});
    }
    return one;
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
    } else if (c == 'p' || c == 'P') {
      ++at_;
      return unicode_property(c == 'P');
    } else if (c == 'u' || c == 'x') {
      ++at_, point = accept('{') ? hex_until_brace() : hex(c == 'u' ? 4 : 2);
    } else if (c >= '1' && c <= '9') {
      unsupported(std::string("refers back to a group (\\") + c + ")");
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      unsupported(std::string("has the escape \\") + c);
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
    if (ranges.empty()) unsupported("has the property \\p{" + name + "}");
    return negated ? complement_of(ranges) : ranges;
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
  bool any_case_ = false;
  uint32_t group_count_ = 0, groups_begun_ = 0;
  std::map<std::string_view, uint32_t> group_names_;
};

// What a group of one thing holds.
const Regex& only_operand(const Regex& regex) {
  const Regex* at = &regex;
  while ((at->type == Regex::kChoice || at->type == Regex::kSequence) && at->operands.size() == 1) {
    at = &at->operands[0];
  }
  return *at;
}

}  // namespace

std::vector<PointRange> complement_of(std::vector<PointRange> ranges) {
  std::sort(ranges.begin(), ranges.end());
  std::vector<PointRange> result;
  uint32_t from = 0;
  for (const auto& [first, last] : ranges) {
    if (first > from) result.emplace_back(from, first - 1);
    from = std::max(from, last + 1);
  }
  if (from <= kLastPoint) result.emplace_back(from, kLastPoint);
  return result;
}

Regex Regex::repeat(Regex one, uint32_t least, uint32_t most) {
  const Regex& inner = only_operand(one);
  Regex repeated{kRepeat};
  if (inner.type == kRepeat && inner.least == 0) {  // (x{0,m}){l,n} is x{0,mn}
    repeated = inner;
    const uint64_t product = most == 0 || inner.most == 0 ? 0 : uint64_t{inner.most} * most;
    repeated.most = product > kMostMax ? kNoLimit : static_cast<uint32_t>(product);
    return repeated;
  }
  repeated.least = one.may_be_empty() ? 0 : least;
  repeated.most = most;
  if (one.has_assertions()) repeated.least = least;  // what is true once need not be true at each time
  repeated.operands.push_back(std::move(one));
  return repeated;
}

Regex Regex::anything() {
  Regex any{kCharacters};
  any.ranges = {{0, kLastPoint}};
  return repeat(std::move(any), 0, kNoLimit);
}

bool Regex::may_be_empty() const {
  const auto empty = [](const Regex& operand) { return operand.may_be_empty(); };
  if (type == kCharacters) return false;
  if (type == kSequence) return std::all_of(operands.begin(), operands.end(), empty);
  if (type == kChoice) return std::any_of(operands.begin(), operands.end(), empty);
  if (type == kRepeat) return least == 0 || operands[0].may_be_empty();
  return true;
}

bool Regex::has_assertions() const {
  if (type >= kLookahead && type != kGroup && type != kBackReference) return true;
  return std::any_of(operands.begin(), operands.end(), [](const Regex& operand) { return operand.has_assertions(); });
}

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

static bool has_references(const Regex& regex) {
  return regex.type == Regex::kBackReference || regex.type == Regex::kLookbehind ||
         std::any_of(regex.operands.begin(), regex.operands.end(), has_references);
}

Regex without_references(const Regex& regex) {
  switch (regex.type) {
    case Regex::kBackReference:
      return Regex::anything();
    case Regex::kLookbehind:
      return {Regex::kSequence};
    case Regex::kGroup:
      return without_references(regex.operands[0]);
    case Regex::kLookahead:
      if (has_references(regex)) return {Regex::kSequence};  // what it keeps out cannot be told
      break;
    case Regex::kRepeat:
      return Regex::repeat(without_references(regex.operands[0]), regex.least, regex.most);
    default:
      break;
  }
  Regex plain = regex;
  for (Regex& operand : plain.operands) operand = without_references(operand);
  return plain;
}

bool as_whole_string(const Regex& regex, Regex& whole) {
  const Regex* all = &regex;
  while (all->type == Regex::kChoice && all->operands.size() == 1 && all->operands[0].type == Regex::kChoice) {
    all = &all->operands[0];
  }
  whole = Regex{Regex::kChoice};
  if (all->type != Regex::kChoice) return false;
  for (const Regex& sequence : all->operands) {
    if (sequence.type != Regex::kSequence) return false;
    size_t begin = 0, end = sequence.operands.size();
    const bool from_start = end > begin && sequence.operands[begin].type == Regex::kBegin;
    begin += from_start;
    const bool to_end = end > begin && sequence.operands[end - 1].type == Regex::kEnd;
    end -= to_end;
    Regex one{Regex::kSequence};
    if (!from_start) one.operands.push_back(Regex::anything());
    for (size_t i = begin; i < end; ++i) {
      if (sequence.operands[i].has_assertions()) return false;
      one.operands.push_back(sequence.operands[i]);
    }
    if (!to_end) one.operands.push_back(Regex::anything());
    whole.operands.push_back(std::move(one));
  }
  return true;
}

}  // namespace gemma4
