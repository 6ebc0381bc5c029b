// AnswerPrinter: prints an answer while it is generated. Text goes to standard output as whole UTF-8 characters, and
// each tool call as one line of JSON. Thoughts go to standard error. A terminal gets no control characters of the
// model's. Throws Error if standard output cannot be written.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "cli/terminal/style.h"
#include "engine/engine.h"
#include "engine/event_queue.h"

namespace gemma4 {

struct Answer {
  std::string text, thinking;
  std::vector<ToolCall> tool_calls;
  Finish finish = Finish::kStop;
  Usage usage;
};

// Submits the request and prints its answer to the end. Cancels it when `interrupt` becomes true. Throws Error
// (DeviceError if the device failed).
Answer print_answer(Engine& engine, Request request, bool show_thinking, const std::atomic<bool>* interrupt,
                    const TerminalStyle& style = {});

// The same without printing.
Answer collect_answer(Engine& engine, Request request);

}  // namespace gemma4
