// Chat: a conversation on the terminal. Every turn sends the whole conversation. The engine's prefix cache has the keys
// and values of the earlier turns, so only the new tokens are prefilled.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "cli/commands/answer_printer.h"
#include "cli/terminal/chat_settings.h"
#include "engine/engine.h"

namespace gemma4 {

struct ChatFlags {
  ChatView view;
  std::filesystem::path history;              // of what was typed; empty: none is kept
  std::function<void(const Answer&)> report;  // an answer, where view.stats is set
};

// `base`: system message, tools, images and sampling of every turn; its images belong to the first message. Returns an
// exit code.
int chat(Engine& engine, const Request& base, const ChatFlags& flags);

}  // namespace gemma4
