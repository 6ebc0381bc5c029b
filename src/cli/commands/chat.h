// Chat: a conversation on the terminal. Every turn sends the whole conversation. The engine's prefix cache has the keys
// and values of the earlier turns, so only the new tokens are prefilled.
#pragma once

#include <functional>
#include <string>

#include "cli/commands/answer_printer.h"
#include "engine/engine.h"

namespace gemma4 {

// `base`: system message, tools, images and sampling of every turn; its images belong to the first message. `report` is
// called with each answer. Returns an exit code.
int chat(Engine& engine, const Request& base, const std::function<void(const Answer&)>& report);

}  // namespace gemma4
