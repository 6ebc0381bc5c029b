// The chat page at "/": its files, which CMake embeds in the program (cmake/embed.cmake).
#pragma once

#include <span>
#include <string_view>

namespace gemma4 {

struct PageFile {
  std::string_view path;  // "/chat.js"
  std::string_view type;  // content type
  std::string_view bytes;
};

std::span<const PageFile> page_files();

}  // namespace gemma4
