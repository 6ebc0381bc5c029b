// Paths as people type them and as terminals drop them: in quotes, with backslashes before spaces, with ~ for the home.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

// The path that all of `text` names. Outside quotes a backslash takes the next character as it is, and spaces inside
// belong to the path. Throws Error where a quote is not closed.
std::string typed_path(std::string_view text);

std::string expand_home(const std::string& path);

// `path` as typed_path() reads it, with a backslash before what needs one.
std::string typeable_path(const std::string& path);

// Files and folders (which end in /) whose path begins as the typed `text`, as texts to type, in order. Hidden ones
// only where a dot was typed.
std::vector<std::string> paths_beginning(std::string_view text);

}  // namespace gemma4
