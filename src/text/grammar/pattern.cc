// JSON Schema's `pattern`: compiles a subset of ECMA-262 regular expressions to an automaton.
#include <algorithm>
#include <memory>

#include "base/check.h"
#include "base/utf8.h"
#include "text/grammar/lexical.h"

namespace gemma4 {
namespace {

constexpr int kPatternDepthMax = 100;
constexpr uint32_t kRepeatMax = 100000;
constexpr uint64_t kMostMax = 1'000'000'000;  // no text is longer
constexpr uint64_t kPatternSteps = 100;       // of a WorkBudget, for each byte
constexpr uint32_t kLastPoint = 0x10ffff;

struct Regex {
  enum Type { kCharacters, kSequence, kChoice, kRepeat } type = kSequence;
  std::vector<PointRange> ranges;  // kCharacters
  std::vector<Regex> operands;     // of all other types; kRepeat has one
  uint32_t least = 0, most = 0;    // kRepeat

  bool may_be_empty() const {
    const auto empty = [](const Regex& operand) { return operand.may_be_empty(); };
    if (type == kCharacters) return false;
    if (type == kSequence) return std::all_of(operands.begin(), operands.end(), empty);
    if (type == kChoice) return std::any_of(operands.begin(), operands.end(), empty);
    return least == 0 || operands[0].may_be_empty();
  }
};

std::vector<PointRange> complement(std::vector<PointRange> ranges) {
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

std::vector<PointRange> named_class(char name) {  // d, w, s and their complements D, W, S; empty for any other name
  std::vector<PointRange> ranges;
  switch (name | 0x20) {
    case 'd':
      ranges = {{'0', '9'}};
      break;
    case 'w':
      ranges = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
      break;
    case 's':
      ranges = {{9, 13}, {' ', ' '}, {0xa0, 0xa0}, {0x2028, 0x2029}};
      break;
    default:
      return {};
  }
  return name & 0x20 ? ranges : complement(ranges);
}

class RegexParser {
 public:
  RegexParser(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  // The whole expression matches anywhere in a string unless its alternatives are anchored.
  Regex parse() {
    Regex all{Regex::kChoice};
    do {
      Regex one{Regex::kSequence};
      if (!accept('^')) one.operands.push_back(anything());
      one.operands.push_back(sequence(0));
      if (!accept('$')) one.operands.push_back(anything());
      all.operands.push_back(std::move(one));
    } while (accept('|'));
    if (at_ != text_.size()) fail("an unmatched ) or an anchor inside");
    return all;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const {
    throw Error(what_ + ": pattern '" + std::string(text_) + "': " + why + " is not implemented");
  }
  bool more() const { return at_ < text_.size(); }
  char peek() const { return more() ? text_[at_] : '\0'; }
  bool accept(char c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  static Regex anything() {
    Regex any{Regex::kCharacters};
    any.ranges = {{0, kLastPoint}};
    Regex repeat{Regex::kRepeat};
    repeat.most = kUnbounded;
    repeat.operands.push_back(std::move(any));
    return repeat;
  }

  Regex choice(int depth) {
    Regex all{Regex::kChoice};
    do {
      all.operands.push_back(sequence(depth));
    } while (accept('|'));
    return all;
  }

  Regex sequence(int depth) {
    if (depth > kPatternDepthMax) fail("so deep a nesting");
    Regex all{Regex::kSequence};
    while (more() && peek() != '|' && peek() != ')' && peek() != '$') {
      Regex one = atom(depth);
      repeat(one);
      all.operands.push_back(std::move(one));
    }
    return all;
  }

  void repeat(Regex& one) {
    uint32_t least = 0, most = kUnbounded;
    if (accept('+')) {
      least = 1;
    } else if (accept('?')) {
      most = 1;
    } else if (accept('{')) {
      least = most = count();
      if (accept(',')) most = peek() == '}' ? kUnbounded : count();
      if (!accept('}') || most < least) fail("such a repeat");
    } else if (!accept('*')) {
      return;
    }
    accept('?');  // lazy: the same strings match
    if (peek() == '*' || peek() == '+' || peek() == '{') fail("a repeat of a repeat");
    const Regex& inner = only_operand(one);
    if (inner.type == Regex::kRepeat && inner.least == 0) {  // (x{0,m}){l,n} is x{0,mn}
      Regex flat = inner;
      const uint64_t product = most == 0 || inner.most == 0 ? 0 : uint64_t{inner.most} * most;
      flat.most = product > kMostMax ? kUnbounded : static_cast<uint32_t>(product);
      one = std::move(flat);
      return;
    }
    Regex repeated{Regex::kRepeat};
    repeated.least = one.may_be_empty() ? 0 : least;
    repeated.most = most;
    repeated.operands.push_back(std::move(one));
    one = std::move(repeated);
  }

  // What a group of one thing holds.
  static const Regex& only_operand(const Regex& regex) {
    const Regex* at = &regex;
    while ((at->type == Regex::kChoice || at->type == Regex::kSequence) && at->operands.size() == 1) {
      at = &at->operands[0];
    }
    return *at;
  }

  uint32_t count() {
    uint32_t value = 0;
    const size_t begin = at_;
    while (more() && peek() >= '0' && peek() <= '9' && value <= kRepeatMax) {
      value = value * 10 + static_cast<uint32_t>(text_[at_++] - '0');
    }
    if (at_ == begin || value > kRepeatMax) fail("such a repeat");
    return value;
  }

  Regex atom(int depth) {
    if (accept('(')) {
      if (accept('?') && !accept(':')) fail("a group that begins with (?");
      Regex inner = choice(depth + 1);
      if (!accept(')')) fail("an anchor inside a group, or a group without an end,");
      return inner;
    }
    Regex one{Regex::kCharacters};
    if (accept('[')) {
      one.ranges = brackets();
    } else if (accept('.')) {
      one.ranges = complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
    } else if (accept('\\')) {
      one.ranges = escaped();
    } else if (std::string_view("^*+?{").find(peek()) != std::string_view::npos) {
      fail(std::string("a ") + peek() + " here");
    } else {
      const uint32_t point = literal();
      one.ranges = {{point, point}};
    }
    return one;
  }

  uint32_t literal() {
    const size_t length = utf8_length(text_.substr(at_));
    if (length == 0) fail("text that is not UTF-8");
    const uint32_t point = utf8_point(text_.substr(at_));
    at_ += length;
    return point;
  }

  std::vector<PointRange> escaped() {  // after the backslash
    if (!more()) fail("a backslash at the end");
    if (auto ranges = named_class(peek()); !ranges.empty()) {
      ++at_;
      return ranges;
    }
    const char c = text_[at_];
    constexpr std::string_view kNames = "nrtfv0", kValues("\n\r\t\f\v\0", 6);
    uint32_t point = 0;
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      ++at_, point = static_cast<unsigned char>(kValues[i]);
    } else if (c == 'u' || c == 'x') {
      ++at_, point = hex(c == 'u' ? 4 : 2);
    } else if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      fail(std::string("\\") + c);
    } else {
      point = literal();
    }
    return {{point, point}};
  }

  uint32_t hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'                     ? c - '0'
                        : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10
                                                                 : -1;
      if (digit < 0) fail("such an escape");
      value = value * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    return value;
  }

  std::vector<PointRange> brackets() {  // after the [
    std::vector<PointRange> ranges;
    const bool negated = accept('^');
    while (!accept(']')) {
      if (!more()) fail("a [ without its ]");
      std::vector<PointRange> first = accept('\\') ? escaped() : std::vector<PointRange>{one_point()};
      const bool single = first.size() == 1 && first[0].first == first[0].second;
      if (single && peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        const PointRange last = accept('\\') ? escaped()[0] : one_point();
        if (last.first != last.second || last.first < first[0].first) fail("such a range");
        first[0].second = last.first;
      }
      ranges.insert(ranges.end(), first.begin(), first.end());
    }
    return negated ? complement(std::move(ranges)) : complement(complement(std::move(ranges)));  // twice: sorted and without overlap
  }

  PointRange one_point() {
    const uint32_t point = literal();
    return {point, point};
  }

  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
};

int build(const Regex& regex, PushdownAutomaton& automaton, LexicalGrammar& text, int next) {
  switch (regex.type) {
    case Regex::kCharacters:
      return text.characters(regex.ranges, next);
    case Regex::kSequence:
      for (size_t i = regex.operands.size(); i-- > 0;) next = build(regex.operands[i], automaton, text, next);
      return next;
    case Regex::kChoice: {
      std::vector<int> choices;
      for (const Regex& operand : regex.operands) choices.push_back(build(operand, automaton, text, next));
      return automaton.split(std::move(choices));
    }
    case Regex::kRepeat:
      if (regex.least == 0 && regex.most == kUnbounded) {
        const int again = automaton.reserve();
        automaton.set(again, automaton.split({next, build(regex.operands[0], automaton, text, again)}));
        return again;
      }
      return automaton.loop(build(regex.operands[0], automaton, text, automaton.finish()), regex.least, regex.most,
                            next);
  }
  return next;
}

}  // namespace

int LexicalGrammar::pattern(std::string_view regex, const std::string& what, int next) {
  a_.budget().charge(regex.size() * kPatternSteps);
  HeldBytes held(a_.budget());
  held.add(regex.size() * sizeof(Regex) * 2);
  const Regex parsed = RegexParser(regex, what).parse();
  return open_quote(build(parsed, a_, *this, close_quote(next)));
}

}  // namespace gemma4
