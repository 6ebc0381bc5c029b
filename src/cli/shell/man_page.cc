// Manual pages, in the macros of man(7).
#include <algorithm>
#include <sstream>

#include "base/check.h"
#include "cli/command_table.h"
#include "cli/shell/command_list.h"

namespace gemma4 {
namespace {

// Text that troff prints as it stands.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool line_begins = out.empty() || out.back() == '\n';
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      if (line_begins && (c == '.' || c == '\'')) out += "\\&";
      out += c;
    }
  }
  return out;
}

std::string bold(const std::string& text) { return "\\fB" + escaped(text) + "\\fR"; }
std::string italic(const std::string& text) { return "\\fI" + escaped(text) + "\\fR"; }

// Lines that begin with a space are an example, which troff would otherwise fill to a paragraph.
std::string paragraphs(const std::string& text) {
  std::istringstream lines(text);
  std::string out;
  bool example = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(" ") != example) out += example ? ".fi\n" : ".nf\n";
    example = line.starts_with(" ");
    out += line.empty() ? ".PP\n" : escaped(line) + "\n";
  }
  return out + (example ? ".fi\n" : "");
}

std::string head(const std::string& name, const std::string& what) {
  std::string title = name;
  std::ranges::transform(title, title.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  const std::string version = version_text();
  return ".\\\" Printed by `gemma4 man`.\n.TH " + escaped(title) + " 1 \"\" \"" +
         version.substr(0, version.find('\n')) + "\" \"User Commands\"\n.SH NAME\n" + escaped(name) + " \\- " +
         escaped(what) + "\n";
}

std::string option_entry(const OptionInfo& option) {
  std::string names;
  for (const std::string& name : option.names) {
    names += (names.empty() ? "" : ", ") + bold(name);
    if (!option.value.empty()) names += " " + italic(option.value);
  }
  if (!option.position.empty()) names += (names.empty() ? "" : ", or ") + italic(option.position);
  std::string help = option.help.empty() ? "" : paragraphs(option.help);
  if (!option.choices.empty()) {
    help += "One of:";
    for (const std::string& choice : option.choices) help += " " + escaped(choice);
    help += ".\n";
  }
  if (!option.shown_default.empty()) help += "Default: " + escaped(option.shown_default) + ".\n";
  return ".TP\n" + names + "\n" + help;
}

std::string command_page(const ListedCommand& command) {
  const CommandInfo& info = command.info;
  std::string page = head("gemma4-" + command.name, command.what) + ".SH SYNOPSIS\n" + bold("gemma4 " + command.name) +
                     " [" + italic("OPTIONS") + "]";
  for (const OptionInfo& option : info.options) {
    if (option.position.empty()) continue;
    page += " " + (option.required ? italic(option.position) : "[" + italic(option.position) + "]");
  }
  page += "\n.SH DESCRIPTION\n" + paragraphs(info.about) + ".SH OPTIONS\n";
  for (const OptionInfo& option : info.options) page += option_entry(option);
  return page + ".SH SEE ALSO\n" + bold("gemma4") + "(1)\n";
}

constexpr const char* kAfterCommands =
    ".SH EXIT STATUS\n"
    "0: done. 1: done, but the result is bad. 2: bad input, which one sentence on standard error names.\n"
    "3: a device failed, or a file changed while it was in use.\n"
    ".SH ENVIRONMENT\n"
    ".TP\n\\fBNO_COLOR\\fR\nIf it is set, nothing has colours.\n"
    ".TP\n\\fBXDG_STATE_HOME\\fR\nWhere the history of chats is kept, in the folder gemma4 (default:\n"
    "\\(ti/.local/state).\n"
    ".TP\n\\fBGEMMA4_API_KEY\\fR\nA key that \\fBgemma4 serve\\fR asks for.\n";

std::string program_page(const std::vector<ListedCommand>& commands) {
  std::string page = head("gemma4", "run Google's Gemma 4 31B on one machine") + ".SH SYNOPSIS\n" + bold("gemma4") +
                     " " + italic("COMMAND") + " [" + italic("OPTIONS") + "]\n.br\n" + bold("gemma4 --version") +
                     "\n.br\n" + bold("gemma4 help") + " [" + italic("COMMAND") + "]\n.SH COMMANDS\n";
  for (const ListedCommand& command : commands) {
    page += ".TP\n" + bold("gemma4 " + command.name) + "\n" + escaped(command.what) +
            (command.page ? ": \\fBgemma4\\-" + escaped(command.name) + "\\fR(1)\n" : "\n");
  }
  return page + kAfterCommands;
}

}  // namespace

std::string manual_page(const std::string& name, const std::vector<ListedCommand>& commands) {
  if (name.empty()) return program_page(commands);
  const auto found = std::ranges::find(commands, name, &ListedCommand::name);
  if (found == commands.end()) throw Error("there is no command '" + name + "'");
  return command_page(*found);
}

}  // namespace gemma4
