// The command line of a command: what it takes, and how it is read. CLI11 does the work, in command_line.cc alone:
// wherever its header is included it takes the compiler ten seconds.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace gemma4 {

class CommandLine {
 public:
  // What is said of one option besides its name. Each returns the option.
  class Option {
   public:
    explicit Option(CLI::Option* option) : option_(option) {}
    Option& required();
    Option& show_default();  // in the help
    Option& between(int least, int most);
    Option& between(double least, double most);
    Option& positive();
    Option& not_negative();
    Option& one_of(std::initializer_list<const char*> values);
    Option& may_repeat();           // of a vector: each adds to it
    Option& separated_by_commas();  // of a vector
    Option& excludes(const std::string& other);

   private:
    CLI::Option* option_;
  };

  // `name` as messages show it: "gemma4 run".
  CommandLine(const std::string& name, const std::string& about);
  ~CommandLine();

  // `names`: "--model,--bf16", or "PATH" for one that has its place. `value` keeps what it holds where the option is
  // not given, and is written by parse(). T: a string, a path, a number, an optional or a vector of those:
  // command_line.cc lists them.
  template <typename T>
  Option option(const std::string& names, T& value, const std::string& help);
  Option flag(const std::string& names, bool& value, const std::string& help);

  // Nothing where the line was read; else the exit code, with help on standard output or one line about the mistake on
  // standard error.
  std::optional<int> parse(int argc, char** argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace gemma4
