#include "cli/terminal/style.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace gemma4 {

bool is_smart_terminal(int descriptor) {
  const char* kind = std::getenv("TERM");
  return isatty(descriptor) && kind != nullptr && *kind != '\0' && std::string_view(kind) != "dumb";
}

TerminalStyle TerminalStyle::of(int descriptor) {
  const char* none = std::getenv("NO_COLOR");
  if (!is_smart_terminal(descriptor) || (none != nullptr && *none != '\0')) return {};
  return {"\033[2m", "\033[1;36m", "\033[33m", "\033[0m"};
}

std::string without_controls(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0) {
      ++i;  // U+0080 to U+009F
    } else if ((c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t') {
      out += text[i];
    }
  }
  return out;
}

}  // namespace gemma4
