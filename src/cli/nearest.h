// Nearest: which of the known names did the user mean? For "did you mean" after a mistyped command, option or chat
// command.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

// The name with the fewest edits (a character inserted, dropped or replaced, two neighbours swapped) from `word`; the
// first of equals. A name that `word` begins counts as near. Empty where none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& names);

}  // namespace gemma4
