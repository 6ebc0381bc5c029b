#include "cli/commands/chat.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "cli/terminal/chat_commands.h"
#include "cli/terminal/conversation.h"
#include "cli/terminal/line_editor.h"
#include "cli/terminal/path_text.h"
#include "image/decode.h"

namespace gemma4 {
namespace {

std::atomic<bool> interrupted{false};
std::atomic<int> interrupts{0};  // since the answer began
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

// While one lives, Ctrl-C sets the two above.
class InterruptHandler {
 public:
  InterruptHandler() {
    struct sigaction action = {};
    action.sa_handler = [](int) { interrupted = true, ++interrupts; };
    sigaction(SIGINT, &action, &before_);
  }
  ~InterruptHandler() { sigaction(SIGINT, &before_, nullptr); }
  InterruptHandler(const InterruptHandler&) = delete;
  InterruptHandler& operator=(const InterruptHandler&) = delete;

 private:
  struct sigaction before_ = {};
};

class Chat {
 public:
  Chat(Engine& engine, const Request& base, const ChatFlags& flags)
      : engine_(engine),
        base_(base),
        flags_(flags),
        defaults_{engine.generation_config(), engine.options().thinking_budget},
        view_(flags.view),
        style_(TerminalStyle::of(STDERR_FILENO)),
        conversation_(base),
        editor_({flags.history, style_, complete_chat_line, &interrupted}) {}

  int run() {
    say(std::string("Type a message; /help lists the commands.") +
        (editor_.edits()              ? ""
         : line_editor_name().empty() ? " Lines are plain: this build has no libedit."
                                      : " Lines are plain: this is no terminal to edit on."));
    while (!quit_) turn();
    return kExitOk;
  }

 private:
  void turn() {
    interrupted = false;
    std::string text;
    const LineEditor::Result result = editor_.read(text);
    report_history();
    switch (result) {
      case LineEditor::Result::kEnd:
        std::fputc('\n', stderr);
        quit_ = true;
        return;
      case LineEditor::Result::kInterrupted:
        if (leaving_ && text.empty()) {
          quit_ = true;
          return;
        }
        leaving_ = true;
        say("Ctrl-C again leaves, and so do Ctrl-D and /quit.");
        return;
      case LineEditor::Result::kCut:
        complain(
            "the terminal cut a line at 4,095 bytes, so nothing was sent; gemma4 run --prompt-file FILE takes more");
        return;
      case LineEditor::Result::kText:
        leaving_ = false;
        try_to([&] { take(text); });
    }
  }

  void take(const std::string& text) {
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) return;
    if (is_chat_command(text)) return obey(parse_chat_command(text));
    if (!utf8_valid(text)) throw Error("the message is not valid UTF-8");
    retries_ = 0;
    const Conversation::Mark mark = conversation_.mark();
    conversation_.say(text.starts_with(' ') ? text.substr(1) : text);
    ask(mark);
  }

  void obey(const ChatCommandLine& line) {
    const std::string& argument = line.argument;
    switch (line.kind) {
      case ChatCommandKind::kImage:
        return add_image(argument);
      case ChatCommandKind::kSystem:
        return set_system(argument);
      case ChatCommandKind::kSet:
        return set(argument);
      case ChatCommandKind::kRetry:
        return retry();
      case ChatCommandKind::kUndo:
        return undo();
      case ChatCommandKind::kSave:
        return save(argument);
      case ChatCommandKind::kLoad:
        return load(argument);
      case ChatCommandKind::kTools:
        return set_tools(argument);
      case ChatCommandKind::kResult:
        return add_result(argument);
      case ChatCommandKind::kThink:
        return think(argument);
      case ChatCommandKind::kClear:
        return clear();
      case ChatCommandKind::kHelp:
        std::fputs(chat_help().c_str(), stderr);
        return;
      case ChatCommandKind::kQuit:
        quit_ = true;
    }
  }

  // Answers what the conversation ends with. Where that fails, all is as `mark` has it.
  void ask(const Conversation::Mark& mark) {
    Request request = conversation_.request;
    if (request.sampling.seed) *request.sampling.seed += static_cast<uint64_t>(retries_);  // else the same answer
    interrupted = false, interrupts = 0;
    editor_.hide_typing();
    try {
      const Answer answer = print_answer(engine_, std::move(request), view_.thoughts, &interrupted, style_);
      conversation_.hear(answer.text, answer.thinking, answer.tool_calls);
      if (answer.finish == Finish::kCancelled) stopped();
      if (view_.stats) flags_.report(answer);
      if (!conversation_.open_calls().empty()) say("/result TEXT says what the tool gave.");
    } catch (...) {
      conversation_.restore(mark);
      throw;
    }
  }

  void stopped() {
    quit_ = interrupts > 1;
    leaving_ = true;
    say(quit_ ? "stopped" : "stopped; Ctrl-C again leaves");
  }

  void add_image(const std::string& argument) {
    std::vector<std::string>& pending = conversation_.pending;
    if (argument == "off") {
      pending.clear();
    } else if (!argument.empty()) {
      if (!engine_.options().vision) throw Error("this model reads no pictures");
      const std::string path = typed_path(argument);
      std::string bytes = read_file(path, kMaxImageFileBytes);
      ImageSize size;
      try {
        const Image image = decode_image(std::as_bytes(std::span(bytes)));
        size = {image.width, image.height};
      } catch (const Error& error) {
        throw Error(path + ": " + error.what());
      }
      pending.push_back(std::move(bytes));
      say(path + ": " + std::to_string(size.width) + " x " + std::to_string(size.height));
    }
    const size_t count = pending.size();
    say(std::to_string(count) + (count == 1 ? " picture goes" : " pictures go") + " with your next message.");
  }

  void set_system(const std::string& argument) {
    if (!argument.empty()) conversation_.set_system(argument == "off" ? "" : argument);
    const std::string system = conversation_.system();
    say(system.empty() ? "There is no system message." : "The system message is: " + system);
  }

  void set(const std::string& argument) {
    const size_t space = argument.find(' ');
    const std::string name = argument.substr(0, space);
    const size_t value = space == std::string::npos ? argument.size() : argument.find_first_not_of(' ', space);
    if (name.empty()) {
      std::fputs(list_settings(conversation_.request, view_, defaults_).c_str(), stderr);
    } else {
      say(apply_setting(name, argument.substr(value), base_, conversation_.request, view_, defaults_));
    }
  }

  void clear() {
    conversation_.clear();
    std::string stays;
    if (!conversation_.system().empty()) stays += "the system message, ";
    if (!conversation_.request.tools.empty()) stays += "the tools, ";
    say("The conversation is forgotten. What stays: " + stays + "what /set and /think set.");
  }

  void retry() {
    const Conversation::Mark mark = conversation_.mark();
    if (!conversation_.drop_answer()) throw Error("there is no message to answer again");
    ++retries_;
    ask(mark);
  }

  void undo() {
    const std::optional<std::string> text = conversation_.undo();
    if (!text) throw Error("there is no message to forget");
    constexpr size_t kShown = 60;
    const std::string begin = text->substr(0, utf8_complete(text->substr(0, kShown)));
    say("Forgotten: " + without_controls(begin) + (begin.size() < text->size() ? " ..." : ""));
  }

  void save(const std::string& argument) {
    constexpr std::string_view kForce = "--force ";
    const bool force = argument.starts_with(kForce);
    const std::string path = typed_path(force ? argument.substr(kForce.size()) : argument);
    if (path.empty()) throw Error("/save needs the name of a file");
    write_file(path, conversation_.save(), overwrite_if(force));
    say("The conversation is in " + path + "; /load reads it.");
  }

  void load(const std::string& argument) {
    constexpr uint64_t kMost = uint64_t{1} << 30;
    if (argument.empty()) throw Error("/load needs the name of a file");
    const std::string path = typed_path(argument);
    const std::string text = read_file(path, kMost);
    try {
      conversation_.load(text);
    } catch (const Error& error) {
      throw Error(path + " is not a saved conversation: " + error.what());
    }
    say(std::to_string(conversation_.request.messages.size()) + " messages, " +
        std::to_string(conversation_.request.images.size()) + " pictures.");
  }

  void set_tools(const std::string& argument) {
    std::string& tools = conversation_.request.tools;
    if (argument == "off") {
      tools.clear();
    } else if (!argument.empty()) {
      const std::string path = typed_path(argument);
      Request tried;
      tried.messages = {Message::text("user", "Hello")};
      tried.tools = read_file_or_pipe(path);
      try {
        engine_.count_tokens(tried);
      } catch (const Error& error) {
        throw Error(path + ": " + error.what());
      }
      tools = tried.tools;
    }
    std::string names;
    for (const auto& tool : read_json<nlohmann::json>(tools.empty() ? "[]" : tools)) {
      names += " " + tool.value("function", nlohmann::json::object()).value("name", "?");
    }
    say(names.empty() ? "There are no tools." : "Tools:" + names);
  }

  void add_result(const std::string& text) {
    if (text.empty()) throw Error("/result needs what the tool gave");
    const Conversation::Mark mark = conversation_.mark();
    conversation_.add_result(text);
    const std::vector<ToolCall> open = conversation_.open_calls();
    if (open.empty()) return ask(mark);
    say("The result of " + open.front().name + " is next.");
  }

  void think(const std::string& argument) {
    bool& think = conversation_.request.chat.enable_thinking;
    if (argument != "" && argument != "on" && argument != "off") throw Error("/think takes on, off or nothing");
    think = argument.empty() ? !think : argument == "on";
    say(std::string("thinking is ") + (think ? "on" : "off"));
  }

  template <typename Work>
  void try_to(Work work) {
    try {
      work();
    } catch (const DeviceError&) {
      throw;
    } catch (const Error& error) {
      complain(error.what());
    }
  }

  void say(const std::string& sentence) const {
    std::fprintf(stderr, "%s%s%s\n", style_.dim, sentence.c_str(), style_.plain);
  }
  void complain(const std::string& sentence) const {
    std::fprintf(stderr, "%sgemma4: %s%s\n", style_.warn, sentence.c_str(), style_.plain);
  }
  void report_history() {
    if (!reported_ && !editor_.problem().empty()) complain(editor_.problem()), reported_ = true;
  }

  Engine& engine_;
  const Request base_;
  const ChatFlags& flags_;
  const ChatDefaults defaults_;
  ChatView view_;
  const TerminalStyle style_;
  InterruptHandler handler_;
  Conversation conversation_;
  LineEditor editor_;
  int retries_ = 0;
  bool quit_ = false, leaving_ = false, reported_ = false;
};

}  // namespace

int chat(Engine& engine, const Request& base, const ChatFlags& flags) { return Chat(engine, base, flags).run(); }

}  // namespace gemma4
