// Pattern: a regular expression that a recipe matches names against. In a file of its own, because what reads <regex>
// takes a compiler longer than all the rest of a recipe.
#pragma once

#include <memory>
#include <string>

namespace gemma4 {

class Pattern {
 public:
  // ECMAScript without back-references. `what` names it in errors. Throws Error.
  Pattern(const std::string& text, const std::string& what);

  bool matches(const std::string& name) const;  // the whole of it; the time is a polynomial of its length

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace gemma4
