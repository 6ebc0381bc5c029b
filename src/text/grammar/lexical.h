// LexicalGrammar: the tokens of the grammars (characters, strings, white space, numbers, patterns), each in JSON's
// syntax (quotes and escapes), in Gemma's (between <|"|> tokens, no escapes), or as plain text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "text/grammar/pushdown_automaton.h"
#include "text/schema/regex.h"
#include "text/schema/string_set.h"

namespace gemma4 {

enum class Syntax { kJson, kGemma, kPlain };

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
  int regex(const Regex& whole, int next);                          // without quotes; has no assertions
  // The strings of a DFA, without quotes, of `least` to `most` code points. -1 where the numbers of code points that it
  // can still read have gaps, so that a string might begin that cannot end.
  int strings_of(const StringSet::Dfa& dfa, uint32_t least, uint32_t most, int next);
  // A string that is not in `names`, for the key of an additional member. In JSON it has no escapes, which could spell
  // one of the names.
  int key_other_than(const std::vector<std::string>& names, int next);
  // The inputs that write exactly this string, quotes included.
  std::vector<int> quoted(std::string_view text) const;

  struct Bounds {
    std::optional<std::string> least, most;  // decimal numbers without exponent
    bool above = false, below = false;       // the bound itself is excluded
    uint32_t unit = 0;                       // the number is a multiple of unit / 10^unit_digits; 0: of nothing
    uint32_t unit_digits = 0;
  };
  int number(bool integer, int next);
  int number(bool integer, const Bounds& bounds, int next);

 private:
  std::vector<uint32_t> made_like(uint32_t maker, const std::vector<PointRange>& ranges) const;
  int utf8(const std::vector<PointRange>& ranges, int next);  // sorted, without overlap
  int escape(int next);
  int digits(uint32_t least, uint32_t most, int next);

  PushdownAutomaton& a_;
  Syntax syntax_;
};

}  // namespace gemma4
