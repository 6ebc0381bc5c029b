// The commands of a chat, as the user types them: which there are, which one a line is, and what Tab completes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/terminal/line_editor.h"

namespace gemma4 {

enum class ChatCommandKind {
  kImage,
  kSystem,
  kSet,
  kRetry,
  kUndo,
  kSave,
  kLoad,
  kTools,
  kResult,
  kThink,
  kClear,
  kHelp,
  kQuit
};

struct ChatCommandLine {
  ChatCommandKind kind;
  std::string argument;  // the rest of the line, without spaces around it
};

// Whether the line is a command: it begins with a slash and has one line. A line that begins with a space is a message
// (without the space).
bool is_chat_command(std::string_view line);

// Throws Error, which names the nearest command, where there is no such command.
ChatCommandLine parse_chat_command(std::string_view line);

std::string chat_help();

LineCompletion complete_chat_line(const std::string& before);

}  // namespace gemma4
