#include "cli/terminal/chat_commands.h"

#include <algorithm>
#include <cstdio>

#include "base/check.h"
#include "cli/nearest.h"
#include "cli/terminal/chat_settings.h"
#include "cli/terminal/path_text.h"

namespace gemma4 {
namespace {

using Kind = ChatCommandKind;

enum class Argument { kNone, kFile, kSetting, kSwitch, kText };

struct ChatCommand {
  const char *name, *argument, *what;
  Kind kind;
  Argument completes;
};

constexpr ChatCommand kChatCommands[] = {
    {"/image", "FILE", "show a picture with your next message; off: take all back", Kind::kImage, Argument::kFile},
    {"/system", "TEXT", "what the model is told about itself; off: nothing", Kind::kSystem, Argument::kText},
    {"/set", "NAME VALUE", "temperature, seed, stats, ...; alone: lists them", Kind::kSet, Argument::kSetting},
    {"/retry", "", "answer the last message again", Kind::kRetry, Argument::kNone},
    {"/undo", "", "forget the last message and its answer", Kind::kUndo, Argument::kNone},
    {"/save", "[--force] FILE", "write the conversation", Kind::kSave, Argument::kFile},
    {"/load", "FILE", "go on with a conversation that was saved", Kind::kLoad, Argument::kFile},
    {"/tools", "FILE", "tools that the model may call, as --tools; off: none", Kind::kTools, Argument::kFile},
    {"/result", "TEXT", "what the called tool gave, as JSON or text", Kind::kResult, Argument::kText},
    {"/think", "[on|off]", "let the model think before it answers", Kind::kThink, Argument::kSwitch},
    {"/clear", "", "forget the conversation", Kind::kClear, Argument::kNone},
    {"/help", "", "this list", Kind::kHelp, Argument::kNone},
    {"/quit", "", "leave (also Ctrl-D, and Ctrl-C twice)", Kind::kQuit, Argument::kNone},
    {"/exit", "", "", Kind::kQuit, Argument::kNone},
    {"/bye", "", "", Kind::kQuit, Argument::kNone},
};

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin, end - begin + 1);
}

std::vector<std::string> beginning(const std::vector<std::string>& words, std::string_view with) {
  std::vector<std::string> found;
  std::ranges::copy_if(words, std::back_inserter(found), [&](const auto& word) { return word.starts_with(with); });
  return found;
}

std::vector<std::string> command_names() {
  std::vector<std::string> names;
  for (const ChatCommand& command : kChatCommands) names.emplace_back(command.name);
  return names;
}

LineCompletion complete_setting(std::string_view typed) {
  const size_t space = typed.find(' ');
  if (space == std::string_view::npos) return {typed.size(), beginning(setting_names(), typed)};
  const std::string_view value = typed.substr(space + 1);
  return {value.size(), beginning(setting_values(std::string(typed.substr(0, space))), value)};
}

}  // namespace

bool is_chat_command(std::string_view line) {
  return line.starts_with('/') && line.find('\n') == std::string_view::npos;
}

ChatCommandLine parse_chat_command(std::string_view line) {
  const size_t space = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view name = line.substr(0, space);
  for (const ChatCommand& command : kChatCommands) {
    if (name != command.name) continue;
    const std::string argument(trimmed(line.substr(space)));
    if (command.completes == Argument::kNone && !argument.empty())
      throw Error(std::string(name) + " takes no argument");
    return {command.kind, argument};
  }
  const std::string near = nearest(name, command_names());
  throw Error(std::string(name) + " is no command; " +
              (near.empty() ? "/help lists them, and a message may begin with a space" : "did you mean " + near + "?"));
}

std::string chat_help() {
  std::string text;
  for (const ChatCommand& command : kChatCommands) {
    if (*command.what == '\0') continue;
    char line[160];
    std::snprintf(line, sizeof(line), "  %-8s%-15s %s\n", command.name, command.argument, command.what);
    text += line;
  }
  return text +
         "  A line that ends with \\ goes on in the next; so does one with Alt-Enter. What is pasted is one message.\n"
         "  Ctrl-C stops an answer; Tab completes commands and file names; Ctrl-R searches earlier lines.\n";
}

LineCompletion complete_chat_line(const std::string& before) {
  if (!is_chat_command(before)) return {};
  const size_t space = before.find(' ');
  if (space == std::string::npos) return {before.size(), beginning(command_names(), before)};
  const auto command = std::ranges::find(kChatCommands, std::string_view(before).substr(0, space), &ChatCommand::name);
  if (command == std::end(kChatCommands)) return {};
  std::string_view typed = std::string_view(before).substr(space);
  typed.remove_prefix(std::min(typed.find_first_not_of(' '), typed.size()));
  switch (command->completes) {
    case Argument::kFile:
      if (command->kind == Kind::kSave && typed.starts_with("--force ")) typed.remove_prefix(8);
      return {typed.size(), paths_beginning(typed)};
    case Argument::kSetting:
      return complete_setting(typed);
    case Argument::kSwitch:
      return {typed.size(), beginning({"off", "on"}, typed)};
    default:
      return {};
  }
}

}  // namespace gemma4
