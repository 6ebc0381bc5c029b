// Pattern: a regular expression that a recipe matches names against. It has its own file because <regex> takes longer
// to compile than the rest of a recipe.
#pragma once

#include <memory>
#include <string>

namespace gemma4 {

class Pattern {
 public:
  // ECMAScript without back-references. `what` names it in errors. Throws Error.
  Pattern(const std::string& text, const std::string& what);

  bool matches(const std::string& name) const;  // the whole name; the time is polynomial in its length

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace gemma4
