// Numbers, with or without bounds. Digits are compared with those of the bounds as they are written: a digit is allowed
// only if a number within the bounds begins with the digits so far.
#include <map>
#include <tuple>

#include "base/check.h"
#include "text/grammar/lexical.h"
#include "text/schema/schema_keywords.h"

namespace gemma4 {
namespace {

constexpr size_t kWholeMax = 18;     // digits before the point
constexpr size_t kFractionMax = 40;  // of a bound

// A magnitude: digits before the point without leading zeros, and after it without trailing zeros.
struct Decimal {
  std::string whole = "0", fraction;

  bool operator<(const Decimal& o) const {
    if (whole.size() != o.whole.size()) return whole.size() < o.whole.size();
    return std::tie(whole, fraction) < std::tie(o.whole, o.fraction);
  }
  bool operator==(const Decimal& o) const { return whole == o.whole && fraction == o.fraction; }
};

Decimal magnitude(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  Decimal result;
  const size_t point = text.find('.');
  result.whole = text.substr(0, point);
  if (point != std::string_view::npos) result.fraction = text.substr(point + 1);
  while (result.whole.size() > 1 && result.whole[0] == '0') result.whole.erase(0, 1);
  while (result.fraction.ends_with('0')) result.fraction.pop_back();
  if (result.whole.size() > kWholeMax || result.fraction.size() > kFractionMax) {
    throw UnenforceableSchema("the bound " + std::string(text) + " has too many digits");
  }
  return result;
}

struct Unit {  // numbers are multiples of `of` / 10^digits; 0: of nothing
  uint32_t of = 0, digits = 0;
  bool any() const { return of == 0; }
};

// The magnitudes from low to high, without sign and exponent. A node's state is how many digits are still to come,
// whether those so far are a prefix of each bound, and what they leave when divided by the unit.
class RangeBuilder {
 public:
  RangeBuilder(PushdownAutomaton& automaton, bool integer, Unit unit, Decimal low, bool above,
               std::optional<Decimal> high, bool below, int next)
      : a_(automaton),
        integer_(integer),
        unit_(unit),
        low_(std::move(low)),
        high_(std::move(high)),
        above_(above),
        below_(below),
        next_(next) {}

  // -1: no number lies between the bounds.
  int build() {
    std::vector<int> choices;
    const auto add = [&](int node) {
      if (node >= 0) choices.push_back(node);
    };
    // As long as a bound, digit by digit beside it; and of the lengths in between, any digits.
    const size_t shortest = low_.whole.size();
    // Units make a node for each remainder, so long numbers are left out where there are many.
    const size_t most = std::max(shortest, unit_.of > 100 ? kWholeMax - 6 : kWholeMax);
    const size_t longest = high_ ? high_->whole.size() : most;
    const bool one_length = high_ && longest == shortest;
    if (longest >= shortest) add(whole(shortest, 0, {true, one_length, 0}));
    if (high_ && longest > shortest) add(whole(longest, 0, {false, true, 0}));
    between_ = {shortest + 1, high_ ? longest - 1 : longest};
    if (between_.first <= between_.second) add(any_whole(0, 0));
    return choices.empty() ? -1 : a_.split(std::move(choices));
  }

 private:
  struct Progress {
    bool as_low, as_high;
    uint32_t rest;  // of the digits so far
    auto operator<=>(const Progress&) const = default;
  };

  int split_or_none(std::vector<int> choices) { return choices.empty() ? -1 : a_.split(std::move(choices)); }

  uint32_t then(uint32_t rest, char digit) const {
    return unit_.any() ? 0 : (rest * 10 + static_cast<uint32_t>(digit - '0')) % unit_.of;
  }

  int whole(size_t length, size_t at, Progress now) {
    if (at == length) return end_of_whole(now);
    // Past the bound, only how many digits are to come matters.
    const bool free = !now.as_low && !now.as_high;
    const auto key = std::make_tuple(length - at, free ? 0 : at, now);
    if (const auto found = whole_.find(key); found != whole_.end()) return found->second;
    std::vector<int> choices;
    for (char digit = at == 0 && length > 1 ? '1' : '0'; digit <= '9'; ++digit) {
      if (now.as_low && digit < low_.whole[at]) continue;
      if (now.as_high && digit > high_->whole[at]) break;
      const int rest = whole(
          length, at + 1,
          {now.as_low && digit == low_.whole[at], now.as_high && digit == high_->whole[at], then(now.rest, digit)});
      if (rest >= 0) choices.push_back(a_.byte(digit, rest));
    }
    return whole_[key] = split_or_none(std::move(choices));
  }

  // After `at` digits of a number whose length is in between_.
  int any_whole(size_t at, uint32_t rest) {
    const auto key = std::make_pair(at, rest);
    if (const auto found = any_whole_.find(key); found != any_whole_.end()) return found->second;
    std::vector<int> choices;
    if (at >= between_.first) {
      if (const int end = end_of_whole({false, false, rest}); end >= 0) choices.push_back(end);
    }
    for (char digit = at == 0 ? '1' : '0'; digit <= '9' && at < between_.second; ++digit) {
      if (const int node = any_whole(at + 1, then(rest, digit)); node >= 0) choices.push_back(a_.byte(digit, node));
    }
    return any_whole_[key] = split_or_none(std::move(choices));
  }

  int end_of_whole(Progress now) {
    std::vector<int> choices;
    if (may_end(0, now)) choices.push_back(next_);
    if (!integer_) {
      if (const int rest = fraction(0, now); rest >= 0) choices.push_back(a_.byte('.', rest));
    }
    return split_or_none(std::move(choices));
  }

  // Whether the number may end after `at` digits of the fraction.
  bool may_end(size_t at, Progress now) const {
    if (now.as_low && (at < low_.fraction.size() || above_)) return false;
    if (now.as_high && at >= high_->fraction.size() && below_) return false;
    for (; !unit_.any() && at < unit_.digits; ++at) now.rest = then(now.rest, '0');
    return now.rest == 0;
  }

  static char digit_of(const std::string& digits, size_t at) { return at < digits.size() ? digits[at] : '0'; }

  int fraction(size_t at, Progress now) {
    if (now.as_high && below_ && at >= high_->fraction.size()) return -1;  // the excluded bound, or above
    if (!unit_.any() && at >= unit_.digits) return -1;
    const size_t known = std::max(low_.fraction.size(), high_ ? high_->fraction.size() : 0);
    // Past the digits of both bounds all states are alike, but those of a unit.
    const size_t position = unit_.any() ? std::min(at, known) : at;
    const auto key = std::make_tuple(position, size_t{0}, now);
    if (const auto found = fraction_.find(key); found != fraction_.end()) return found->second;
    const bool cycle = unit_.any() && position == known;
    const int node = cycle ? a_.reserve() : -1;
    if (cycle) fraction_[key] = node;
    std::vector<int> choices;
    for (char digit = '0'; digit <= '9'; ++digit) {
      if (now.as_low && digit < digit_of(low_.fraction, at)) continue;
      if (now.as_high && digit > digit_of(high_->fraction, at)) break;
      const Progress after = {now.as_low && digit == digit_of(low_.fraction, at),
                              now.as_high && digit == digit_of(high_->fraction, at), then(now.rest, digit)};
      std::vector<int> ways;
      if (may_end(at + 1, after)) ways.push_back(next_);
      if (const int rest = fraction(at + 1, after); rest >= 0) ways.push_back(rest);
      if (!ways.empty()) choices.push_back(a_.byte(digit, a_.split(std::move(ways))));
    }
    if (!cycle) return fraction_[key] = split_or_none(std::move(choices));
    a_.set(node, a_.split(std::move(choices)));  // a zero always fits
    return node;
  }

  PushdownAutomaton& a_;
  bool integer_;
  Unit unit_;
  Decimal low_;
  std::optional<Decimal> high_;
  bool above_, below_;
  int next_;
  std::map<std::tuple<size_t, size_t, Progress>, int> whole_, fraction_;
  std::pair<size_t, size_t> between_;  // lengths that are not those of the bounds
  std::map<std::pair<size_t, uint32_t>, int> any_whole_;
};

}  // namespace

int LexicalGrammar::digits(uint32_t least, uint32_t most, int next) {
  return a_.loop(a_.bytes(byte_range('0', '9'), a_.finish()), least, most, next);
}

int LexicalGrammar::number(bool integer, int next) {
  int tail = next;
  if (!integer) {
    const int exponent_digits = digits(1, 2, next);  // three may not fit a double
    const int sign =
        a_.split({exponent_digits, a_.bytes(byte_range('+', '+') | byte_range('-', '-'), exponent_digits)});
    const int exponent = a_.split({next, a_.bytes(byte_range('e', 'e') | byte_range('E', 'E'), sign)});
    tail = a_.split({exponent, a_.byte('.', digits(1, kFractionMax, exponent))});
  }
  const int whole = a_.split({a_.byte('0', tail), a_.bytes(byte_range('1', '9'), digits(0, kWholeMax - 1, tail))});
  return a_.split({whole, a_.byte('-', whole)});
}

int LexicalGrammar::number(bool integer, const Bounds& bounds, int next) {
  if (!bounds.least && !bounds.most && bounds.unit == 0) return number(integer, next);
  const auto negative = [](const std::optional<std::string>& bound) { return bound && bound->starts_with('-'); };
  std::vector<int> choices;
  const auto add = [&](bool minus, Decimal low, bool above, std::optional<Decimal> high, bool below) {
    if (high && (*high < low || (*high == low && (above || below)))) return;
    const int node = RangeBuilder(a_, integer, {bounds.unit, bounds.unit_digits}, std::move(low), above,
                                  std::move(high), below, next)
                         .build();
    if (node >= 0) choices.push_back(minus ? a_.byte('-', node) : node);
  };
  const std::optional<Decimal> least = bounds.least ? std::optional(magnitude(*bounds.least)) : std::nullopt;
  const std::optional<Decimal> most = bounds.most ? std::optional(magnitude(*bounds.most)) : std::nullopt;
  if (!negative(bounds.most)) {  // 0 and above
    const bool from_zero = !least || negative(bounds.least);
    add(false, from_zero ? Decimal() : *least, !from_zero && bounds.above, most, bounds.below);
  }
  if (!least || negative(bounds.least)) {  // below 0: the order of magnitudes is reversed
    const bool to_zero = !negative(bounds.most);
    add(true, to_zero ? Decimal() : *most, to_zero || bounds.below, least, bounds.above);
  }
  return choices.empty() ? -1 : a_.split(std::move(choices));
}

}  // namespace gemma4
