// OtherNames: what users of other programs type. llama.cpp, vLLM and Ollama have options of the same meaning under
// other names, and take pictures elsewhere on the line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

// The name among `names` of what another program calls `word` ("--ctx-size", "-ngl"); empty where there is none.
std::string name_here(std::string_view word, const std::vector<std::string>& names);

// Whether it ends as the names of picture files do (.png, .JPG, ...). The file need not exist.
bool names_picture(std::string_view word);

}  // namespace gemma4
