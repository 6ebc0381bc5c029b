#include "cli/commands/chat.h"

#include <csignal>
#include <cstdio>
#include <iostream>

#include "base/file.h"
#include "image/decode.h"

namespace gemma4 {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

constexpr const char* kHelp =
    "  /image FILE   show a picture with your next message\n"
    "  /think        let the model think before it answers, or stop letting it\n"
    "  /clear        forget the conversation\n"
    "  /quit         leave (also Ctrl-D)\n"
    "  a line that ends with \\ goes on in the next; Ctrl-C stops an answer\n";

bool read_line(std::string& line) {
  line.clear();
  const char* mark = "> ";
  while (true) {
    std::fputs(mark, stderr);
    std::string part;
    if (!std::getline(std::cin, part)) return false;
    if (part.ends_with('\\')) {
      line += part.substr(0, part.size() - 1) + "\n";
      mark = ". ";
      continue;
    }
    line += part;
    return true;
  }
}

struct Conversation {
  explicit Conversation(const Request& base) : request(base), first_messages(base.messages.size()) {
    pending.swap(request.images);
  }

  // Adds the user's message with the pending pictures.
  void say(const std::string& text) {
    Message message;
    message.role = "user";
    for (std::string& image : pending) {
      message.content.push_back({ContentPart::kImage, ""});
      request.images.push_back(std::move(image));
    }
    pending.clear();
    message.content.push_back({ContentPart::kText, text});
    request.messages.push_back(std::move(message));
  }

  void hear(const Answer& answer) {
    Message message = Message::text("assistant", answer.text);
    message.tool_calls = answer.tool_calls;
    request.messages.push_back(std::move(message));
  }

  // Removes the last message and its pictures.
  void unsay() {
    for (const ContentPart& part : request.messages.back().content) {
      if (part.type == ContentPart::kImage) request.images.pop_back();
    }
    request.messages.pop_back();
  }

  void clear() {
    request.messages.resize(first_messages);
    request.images.clear();
    pending.clear();
  }

  Request request;
  size_t first_messages;
  std::vector<std::string> pending;  // pictures for the next message
};

// False if the line is a message, not a command.
bool command(const std::string& line, Conversation& conversation, bool& quit) {
  if (!line.starts_with('/')) return false;
  if (line == "/quit" || line == "/exit") {
    quit = true;
  } else if (line == "/clear") {
    conversation.clear();
  } else if (line == "/think") {
    bool& think = conversation.request.chat.enable_thinking;
    think = !think;
    std::fprintf(stderr, "thinking is %s\n", think ? "on" : "off");
  } else if (line.starts_with("/image ")) {
    conversation.pending.push_back(read_file(line.substr(7), kMaxImageFileBytes));
  } else {
    std::fputs(kHelp, stderr);
  }
  return true;
}

}  // namespace

int chat(Engine& engine, const Request& base, const std::function<void(const Answer&)>& report) {
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) { interrupted = true; };
  sigaction(SIGINT, &action, &before);
  std::fputs("Type a message; /help lists the commands.\n", stderr);
  Conversation conversation(base);
  std::string line;
  bool quit = false;
  while (!quit && read_line(line)) {
    if (line.empty()) continue;
    try {
      if (command(line, conversation, quit)) continue;
      conversation.say(line);
      interrupted = false;
      try {
        const Answer answer = print_answer(engine, conversation.request, true, &interrupted);
        conversation.hear(answer);
        report(answer);
      } catch (...) {
        conversation.unsay();
        throw;
      }
    } catch (const DeviceError&) {
      sigaction(SIGINT, &before, nullptr);
      throw;
    } catch (const Error& error) {
      std::fprintf(stderr, "gemma4: %s\n", error.what());
    }
  }
  std::fputc('\n', stderr);
  sigaction(SIGINT, &before, nullptr);
  return kExitOk;
}

}  // namespace gemma4
