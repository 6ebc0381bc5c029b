#include "cli/commands/answer_printer.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>

#include "base/json.h"
#include "text/chat/call_parser.h"

namespace gemma4 {
namespace {

void put(const std::string& text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(std::string("standard output cannot be written: ") + std::strerror(errno));
  }
}

std::string tool_call_line(const ToolCall& call) {
  // The arguments are already one line of JSON, with every digit that the model wrote.
  // A call that the limit cut is closed.
  const std::string name = nlohmann::json(call.name).dump(), arguments = close_arguments(call.arguments);
  return R"({"tool_call":{"name":)" + name + R"(,"arguments":)" + arguments + "}}\n";
}

Answer receive(Engine& engine, Request request, const std::function<void(const Event&)>& show,
               const std::atomic<bool>* interrupt) {
  const auto queue = std::make_shared<EventQueue>(size_t{64} << 20);
  const uint64_t id = engine.submit(std::move(request), [queue](const Event& event) { queue->push(event); });
  Answer answer;
  bool cancelled = false;
  while (true) {
    if (interrupt && *interrupt && !cancelled) engine.cancel(id), cancelled = true;
    const auto event = queue->pop(std::chrono::milliseconds(50));
    if (!event) continue;
    switch (event->type) {
      case Event::kText:
        answer.text += event->text;
        break;
      case Event::kThinking:
        answer.thinking += event->text;
        break;
      case Event::kPromptLogprobs:
      case Event::kToolCallBegin:
      case Event::kToolCallArguments:
        continue;  // kToolCall has all of it
      case Event::kToolCall:
        answer.tool_calls.push_back(event->tool_call);
        break;
      case Event::kDone:
        answer.finish = event->finish;
        answer.usage = event->usage;
        return answer;
      case Event::kError:
        if (event->device) throw DeviceError(event->text);
        throw Error(event->text);
    }
    show(*event);
  }
}

}  // namespace

Answer collect_answer(Engine& engine, Request request) {
  return receive(
      engine, std::move(request), [](const Event&) {}, nullptr);
}

Answer print_answer(Engine& engine, Request request, bool show_thinking, const std::atomic<bool>* interrupt,
                    const TerminalStyle& style) {
  const bool terminal = isatty(STDOUT_FILENO), thoughts_to_terminal = isatty(STDERR_FILENO);
  bool in_thought = false, at_line_start = true;
  const auto show = [&](const Event& event) {
    if (event.type == Event::kThinking) {
      if (!show_thinking) return;
      const std::string text = thoughts_to_terminal ? without_controls(event.text) : event.text;
      std::fprintf(stderr, "%s%s%s%s", style.dim, in_thought ? "" : "[thinking] ", text.c_str(), style.plain);
      in_thought = true;
      return;
    }
    if (in_thought) std::fprintf(stderr, "\n%s[answer]%s\n", style.dim, style.plain);
    in_thought = false;
    const std::string text =
        event.type == Event::kToolCall ? (at_line_start ? "" : "\n") + tool_call_line(event.tool_call) : event.text;
    put(terminal ? without_controls(text) : text);
    at_line_start = text.ends_with('\n');
  };
  Answer answer = receive(engine, std::move(request), show, interrupt);
  if (in_thought) std::fputc('\n', stderr);
  if (!at_line_start) put("\n");
  return answer;
}

}  // namespace gemma4
