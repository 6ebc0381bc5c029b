// The lexical parts of the grammars: characters, strings, white space, numbers, patterns; each in JSON's spelling
// (quotes and escapes) or in Gemma's (between <|"|> tokens, no escapes).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

enum class Spelling { kJson, kGemma };

// Code points first .. last, both included.
using PointRange = std::pair<uint32_t, uint32_t>;

class TextGrammar {
 public:
  TextGrammar(Automaton& automaton, Spelling spelling) : a_(automaton), spelling_(spelling) {}

  // Nothing, one space, or a newline and what indents the next line. Bounded, so that no model can write white space
  // for ever. Gemma's spelling has none.
  int space(int next);
  int open_quote(int next);
  int close_quote(int next) { return open_quote(next); }
  int character(int next);                                          // any, of a string
  int characters(const std::vector<PointRange>& ranges, int next);  // one of these, of a string
  int string(uint32_t least, uint32_t most, int next);              // with its quotes; lengths in code points
  // Throws Error, naming `what`, at what is outside the subset: ^ $ . [] () | * + ? {m,n} \d \w \s and escapes.
  int pattern(std::string_view regex, const std::string& what, int next);  // with its quotes
  // A string that is none of `names`, for a further member's key. JSON: without escapes, so that it cannot spell one.
  int key_other_than(const std::vector<std::string>& names, int next);
  // The inputs that spell exactly this string, quotes included.
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

  Automaton& a_;
  Spelling spelling_;
};

}  // namespace gemma4
