// Regex: a regular expression as a tree. The syntax is ECMA-262's, as JSON Schema's `pattern` has it, with the
// spellings of Python and Rust that mean the same (\A, \Z, (?P<name>...), an (?i) or (?s) at the beginning). What no
// automaton can decide (back references, lookbehind, atomic groups) is an UnsupportedRegex unless it is asked for, what
// is no expression at all an Error. Errors are those of ECMA-262 with the flag u, which JSON Schema recommends; but
// brackets, braces and escapes that can be read in one way only are read so.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/work_budget.h"

namespace gemma4 {

// Code points first .. last, both included.
using PointRange = std::pair<uint32_t, uint32_t>;
constexpr uint32_t kLastPoint = 0x10ffff;
constexpr uint32_t kNoLimit = ~uint32_t{0};

// Sorted, without overlap.
std::vector<PointRange> complement_of(std::vector<PointRange> ranges);

struct UnsupportedRegex : Error {
  using Error::Error;
};

struct Regex {
  enum Type {
    kCharacters,
    kSequence,
    kChoice,
    kRepeat,
    kLookahead,
    kBegin,
    kEnd,
    kWordBoundary,
    // Of parse_whole_regex() only:
    kGroup,  // number `least`
    kBackReference,
    kLookbehind,
    kAtomic  // the first way in which its operand matches is the only one
  } type = kSequence;
  std::vector<PointRange> ranges = {};  // kCharacters: sorted, without overlap
  std::vector<Regex> operands = {};     // of kSequence and kChoice; kRepeat, kGroup and what looks around have one
  uint32_t least = 0, most = 0;         // kRepeat; most may be kNoLimit. kGroup, kBackReference: the group's number
  bool negative = false;                // kLookahead, kLookbehind, kWordBoundary
  bool lazy = false;                    // kRepeat
  bool any_case = false;                // kBackReference: ASCII letters match in either case
  static Regex repeat(Regex one, uint32_t least, uint32_t most);
  static Regex anything();      // any number of any characters
  bool may_be_empty() const;    // true where that cannot be told
  bool has_assertions() const;  // lookaheads, anchors, word boundaries
};

// `what` begins an error's sentence: "schema #/properties/a". Nesting is bounded.
Regex parse_regex(std::string_view text, const std::string& what, WorkBudget& budget);

// With groups, back references, lookbehind and atomic groups, for BacktrackingMatcher.
Regex parse_whole_regex(std::string_view text, const std::string& what, WorkBudget& budget);

// An expression without those, which matches all that `regex` does, and may match more.
Regex without_references(const Regex& regex);

// The strings that `regex` is found in (as `pattern` means it) as an expression of whole strings without anchors, where
// anchors stand at the ends of its alternatives only. False where they stand elsewhere, or where there are lookaheads.
bool as_whole_string(const Regex& regex, Regex& whole);

}  // namespace gemma4
