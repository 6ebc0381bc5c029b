// Chat: a conversation on the terminal. It keeps what was said and, through the engine's prefix cache, its keys: a turn
// reads only what is new.
#pragma once

#include <functional>
#include <string>

#include "cli/commands/answer_printer.h"
#include "engine/engine.h"

namespace gemma4 {

// `base`: system message, tools, images and sampling of every turn; its images belong to the first message. `report` is
// told of each answer. Returns an exit code.
int chat(Engine& engine, const Request& base, const std::function<void(const Answer&)>& report);

}  // namespace gemma4
