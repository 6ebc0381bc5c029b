// AnswerPrinter: shows one answer while it is made. The answer goes to standard output: its text as it comes, whole
// UTF-8 characters, and each tool call as one line of JSON. Thoughts go to standard error. Throws Error where standard
// output cannot be written.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/event_queue.h"

namespace gemma4 {

struct Answer {
  std::string text, thinking;
  std::vector<ToolCall> tool_calls;
  Finish finish = Finish::kStop;
  Usage usage;
};

// Submits the request and prints its answer until it is over. Where `interrupt` becomes true the answer is cancelled.
// Throws Error (DeviceError where the device failed).
Answer print_answer(Engine& engine, Request request, bool show_thinking, const std::atomic<bool>* interrupt);

// The same with nothing printed.
Answer collect_answer(Engine& engine, Request request);

}  // namespace gemma4
