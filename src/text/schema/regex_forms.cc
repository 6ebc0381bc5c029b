// Regex: what is known of an expression, and other forms of it.
#include <algorithm>

#include "text/schema/regex.h"

namespace gemma4 {
namespace {

constexpr uint64_t kMostMax = 1'000'000'000;  // no text is longer

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
  if (type >= kLookahead && type != kGroup && type != kBackReference && type != kAtomic) return true;
  return std::any_of(operands.begin(), operands.end(), [](const Regex& operand) { return operand.has_assertions(); });
}

static bool has_references(const Regex& regex) {
  return regex.type == Regex::kBackReference || regex.type == Regex::kLookbehind || regex.type == Regex::kAtomic ||
         std::any_of(regex.operands.begin(), regex.operands.end(), has_references);
}

Regex without_references(const Regex& regex) {
  switch (regex.type) {
    case Regex::kBackReference:
      return Regex::anything();
    case Regex::kLookbehind:
      return {Regex::kSequence};
    case Regex::kGroup:
    case Regex::kAtomic:
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
