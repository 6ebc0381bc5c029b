// TerminalStyle: which escape sequences stand around text? None where the text does not go to a terminal, where the
// terminal is dumb, and where the user sets NO_COLOR (no-color.org).
#pragma once

#include <string>

namespace gemma4 {

struct TerminalStyle {
  const char *dim = "", *bold = "", *warn = "", *plain = "";  // `plain` ends each of the others

  static TerminalStyle of(int descriptor);
};

// Whether cursor movement and the like work: a terminal, and no dumb one.
bool is_smart_terminal(int descriptor);

// Text of a model as a terminal may show it: without control characters but line feeds and tabs, so that no answer
// moves the cursor, changes colours or writes to the clipboard.
std::string without_controls(const std::string& text);

}  // namespace gemma4
