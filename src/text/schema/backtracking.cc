#include "text/schema/backtracking.h"

#include <algorithm>

#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr size_t kInstructionsMax = 20'000;
constexpr uint64_t kInstructionBytes = 32, kTrailAtOnce = 4096;

uint32_t groups_of(const Regex& regex) {
  uint32_t most = regex.type == Regex::kGroup ? regex.least : 0;
  for (const Regex& operand : regex.operands) most = std::max(most, groups_of(operand));
  return most;
}

uint32_t first_group(const Regex& regex) {
  uint32_t least = regex.type == Regex::kGroup ? regex.least : kNoLimit;
  for (const Regex& operand : regex.operands) least = std::min(least, first_group(operand));
  return least;
}

bool is_word(std::string_view text, int64_t at) {
  if (at < 0 || at >= static_cast<int64_t>(text.size())) return false;
  const char c = text[static_cast<size_t>(at)], small = static_cast<char>(c | 0x20);
  return (c >= '0' && c <= '9') || c == '_' || (small >= 'a' && small <= 'z');
}

char small_letter(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

}  // namespace

BacktrackingMatcher::BacktrackingMatcher(const Regex& regex, WorkBudget& budget) : budget_(budget), held_(budget) {
  registers_.resize((size_t{groups_of(regex)} + 1) * 2);
  compile(regex, false);
  emit({kAccept});
}

int32_t BacktrackingMatcher::emit(Instruction one) {
  if (program_.size() >= kInstructionsMax) throw BudgetError("a pattern is too large to be checked");
  budget_.charge(20);
  held_.add(kInstructionBytes);
  program_.push_back(one);
  return static_cast<int32_t>(program_.size()) - 1;
}

void BacktrackingMatcher::compile(const Regex& regex, bool backward) {
  const auto here = [&] { return static_cast<int32_t>(program_.size()); };
  const auto at = [&](int32_t i) -> Instruction& { return program_[static_cast<size_t>(i)]; };
  switch (regex.type) {
    case Regex::kCharacters:
      sets_.push_back(regex.ranges);
      emit({kSet, backward, false, static_cast<int32_t>(sets_.size()) - 1});
      break;
    case Regex::kSequence:
      for (size_t i = 0; i < regex.operands.size(); ++i) {
        compile(regex.operands[backward ? regex.operands.size() - 1 - i : i], backward);
      }
      break;
    case Regex::kChoice: {
      std::vector<int32_t> ends;
      for (size_t i = 0; i + 1 < regex.operands.size(); ++i) {
        const int32_t split = emit({kSplit});
        compile(regex.operands[i], backward);
        ends.push_back(emit({kJump}));
        at(split).b = here();
      }
      if (!regex.operands.empty()) compile(regex.operands.back(), backward);
      for (const int32_t end : ends) at(end).b = here();
      break;
    }
    case Regex::kRepeat:
      compile_repeat(regex, backward);
      break;
    case Regex::kGroup: {
      const auto reg = static_cast<int32_t>(regex.least * 2);
      emit({kSave, backward, false, backward ? reg + 1 : reg});
      compile(regex.operands[0], backward);
      emit({kSave, backward, false, backward ? reg : reg + 1});
      break;
    }
    case Regex::kBackReference:
      emit({kReference, backward, regex.any_case, static_cast<int32_t>(regex.least * 2)});
      break;
    case Regex::kLookahead:
    case Regex::kLookbehind:
      compile_apart({kLook, false, regex.negative}, regex.operands[0], regex.type == Regex::kLookbehind);
      break;
    case Regex::kAtomic:
      compile_apart({kOnce}, regex.operands[0], backward);
      break;
    case Regex::kBegin:
      emit({kStart});
      break;
    case Regex::kEnd:
      emit({kFinish});
      break;
    case Regex::kWordBoundary:
      emit({kBoundary, false, regex.negative});
      break;
  }
}

// What `one` runs by itself, up to a kAccept.
void BacktrackingMatcher::compile_apart(Instruction one, const Regex& regex, bool backward) {
  const int32_t begin = emit(one);
  compile(regex, backward);
  emit({kAccept});
  program_[static_cast<size_t>(begin)].b = static_cast<int32_t>(program_.size());
}

void BacktrackingMatcher::compile_repeat(const Regex& regex, bool backward) {
  const auto number = static_cast<int32_t>(repeats_.size());
  const auto count = static_cast<int32_t>(registers_.size());
  registers_.resize(registers_.size() + 2);
  const uint32_t first = first_group(regex), last = groups_of(regex);
  const bool none = last == 0;
  repeats_.push_back({regex.least, regex.most, count, count + 1, none ? 0 : static_cast<int32_t>(first * 2),
                      none ? 0 : static_cast<int32_t>(last * 2 + 2)});
  emit({kBegin, false, false, number});
  const int32_t loop = emit({kLoop, false, regex.lazy, number});
  emit({kRound, false, false, number});
  compile(regex.operands[0], backward);
  emit({kJump, false, false, 0, loop});
  program_[static_cast<size_t>(loop)].b = static_cast<int32_t>(program_.size());
}

bool BacktrackingMatcher::found_in(std::string_view text) {
  for (size_t start = 0; start <= text.size(); start += std::max<size_t>(utf8_length(text.substr(start)), 1)) {
    std::fill(registers_.begin(), registers_.end(), -1);
    trail_.clear();
    auto at = static_cast<int64_t>(start);
    if (run(0, at, text)) return true;
  }
  return false;
}

// From `pc` to kAccept, where it leaves `at`. What it leaves on the trail are registers alone: ways that were not taken
// are forgotten.
bool BacktrackingMatcher::run(int32_t pc, int64_t& at, std::string_view text) {
  const size_t bottom = trail_.size();
  uint64_t steps = 0;
  constexpr uint64_t kStepsAtOnce = 256;
  while (program_[static_cast<size_t>(pc)].op != kAccept) {
    if (++steps % kStepsAtOnce == 0) budget_.charge(kStepsAtOnce);
    if (!step(pc, at, text) && !go_back(bottom, pc, at)) {
      budget_.charge(steps % kStepsAtOnce);
      return false;
    }
  }
  budget_.charge(steps % kStepsAtOnce);
  const auto kept = std::remove_if(trail_.begin() + static_cast<std::ptrdiff_t>(bottom), trail_.end(),
                                   [](const Trail& one) { return one.reg < 0; });
  trail_.erase(kept, trail_.end());
  return true;
}

bool BacktrackingMatcher::go_back(size_t bottom, int32_t& pc, int64_t& at) {
  while (trail_.size() > bottom) {
    const Trail last = trail_.back();
    trail_.pop_back();
    if (last.reg >= 0) {
      registers_[static_cast<size_t>(last.reg)] = last.value;
      continue;
    }
    pc = last.pc;
    at = last.value;
    return true;
  }
  return false;
}

void BacktrackingMatcher::set(int32_t reg, int64_t value) {
  int64_t& now = registers_[static_cast<size_t>(reg)];
  if (now == value) return;
  trail_.push_back({reg, 0, now});
  now = value;
}

bool BacktrackingMatcher::step(int32_t& pc, int64_t& at, std::string_view text) {
  if (trail_.size() > trail_held_) {
    held_.add(kTrailAtOnce * sizeof(Trail));
    trail_held_ += kTrailAtOnce;
  }
  const Instruction one = program_[static_cast<size_t>(pc++)];
  switch (one.op) {
    case kSet:
      return read(one, at, text);
    case kSplit:
      trail_.push_back({-1, one.b, at});
      return true;
    case kJump:
      pc = one.b;
      return true;
    case kSave:
      set(one.a, at);
      return true;
    case kReference:
      return read_group(one, at, text);
    case kStart:
      return at == 0;
    case kFinish:
      return at == static_cast<int64_t>(text.size());
    case kBoundary:
      return (is_word(text, at - 1) != is_word(text, at)) != one.flag;
    case kLook: {
      const bool found = look(one, pc, at, text);
      pc = one.b;
      return found;
    }
    case kOnce: {
      const bool found = run(pc, at, text);
      pc = one.b;
      return found;
    }
    case kBegin:
      set(repeats_[static_cast<size_t>(one.a)].count, 0);
      set(repeats_[static_cast<size_t>(one.a)].begin, -1);
      return true;
    case kLoop:
      return loop(one, pc, at);
    case kRound: {
      const Repeat& repeat = repeats_[static_cast<size_t>(one.a)];
      set(repeat.count, registers_[static_cast<size_t>(repeat.count)] + 1);
      set(repeat.begin, at);
      for (int32_t reg = repeat.first_capture; reg < repeat.after_captures; ++reg) set(reg, -1);
      return true;
    }
    case kAccept:
      break;
  }
  return false;
}

// Before each round of a repeat.
bool BacktrackingMatcher::loop(const Instruction& one, int32_t& pc, int64_t at) {
  const Repeat& repeat = repeats_[static_cast<size_t>(one.a)];
  const auto count = static_cast<uint32_t>(registers_[static_cast<size_t>(repeat.count)]);
  if (count < repeat.least) return true;
  // A round that is not needed must take something.
  if (count > repeat.least && registers_[static_cast<size_t>(repeat.begin)] == at) return false;
  if (count >= repeat.most && repeat.most != kNoLimit) {
    pc = one.b;
    return true;
  }
  trail_.push_back({-1, one.flag ? pc : one.b, at});
  if (one.flag) pc = one.b;
  return true;
}

bool BacktrackingMatcher::look(const Instruction& one, int32_t pc, int64_t at, std::string_view text) {
  const size_t bottom = trail_.size();
  const bool found = run(pc, at, text);
  if (!one.flag) return found;
  while (trail_.size() > bottom) {  // groups within it hold nothing
    registers_[static_cast<size_t>(trail_.back().reg)] = trail_.back().value;
    trail_.pop_back();
  }
  return !found;
}

bool BacktrackingMatcher::read(const Instruction& one, int64_t& at, std::string_view text) const {
  auto from = static_cast<size_t>(at);
  if (one.backward) {
    if (from == 0) return false;
    do {
      --from;
    } while (from > 0 && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80);
  } else if (from >= text.size()) {
    return false;
  }
  const std::string_view rest = text.substr(from);
  const uint32_t point = utf8_point(rest);
  const std::vector<PointRange>& ranges = sets_[static_cast<size_t>(one.a)];
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), PointRange(point, kLastPoint));
  if (after == ranges.begin() || std::prev(after)->second < point) return false;
  at = static_cast<int64_t>(one.backward ? from : from + std::max<size_t>(utf8_length(rest), 1));
  return true;
}

bool BacktrackingMatcher::read_group(const Instruction& one, int64_t& at, std::string_view text) const {
  const int64_t begin = registers_[static_cast<size_t>(one.a)], end = registers_[static_cast<size_t>(one.a) + 1];
  if (begin < 0 || end < 0) return true;
  const int64_t length = end - begin, from = one.backward ? at - length : at;
  if (from < 0 || from + length > static_cast<int64_t>(text.size())) return false;
  budget_.charge(static_cast<uint64_t>(length) / 16);
  const std::string_view group = text.substr(static_cast<size_t>(begin), static_cast<size_t>(length)),
                         other = text.substr(static_cast<size_t>(from), static_cast<size_t>(length));
  const bool same = one.flag ? std::equal(group.begin(), group.end(), other.begin(),
                                          [](char a, char b) { return small_letter(a) == small_letter(b); })
                             : group == other;
  if (same) at = one.backward ? from : from + length;
  return same;
}

}  // namespace gemma4
