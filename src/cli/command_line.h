// CommandLine: declares the options of a command and parses them. It wraps CLI11, whose header only command_line.cc
// includes, because compiling it takes ten seconds. describe() tells the same declarations to completion and manual
// pages.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace gemma4 {

// Of the flag --force, which every command that writes files has.
constexpr const char* kForceHelp =
    "Replace the files that this command writes, where they exist; others in a directory stay";

// What a command declares, as completion scripts and manual pages need it.
struct OptionInfo {
  std::vector<std::string> names;    // "-m", "--model"; empty: positional alone
  std::string position;              // "MODEL"; empty: it has names alone
  std::string value;                 // what kind of value follows: "PATH", "TEXT", "INT"; empty: a flag
  std::vector<std::string> choices;  // the only values; empty: any
  std::string help, shown_default;
  bool required = false, repeats = false;
  std::vector<std::string> suggestions = {};  // what completion offers where other values are possible, too
};
struct CommandInfo {
  std::string about;
  std::vector<OptionInfo> options;
};

// Calls the command up to its CommandLine::parse(), which declares and does not parse; the command then ends. Of one
// thread at a time.
CommandInfo describe(int (*command)(int argc, char** argv));

class CommandLine {
 public:
  // Properties of an option. Each function returns the option.
  class Option {
   public:
    Option(CLI::Option* option, CommandLine& line) : option_(option), line_(line) {}
    Option& required();
    Option& required(const std::string& otherwise);  // the sentence where it is missing
    Option& show_default();                          // in the help
    Option& between(int least, int most);
    Option& between(double least, double most);
    Option& positive();
    Option& not_negative();
    Option& one_of(std::initializer_list<const char*> values);
    Option& suggest(std::vector<std::string> values);  // completion offers them; others are taken, too
    Option& may_repeat();                              // for a vector: each occurrence adds an element
    Option& separated_by_commas();                     // for a vector
    Option& excludes(const std::string& other);
    Option& needs(const std::string& other);                                // it means something only beside `other`
    Option& only_with(const std::string& other, const std::string& value);  // or only beside this value of `other`
    Option& not_with(const std::string& other, const std::string& value);   // or beside all but this value
    Option& may_be_empty();  // "" means something; otherwise an empty value is refused
    Option& bytes();         // a number, or one with K, M, G or T (powers of 1024)
    Option& file();          // text that names a file; paths do anyway

   private:
    CLI::Option* option_;
    CommandLine& line_;
  };

  // `name` as messages show it: "gemma4 run".
  CommandLine(const std::string& name, const std::string& about);
  ~CommandLine();

  // `names`: "--model,--bf16", or "PATH" for a positional argument, or both. parse() writes `value` if the option is
  // given; otherwise it is left as it is. T is a string, a path, a number, or an optional or vector of those;
  // command_line.cc lists the types. An empty value is refused, and what is not a decimal number where T is one.
  template <typename T>
  Option option(const std::string& names, T& value, const std::string& help);
  Option flag(const std::string& names, bool& value, const std::string& help);

  // Parses the line. If the command must not run, returns its exit code, after printing help to standard output or one
  // line about the error to standard error.
  std::optional<int> parse(int argc, char** argv);

  const std::string& name() const { return name_; }

 private:
  struct Condition {
    const CLI::Option* option;
    std::string other, value;
  };

  struct Suggestions {
    const CLI::Option* option;
    std::vector<std::string> values;
  };

  std::string unexpected(const std::vector<std::string>& words) const;
  CommandInfo info() const;
  std::vector<std::string> words_of(int argc, char** argv) const;
  void check_conditions() const;
  std::optional<std::string> missing(const std::string& complaint) const;

  std::string name_;
  std::unique_ptr<CLI::App> app_;
  std::vector<Condition> conditions_, exclusions_;  // of only_with() and not_with()
  std::vector<Suggestions> suggestions_;
  std::vector<std::pair<const CLI::Option*, std::string>> missing_;  // of required(otherwise)
};

}  // namespace gemma4
