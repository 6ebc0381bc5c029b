// Numbers, with or without bounds. Digits are compared with those of the bounds as they are written: a digit is allowed
// only if a number within the bounds begins with the digits so far.
#include <map>
#include <tuple>

#include "base/check.h"
#include "text/grammar/lexical.h"

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
    throw Error("the bound " + std::string(text) + " has too many digits");
  }
  return result;
}

// The magnitudes from low to high, without sign and exponent. A node's state is how many digits were written and
// whether they are still a prefix of each bound.
class RangeBuilder {
 public:
  RangeBuilder(PushdownAutomaton& automaton, bool integer, Decimal low, bool above, std::optional<Decimal> high,
               bool below, int next)
      : a_(automaton),
        integer_(integer),
        low_(std::move(low)),
        high_(std::move(high)),
        above_(above),
        below_(below),
        next_(next) {}

  // -1: no number lies between the bounds.
  int build() {
    std::vector<int> choices;
    const size_t longest = high_ ? high_->whole.size() : kWholeMax;
    for (size_t length = low_.whole.size(); length <= longest; ++length) {
      const bool as_low = length == low_.whole.size(), as_high = high_ && length == high_->whole.size();
      if (const int node = whole(length, 0, as_low, as_high); node >= 0) choices.push_back(node);
    }
    return choices.empty() ? -1 : a_.split(std::move(choices));
  }

 private:
  int split_or_none(std::vector<int> choices) { return choices.empty() ? -1 : a_.split(std::move(choices)); }

  int whole(size_t length, size_t at, bool as_low, bool as_high) {
    if (at == length) return end_of_whole(as_low, as_high);
    const auto key = std::make_tuple(length, at, as_low, as_high);
    if (const auto found = whole_.find(key); found != whole_.end()) return found->second;
    std::vector<int> choices;
    for (char digit = at == 0 && length > 1 ? '1' : '0'; digit <= '9'; ++digit) {
      if (as_low && digit < low_.whole[at]) continue;
      if (as_high && digit > high_->whole[at]) break;
      const int rest = whole(length, at + 1, as_low && digit == low_.whole[at], as_high && digit == high_->whole[at]);
      if (rest >= 0) choices.push_back(a_.byte(digit, rest));
    }
    return whole_[key] = split_or_none(std::move(choices));
  }

  int end_of_whole(bool as_low, bool as_high) {
    std::vector<int> choices;
    if (may_end(0, as_low, as_high)) choices.push_back(next_);
    if (!integer_) {
      if (const int rest = fraction(0, as_low, as_high); rest >= 0) choices.push_back(a_.byte('.', rest));
    }
    return split_or_none(std::move(choices));
  }

  // Whether the number may end after `at` digits of the fraction.
  bool may_end(size_t at, bool as_low, bool as_high) const {
    if (as_low && (at < low_.fraction.size() || above_)) return false;
    return !as_high || at < high_->fraction.size() || !below_;
  }

  static char digit_of(const std::string& digits, size_t at) { return at < digits.size() ? digits[at] : '0'; }

  int fraction(size_t at, bool as_low, bool as_high) {
    if (as_high && below_ && at >= high_->fraction.size()) return -1;  // it equals the excluded bound and can only grow
    const size_t known = std::max(low_.fraction.size(), high_ ? high_->fraction.size() : 0);
    const size_t position = std::min(at, known);  // past the digits of both bounds all states are alike
    const auto key = std::make_tuple(position, as_low, as_high);
    if (const auto found = fraction_.find(key); found != fraction_.end()) return found->second;
    const bool cycle = position == known;
    const int node = cycle ? a_.reserve() : -1;
    if (cycle) fraction_[key] = node;
    std::vector<int> choices;
    for (char digit = '0'; digit <= '9'; ++digit) {
      if (as_low && digit < digit_of(low_.fraction, at)) continue;
      if (as_high && digit > digit_of(high_->fraction, at)) break;
      const bool low = as_low && digit == digit_of(low_.fraction, at);
      const bool high = as_high && digit == digit_of(high_->fraction, at);
      std::vector<int> then;
      if (may_end(at + 1, low, high)) then.push_back(next_);
      if (const int rest = fraction(at + 1, low, high); rest >= 0) then.push_back(rest);
      if (!then.empty()) choices.push_back(a_.byte(digit, a_.split(std::move(then))));
    }
    if (!cycle) return fraction_[key] = split_or_none(std::move(choices));
    a_.set(node, a_.split(std::move(choices)));  // a zero always fits
    return node;
  }

  PushdownAutomaton& a_;
  bool integer_;
  Decimal low_;
  std::optional<Decimal> high_;
  bool above_, below_;
  int next_;
  std::map<std::tuple<size_t, size_t, bool, bool>, int> whole_;
  std::map<std::tuple<size_t, bool, bool>, int> fraction_;
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
  if (!bounds.least && !bounds.most) return number(integer, next);
  const auto negative = [](const std::optional<std::string>& bound) { return bound && bound->starts_with('-'); };
  std::vector<int> choices;
  const auto add = [&](bool minus, Decimal low, bool above, std::optional<Decimal> high, bool below) {
    if (high && (*high < low || (*high == low && (above || below)))) return;
    const int node = RangeBuilder(a_, integer, std::move(low), above, std::move(high), below, next).build();
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
  if (choices.empty()) throw Error("minimum and maximum leave no number");
  return a_.split(std::move(choices));
}

}  // namespace gemma4
