#include "quant/pattern.h"

#include <regex>
#include <utility>

#include "base/check.h"

namespace gemma4 {

struct Pattern::Compiled {
  explicit Compiled(std::regex compiled) : regex(std::move(compiled)) {}
  std::regex regex;
};

Pattern::Pattern(const std::string& text, const std::string& what) {
  // A matcher that backtracks takes exponential time on patterns like (x+x+)+y; libstdc++'s other one is polynomial, at
  // the price of back-references, which it refuses.
  constexpr auto kSyntax = std::regex_constants::ECMAScript | std::regex_constants::__polynomial;
  try {
    compiled_ = std::make_shared<Compiled>(std::regex(text, kSyntax));
  } catch (const std::regex_error& error) {
    throw Error(what + " is no regular expression (" + error.what() + ")");
  }
}

bool Pattern::matches(const std::string& name) const { return std::regex_match(name, compiled_->regex); }

}  // namespace gemma4
