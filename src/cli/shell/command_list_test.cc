// Completion and manual pages name every option that --help lists, and shells and troff can read them.
#include "cli/shell/command_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>

#include "base/check.h"
#include "cli/command_table.h"

namespace gemma4 {
namespace {

// The options in the text that `gemma4 COMMAND --help` prints: independent of describe().
std::set<std::string> options_of_help(const Command& command) {
  char name[] = "x", help[] = "--help";
  char* argv[] = {name, help, nullptr};
  testing::internal::CaptureStdout();
  EXPECT_EQ(command.run(2, argv), kExitOk);
  const std::string text = testing::internal::GetCapturedStdout();
  std::set<std::string> options;
  const std::regex line("\n  (-[^ ]*)");  // "  -m,--model,--bf16 PATH   the help"
  for (std::sregex_iterator at(text.begin(), text.end(), line), end; at != end; ++at) {
    const std::string names = (*at)[1];
    const std::regex name_in("-[-a-zA-Z0-9]+");
    for (std::sregex_iterator one(names.begin(), names.end(), name_in); one != end; ++one) options.insert(one->str());
  }
  return options;
}

std::string troff(std::string text) {
  for (size_t at = 0; (at = text.find('-', at)) != std::string::npos; at += 2) text.insert(at, "\\");
  return text;
}

TEST(CommandList, HasEveryCommandAndOptionOfTheHelp) {
  const auto commands = list_commands();
  ASSERT_EQ(commands.size(), command_table().size());
  const std::string bash = completion_script("bash", commands), zsh = completion_script("zsh", commands),
                    fish = completion_script("fish", commands);
  for (size_t i = 0; i < commands.size(); ++i) {
    const ListedCommand& command = commands[i];
    const std::set<std::string> options = options_of_help(command_table()[i]);
    EXPECT_GE(options.size(), 1u) << command.name;
    const auto section = [&](const std::string& script, const std::string& begin, const std::string& end) {
      const size_t from = script.find(begin);
      return from == std::string::npos ? "" : script.substr(from, script.find(end, from + 1) - from);
    };
    const std::string in_bash = section(bash, "\n    " + command.name + ")\n", "\n      fi ;;\n"),
                      in_zsh = section(zsh, "\n    " + command.name + ")\n", ";;\n    "),
                      page = manual_page(command.name, commands);
    for (const std::string& option : options) {
      EXPECT_TRUE(std::regex_search(in_bash, std::regex("[ \"]" + option + "[ \"]"))) << command.name << option;
      const std::string zsh_name = option + (option[1] == '-' ? "" : "[");  // after what it excludes, or after a star
      EXPECT_TRUE(in_zsh.find(")" + zsh_name) != std::string::npos || in_zsh.find("*" + zsh_name) != std::string::npos)
          << command.name << option << in_zsh;
      const std::string fish_name = option[1] == '-' ? " -l " + option.substr(2) : " -s " + option.substr(1);
      EXPECT_TRUE(std::regex_search(fish, std::regex("__gemma4_is " + command.name + "'[^\n]*" + fish_name + " ")))
          << command.name << option;
      EXPECT_NE(page.find("\\fB" + troff(option) + "\\fR"), std::string::npos) << command.name << option;
    }
  }
  EXPECT_GE(options_of_help(*find_command("run")).size(), 40u) << "the help is read";
}

// A recipe is a name or a file, a type one of a list, a command one of the table.
TEST(CommandList, NamesThatAnOptionTakesAreOffered) {
  const auto commands = list_commands();
  const std::string recipes = "default sensitive sensitive_gs64 sensitive_allgs64 balanced";
  const std::string bash = completion_script("bash", commands), zsh = completion_script("zsh", commands),
                    fish = completion_script("fish", commands);
  EXPECT_NE(bash.find("--quant-recipe|--recipe) _gemma4_words_and_files \"" + recipes + "\"; return"), bash.npos);
  EXPECT_NE(zsh.find("--quant-recipe=[one of default sensitive"), zsh.npos);
  EXPECT_NE(zsh.find(":PATH:{_gemma4_words_and_files " + recipes + "}'"), zsh.npos);
  EXPECT_NE(fish.find("-l quant-recipe -l recipe -r -F -a '" + recipes + "'"), fish.npos);
  for (const char* words :
       {"--drafter) _gemma4_words_and_files \"ngram\"", "--gpu-layers) _gemma4_words \"auto\"",
        "--bits) _gemma4_words \"2 3 4 5 6 8\"", "--group) _gemma4_words \"32 64 128\"",
        "--type) _gemma4_words \"f32 f16 bf16 ", "--format) _gemma4_words_and_files \"bf16 q4_0 "}) {
    EXPECT_NE(bash.find(words), bash.npos) << words;
  }
  EXPECT_NE(zsh.find("'1:choice:(run serve "), zsh.npos);
  EXPECT_NE(fish.find("'__gemma4_is man' -a 'run serve "), fish.npos);
  EXPECT_NE(fish.find("'__gemma4_is help' -a 'run serve "), fish.npos);
}

TEST(CommandList, RefusesOtherShellsAndCommands) {
  EXPECT_THROW(completion_script("csh", {}), Error);
  EXPECT_THROW(manual_page("nothing", list_commands()), Error);
}

TEST(CommandList, TextsAreEscaped) {
  const OptionInfo option = {{"--it"}, "",    "TEXT", {}, "it's [odd]: \\ 'a'\n.so /etc/passwd\n'quoted",
                             "",       false, false};
  const std::vector<ListedCommand> commands = {{"one", "what's [it]: for", {"About.\n\n.it \\n", {option}}}};
  const std::string page = manual_page("one", commands);
  EXPECT_NE(page.find("\\&.so"), std::string::npos) << page;
  EXPECT_NE(page.find("\\&'quoted"), std::string::npos) << page;
  EXPECT_NE(page.find("\\&.it \\en"), std::string::npos) << page;
  const std::string example = manual_page("one", {{"one", "x", {"Two\nlines.\n\n  one a\n  one b\n\nMore.", {}}}});
  EXPECT_NE(example.find("Two\nlines.\n.PP\n.nf\n  one a\n  one b\n.fi\n.PP\nMore.\n"), std::string::npos) << example;
  EXPECT_NE(completion_script("zsh", commands).find("[it'\\''s \\[odd\\]\\: \\\\ '\\''a'\\'']"), std::string::npos)
      << completion_script("zsh", commands);
  EXPECT_NE(completion_script("fish", commands).find("'it\\'s [odd]: \\\\ \\'a\\''"), std::string::npos)
      << completion_script("fish", commands);
}

TEST(CommandList, BriefIsTheFirstSentence) {
  EXPECT_EQ(brief("A file. It is read"), "A file");
  EXPECT_EQ(brief("Of 0.5; more"), "Of 0.5");
  EXPECT_EQ(brief("One line\nand more"), "One line");
}

}  // namespace
}  // namespace gemma4
