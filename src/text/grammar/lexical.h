// LexicalGrammar: the tokens of the grammars (characters, strings, white space, numbers, patterns), each in JSON's
// syntax (quotes and escapes) or in Gemma's (between <|"|> tokens, no escapes).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

enum class Syntax { kJson, kGemma };

// Code points first .. last, both included.
using PointRange = std::pair<uint32_t, uint32_t>;

class LexicalGrammar {
 public:
  LexicalGrammar(PushdownAutomaton& automaton, Syntax spelling) : a_(automaton), syntax_(spelling) {}

  // Nothing, one space, or a newline and the next line's indentation. Bounded, so that no model can write white space
  // for ever. Gemma's syntax has no white space.
  int space(int next);
  int open_quote(int next);
  int close_quote(int next) { return open_quote(next); }
  int character(int next);                                          // any character of a string
  int characters(const std::vector<PointRange>& ranges, int next);  // one character of a string, of these ranges
  int string(uint32_t least, uint32_t most, int next);              // with its quotes; lengths in code points
  // Supports ^ $ . [] () | * + ? {m,n} \d \w \s and escapes. Throws Error, naming `what`, for anything else.
  int pattern(std::string_view regex, const std::string& what, int next);  // with its quotes
  // A string that is not in `names`, for the key of an additional member. In JSON it has no escapes, which could spell
  // one of the names.
  int key_other_than(const std::vector<std::string>& names, int next);
  // The inputs that write exactly this string, quotes included.
  std::vector<int> quoted(std::string_view text) const;

  struct Bounds {
    std::optional<std::string> least, most;  // decimal numbers without exponent
    bool above = false, below = false;       // the bound itself is excluded
  };
  int number(bool integer, int next);
  int number(bool integer, const Bounds& bounds, int next);

 private:
  int utf8(uint32_t first, uint32_t last, int next);
  int escape(int next);
  int digits(uint32_t least, uint32_t most, int next);

  PushdownAutomaton& a_;
  Syntax syntax_;
};

}  // namespace gemma4
