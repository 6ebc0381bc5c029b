// BacktrackingMatcher: whether a regular expression with back references or lookbehind is found in a text, by the rules
// of ECMA-262: a lookbehind may have any length and is read backwards, a reference to a group that took no part matches
// the empty text, groups within a repeat are forgotten at each round. Atomic groups and possessive repeats are those of
// Python and Perl. Used to check finished values, where no automaton can decide. Work is charged to the budget, as such
// expressions may take exponential time; nothing recurses on the text.
// Why not PCRE2: Debian 12's has no lookbehind of variable length and keeps groups over the rounds of a repeat, and the
// dialect here (what `pattern` means to the masks, and its classes of Unicode) has a parser already.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/work_budget.h"
#include "text/schema/regex.h"

namespace gemma4 {

class BacktrackingMatcher {
 public:
  // `regex` of parse_whole_regex(). Throws the budget's errors, as found_in() does.
  BacktrackingMatcher(const Regex& regex, WorkBudget& budget);

  bool found_in(std::string_view text);  // UTF-8

 private:
  enum Op : uint8_t {
    kSet,
    kSplit,
    kJump,
    kSave,
    kReference,
    kStart,
    kFinish,
    kBoundary,
    kLook,
    kOnce,
    kBegin,
    kLoop,
    kRound,
    kAccept
  };
  struct Instruction {
    Op op;
    bool backward = false, flag = false;  // flag: negative, lazy, or any case
    int32_t a = 0, b = 0;                 // a set, register, group or loop; where else to go on
  };
  struct Repeat {
    uint32_t least, most;
    int32_t count, begin;                   // registers: rounds that began; where the last one did
    int32_t first_capture, after_captures;  // registers of the groups within
  };
  // What to go back to: another way (reg < 0), or the old value of a register.
  struct Trail {
    int32_t reg, pc;
    int64_t value;  // of the register; or the place in the text
  };

  int32_t emit(Instruction one);
  void compile(const Regex& regex, bool backward);
  void compile_apart(Instruction one, const Regex& regex, bool backward);
  void compile_repeat(const Regex& regex, bool backward);
  bool run(int32_t pc, int64_t& at, std::string_view text);
  bool step(int32_t& pc, int64_t& at, std::string_view text);  // false: this way is over
  bool go_back(size_t bottom, int32_t& pc, int64_t& at);
  bool loop(const Instruction& one, int32_t& pc, int64_t at);
  bool look(const Instruction& one, int32_t pc, int64_t at, std::string_view text);
  bool read(const Instruction& one, int64_t& at, std::string_view text) const;
  bool read_group(const Instruction& one, int64_t& at, std::string_view text) const;
  void set(int32_t reg, int64_t value);

  WorkBudget& budget_;
  HeldBytes held_;
  std::vector<Instruction> program_;
  std::vector<std::vector<PointRange>> sets_;
  std::vector<Repeat> repeats_;
  std::vector<int64_t> registers_;  // two for each group: where it begins and ends, or -1; then those of repeats
  std::vector<Trail> trail_;
  size_t trail_held_ = 0;
};

}  // namespace gemma4
