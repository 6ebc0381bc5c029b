// Completion scripts. bash has words alone; zsh and fish also show the first sentence of each help.
#include <algorithm>

#include "base/check.h"
#include "cli/shell/command_list.h"

namespace gemma4 {
namespace {

std::string joined(const std::vector<std::string>& words, const std::string& between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

bool takes_file(const OptionInfo& option) { return option.value == "PATH"; }

std::vector<std::string> names_of(const std::vector<ListedCommand>& commands) {
  std::vector<std::string> names;
  for (const ListedCommand& command : commands) names.push_back(command.name);
  return names;
}

// The words that are offered for the option's value.
const std::vector<std::string>& words_for(const OptionInfo& option) {
  return option.choices.empty() ? option.suggestions : option.choices;
}

// The words that may stand where no option does; empty: files.
std::vector<std::string> positional_words(const CommandInfo& info) {
  for (const OptionInfo& option : info.options) {
    if (!option.position.empty() && !words_for(option).empty()) return words_for(option);
  }
  return {};
}

std::string bash_value(const OptionInfo& option) {
  const std::string words = "\"" + joined(words_for(option), " ") + "\"; ";
  if (words_for(option).empty()) return takes_file(option) ? "_gemma4_files; " : "";  // else a value to type
  return (takes_file(option) ? "_gemma4_words_and_files " : "_gemma4_words ") + words;
}

std::string bash_command(const ListedCommand& command) {
  std::string values, options;
  for (const OptionInfo& option : command.info.options) {
    if (option.names.empty()) continue;
    options += " " + joined(option.names, " ");
    if (option.value.empty()) continue;
    values += "        " + joined(option.names, "|") + ") " + bash_value(option) + "return ;;\n";
  }
  const auto words = positional_words(command.info);
  const std::string others = words.empty() ? "_gemma4_files" : "_gemma4_words \"" + joined(words, " ") + "\"";
  return "    " + command.name + ")\n      case $before in\n" + values +
         "      esac\n      if [[ $word == -* ]]; then\n" + "        _gemma4_words \"" + options.substr(1) +
         "\"\n      else\n        " + others + "\n      fi ;;\n";
}

std::string bash(const std::vector<ListedCommand>& commands) {
  const std::string names = joined(names_of(commands), " ");
  std::string script =
      "# bash completion for gemma4, printed by `gemma4 completion bash`\n"
      "_gemma4_words() { mapfile -t COMPREPLY < <(compgen -W \"$1\" -- \"$word\"); }\n"
      "_gemma4_files() {\n  compopt -o filenames 2>/dev/null\n"
      "  mapfile -t COMPREPLY < <(compgen -f -- \"$word\")\n}\n"
      "_gemma4_words_and_files() {\n  _gemma4_files\n"
      "  mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W \"$1\" -- \"$word\")\n}\n"
      "_gemma4() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  COMPREPLY=()\n"
      "  # --option=value is three words here\n"
      "  if [[ $word == = ]]; then word=; fi\n"
      "  if [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
      "  if ((COMP_CWORD == 1)); then\n    _gemma4_words \"" +
      names +
      " --help --version\"\n    return\n  fi\n"
      "  case ${COMP_WORDS[1]} in\n";
  for (const ListedCommand& command : commands) script += bash_command(command);
  return script + "  esac\n}\ncomplete -F _gemma4 gemma4\n";
}

// In single quotes, as zsh and fish read them alike but for the quote itself.
std::string escaped(const std::string& text, const std::string& special, const std::string& quote) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += quote;
    } else {
      if (special.find(c) != std::string::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string zsh_option(const OptionInfo& option) {
  const std::string help = escaped(brief(option.help), "[]:\\", "'\\''");
  std::string action;
  if (!option.value.empty()) {
    action = ":" + escaped(option.value, ":", "") + ":";
    const std::string words = joined(words_for(option), " ");
    if (takes_file(option)) {
      action += words.empty() ? "_files" : "{_gemma4_words_and_files " + words + "}";
    } else {
      action += words.empty() ? " " : "(" + words + ")";  // " ": a value to type
    }
  }
  std::string lines;
  for (const std::string& name : option.names) {
    const std::string once = option.repeats ? "*" : "(" + joined(option.names, " ") + ")";
    lines += " \\\n        '" + once + name + (name.starts_with("--") && !action.empty() ? "=" : "") + "[" + help +
             "]" + action + "'";
  }
  return lines;
}

std::string zsh(const std::vector<ListedCommand>& commands) {
  std::string list, cases;
  for (const ListedCommand& command : commands) {
    list += "    '" + command.name + ":" + escaped(command.what, ":\\", "'\\''") + "'\n";
    cases += "    " + command.name + ")\n      _arguments -s -S";
    for (const OptionInfo& option : command.info.options) cases += zsh_option(option);
    const auto words = positional_words(command.info);
    cases += " \\\n        " +
             (words.empty() ? std::string("'*:file:_files'") : "'1:choice:(" + joined(words, " ") + ")'") + " ;;\n";
  }
  return "#compdef gemma4\n# zsh completion for gemma4, printed by `gemma4 completion zsh`\n"
         "_gemma4_words_and_files() { _alternative \"words:word:($*)\" 'files:file:_files' }\n"
         "_gemma4() {\n  local curcontext=\"$curcontext\" command\n  local -a commands\n  commands=(\n" +
         list +
         "  )\n"
         "  if (( CURRENT == 2 )); then\n    _describe command commands\n    return\n  fi\n"
         "  command=$words[2]\n  shift words\n  (( CURRENT-- ))\n  case $command in\n" +
         cases +
         "  esac\n}\n"
         "if [[ $funcstack[1] == _gemma4 ]]; then\n  _gemma4 \"$@\"\nelse\n  compdef _gemma4 gemma4\nfi\n";
}

std::string fish_option(const std::string& command, const OptionInfo& option) {
  std::string line = "complete -c gemma4 -n '__gemma4_is " + command + "'";
  for (const std::string& name : option.names) {
    line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
  }
  const std::string words = joined(words_for(option), " ");
  if (!words.empty()) {
    line += (takes_file(option) ? " -r -F -a '" : " -x -a '") + words + "'";
  } else if (takes_file(option)) {
    line += " -r -F";
  } else if (!option.value.empty()) {
    line += " -x";
  }
  return line + " -d '" + escaped(brief(option.help), "\\", "\\'") + "'\n";
}

std::string fish(const std::vector<ListedCommand>& commands) {
  std::string script =
      "# fish completion for gemma4, printed by `gemma4 completion fish`\n"
      "function __gemma4_is\n  set -l words (commandline -opc)\n"
      "  test (count $words) -gt 1; and test $words[2] = $argv[1]\nend\n"
      "function __gemma4_first\n  test (count (commandline -opc)) -eq 1\nend\n"
      "complete -c gemma4 -f\n";
  for (const ListedCommand& command : commands) {
    script += "complete -c gemma4 -n __gemma4_first -a " + command.name + " -d '" + escaped(command.what, "\\", "\\'") +
              "'\n";
  }
  for (const ListedCommand& command : commands) {
    for (const OptionInfo& option : command.info.options) {
      if (!option.names.empty()) script += fish_option(command.name, option);
    }
    const auto words = positional_words(command.info);
    script += "complete -c gemma4 -n '__gemma4_is " + command.name + "' " +
              (words.empty() ? std::string("-F") : "-a '" + joined(words, " ") + "'") + "\n";
  }
  return script;
}

}  // namespace

std::string completion_script(const std::string& shell, const std::vector<ListedCommand>& commands) {
  if (shell == "bash") return bash(commands);
  if (shell == "zsh") return zsh(commands);
  if (shell == "fish") return fish(commands);
  throw Error("there is completion for bash, zsh and fish, not for " + shell);
}

}  // namespace gemma4
