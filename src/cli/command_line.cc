#include "cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cli/nearest.h"
#include "cli/numbers.h"
#include "cli/other_names.h"

namespace gemma4 {
namespace {

// CLI11's own checks print the largest double in full. Text that is no number is refused by is_a().
CLI::Validator holds(std::function<bool(double)> allowed, const std::string& what, const std::string& help = "") {
  const auto check = [allowed, what](const std::string& text) {
    double value;
    return read_number(text, value) != NumberText::kGood || allowed(value) ? "" : text + " is not " + what;
  };
  return CLI::Validator(check, help);
}

template <typename T>
CLI::Validator range(T least, T most) {
  std::ostringstream what, help;
  what.precision(12), help.precision(12);  // 1000000000, not 1e+09
  what << "from " << least << " to " << most;
  help << "in [" << least << " - " << most << "]";
  return holds([least, most](double value) { return value >= least && value <= most; }, what.str(), help.str());
}

template <class T>
struct NumberOf {
  using type = T;
};
template <class T>
struct NumberOf<std::optional<T>> : NumberOf<T> {};
template <class T>
struct NumberOf<std::vector<T>> : NumberOf<T> {};

// CLI11 would take hex and octal numbers and nan, and say "Could not convert". What it then reads has no leading zero,
// which would make it octal.
template <class T>
CLI::Validator is_a() {
  const std::string what = std::is_integral_v<T> ? "a whole number" : "a number";
  const auto check = [what](std::string& text) {
    T value{};
    const NumberText read = read_number(text, value);
    if (read == NumberText::kGood) {
      if constexpr (std::is_integral_v<T>) text = std::to_string(value);
      return std::string();
    }
    return text + " is not " + what + (read == NumberText::kTooLarge ? " that this option can have" : "");
  };
  return CLI::Validator(check, "");
}

constexpr const char* kNotEmpty = "not empty";  // the validator's name, which nobody sees

CLI::Validator not_empty(const CLI::Option* option) {
  const auto check = [option](std::string& text) {
    // As a ValidationError it would begin with the name and a colon.
    if (text.empty()) throw CLI::ArgumentMismatch(option->get_name() + " needs a value; an empty one was given");
    return std::string();
  };
  return CLI::Validator(check, "", kNotEmpty);
}

// "8G" becomes its number of bytes.
std::string read_size(std::string& text) {
  if (text.empty()) return "";  // not_empty() refuses it
  constexpr uint64_t kMost = 1'000'000'000'000'000'000;
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  std::string unit = text.substr(digits);
  std::ranges::transform(unit, unit.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (unit.ends_with("IB")) {
    unit.resize(unit.size() - 2);
  } else if (unit.ends_with("B")) {
    unit.pop_back();
  }
  const size_t power = unit.empty() ? 0 : std::string_view("KMGT").find(unit) + 1;
  uint64_t count = 0;
  const NumberText read = read_number(std::string_view(text).substr(0, digits), count);
  if (unit.size() > 1 || (!unit.empty() && power == 0) || read == NumberText::kNone) {
    return text + " is not a number of bytes, such as 512M or 8G";
  }
  if (read == NumberText::kTooLarge || count == 0 || count > kMost >> (10 * power)) {
    return text + " is not from 1 to 1e18 bytes";
  }
  text = std::to_string(count << (10 * power));
  return "";
}

CommandInfo* described = nullptr;  // where parse() writes what was declared, in place of parsing

// "TEXT:{spring,july}" is a TEXT of two choices.
std::vector<std::string> choices_in(const std::string& type) {
  const size_t begin = type.find('{'), end = type.find('}');
  std::vector<std::string> choices;
  if (begin == std::string::npos || end == std::string::npos) return choices;
  std::istringstream list(type.substr(begin + 1, end - begin - 1));
  for (std::string one; std::getline(list, one, ',');) choices.push_back(one);
  return choices;
}

OptionInfo info_of(const CLI::Option& option) {
  OptionInfo info;
  for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  info.position = option.get_positional() ? option.get_name(true) : "";
  const bool flag = option.get_items_expected_max() == 0;
  const std::string type = option.get_type_name();
  if (!flag) info.value = type.substr(0, type.find(':'));
  info.choices = choices_in(type);
  info.help = option.get_description();
  info.shown_default = option.get_default_str();
  info.required = option.get_required();
  info.repeats = !flag && option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
  return info;
}

// What follows an option's names in the help: its value, and which options it needs or excludes.
std::string suffix_of(const CLI::Option& option) {
  std::string text;
  if (option.get_items_expected_max() != 0) {
    text += " " + option.get_type_name();
    if (!option.get_default_str().empty()) text += "=" + option.get_default_str();
    const bool list = option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
    if (list || option.get_items_expected_max() > 1) text += " ...";
    if (option.get_required()) text += " REQUIRED";
  }
  const auto others = [&](const char* what, const std::set<CLI::Option*>& options) {
    if (!options.empty()) text += what;
    for (const CLI::Option* other : options) text += " " + other->get_name();
  };
  others(" Needs:", option.get_needs());
  others(" Excludes:", option.get_excludes());
  return text;
}

// The help of a command. CLI11's own breaks lines, or not, as its version does. An option that has a place on the line
// as well is explained once, at its place.
class Help : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode) const override {
    std::string positionals, options, usage;
    for (const CLI::Option* option : app->get_options()) {
      if (option->get_positional()) {
        const std::string place = option->get_name(true);
        usage += option->get_required() ? " " + place : " [" + place + "]";
        positionals += line_of(place + suffix_of(*option), option->get_description());
      }
      if (!option->nonpositional()) continue;
      std::string names = option->get_name(false, true);
      constexpr std::string_view kTurnsOff = "{false}";  // CLI11's mark of a flag that clears its variable
      if (const size_t at = names.find(kTurnsOff); at != std::string::npos) names.erase(at, kTurnsOff.size());
      options += option->get_positional() ? line_of(names, "the same as " + option->get_name(true), true)
                                          : line_of(names + suffix_of(*option), option->get_description());
    }
    std::string text = app->get_description() + "\nUsage: " + name + " [OPTIONS]" + usage + "\n";
    if (!positionals.empty()) text += "\nPositionals:\n" + positionals;
    return text + "\nOptions:\n" + options + "\n";
  }

 private:
  static std::string line_of(const std::string& names, const std::string& help, bool below = false) {
    constexpr size_t kColumn = 30;
    std::string line = "  " + names;
    if (below || line.size() >= kColumn) line += "\n" + std::string(kColumn, ' ');
    line.resize(std::max(line.size(), kColumn), ' ');
    for (const char c : help) line += c == '\n' ? "\n" + std::string(kColumn, ' ') : std::string(1, c);
    return line + "\n";
  }
};

// "--promt=x" without the value.
std::string name_of(const std::string& word) { return word.substr(0, word.find('=')); }

}  // namespace

CommandInfo describe(int (*command)(int argc, char** argv)) {
  char name[] = "describe";
  char* argv[] = {name, nullptr};
  CommandInfo info;
  described = &info;
  try {
    command(1, argv);
  } catch (...) {
    described = nullptr;
    throw;
  }
  described = nullptr;
  return info;
}

using Option = CommandLine::Option;

Option& Option::required() { return option_->required(), *this; }
Option& Option::required(const std::string& otherwise) {
  return line_.missing_.emplace_back(option_, otherwise), required();
}
Option& Option::show_default() { return option_->capture_default_str(), *this; }
Option& Option::between(int least, int most) { return option_->check(range(least, most)), *this; }
Option& Option::between(double least, double most) { return option_->check(range(least, most)), *this; }
Option& Option::positive() {
  return option_->check(holds([](double value) { return value > 0; }, "above zero")), *this;
}
Option& Option::not_negative() {
  return option_->check(holds([](double value) { return value >= 0; }, "zero or more")), *this;
}
Option& Option::one_of(std::initializer_list<const char*> values) {
  return option_->check(CLI::IsMember(std::vector<std::string>(values.begin(), values.end()))), *this;
}
Option& Option::suggest(std::vector<std::string> values) {
  return line_.suggestions_.push_back({option_, std::move(values)}), *this;
}
Option& Option::may_repeat() { return option_->take_all()->allow_extra_args(false), *this; }
Option& Option::separated_by_commas() { return option_->delimiter(',')->allow_extra_args(false), *this; }
Option& Option::excludes(const std::string& other) { return option_->excludes(other), *this; }

Option& Option::file() { return option_->type_name("PATH"), *this; }

Option& Option::bytes() { return option_->transform(CLI::Validator(read_size, "SIZE")), *this; }

Option& Option::needs(const std::string& other) { return option_->needs(other), *this; }

Option& Option::only_with(const std::string& other, const std::string& value) {
  return line_.conditions_.push_back({option_, other, value}), *this;
}

Option& Option::not_with(const std::string& other, const std::string& value) {
  return line_.exclusions_.push_back({option_, other, value}), *this;
}

Option& Option::may_be_empty() { return option_->get_validator(kNotEmpty)->active(false), *this; }

CommandLine::CommandLine(const std::string& name, const std::string& about)
    : name_(name), app_(std::make_unique<CLI::App>(about, name)) {
  app_->formatter(std::make_shared<Help>());
}
CommandLine::~CommandLine() = default;

template <typename T>
Option CommandLine::option(const std::string& names, T& value, const std::string& help) {
  CLI::Option* option = app_->add_option(names, value, help);
  using Number = typename NumberOf<T>::type;
  if constexpr (std::is_same_v<T, std::filesystem::path>) option->type_name("PATH");
  if constexpr (std::is_arithmetic_v<Number>) option->transform(is_a<Number>());
  option->transform(not_empty(option));  // the first of all
  return Option(option, *this);
}
Option CommandLine::flag(const std::string& names, bool& value, const std::string& help) {
  return Option(app_->add_flag(names, value, help), *this);
}

#define GEMMA4_OPTION_OF(T) template Option CommandLine::option<T>(const std::string&, T&, const std::string&);
GEMMA4_OPTION_OF(std::string)
GEMMA4_OPTION_OF(std::filesystem::path)
GEMMA4_OPTION_OF(int)
GEMMA4_OPTION_OF(int64_t)
GEMMA4_OPTION_OF(float)
GEMMA4_OPTION_OF(double)
GEMMA4_OPTION_OF(std::optional<std::string>)
GEMMA4_OPTION_OF(std::optional<int>)
GEMMA4_OPTION_OF(std::optional<float>)
GEMMA4_OPTION_OF(std::optional<uint64_t>)
GEMMA4_OPTION_OF(std::vector<std::string>)
GEMMA4_OPTION_OF(std::vector<int>)
GEMMA4_OPTION_OF(std::vector<double>)
#undef GEMMA4_OPTION_OF

// In the order typed. The nearest option is named, and quotes where words look like a text without them. A word after
// an option that is not known is taken for its value.
std::string CommandLine::unexpected(const std::vector<std::string>& words) const {
  std::vector<std::string> names;
  for (const CLI::Option* option : app_->get_options()) {
    for (const std::string& name : info_of(*option).names) names.push_back(name);
  }
  const bool takes_pictures = std::ranges::find(names, "-i") != names.end();
  std::string sentence;
  const bool takes_text = std::ranges::any_of(info().options, [](const OptionInfo& option) {
    return !option.position.empty() && option.choices.empty() && option.suggestions.empty();
  });
  bool text = false, value_may_follow = false;
  for (const std::string& word : words) {
    const bool option = word.starts_with("-") && word.size() > 1;
    if (!option && std::exchange(value_may_follow, false)) continue;
    sentence += sentence.empty() ? "" : "; ";
    if (!option) {
      const bool picture = takes_pictures && names_picture(word);
      text = text || (takes_text && !picture);
      sentence += "'" + word + "' was not expected" + (picture ? " (a picture is given with -i)" : "");
      continue;
    }
    value_may_follow = word.find('=') == std::string::npos;
    const std::string meant = name_here(name_of(word), names),
                      near = meant.empty() ? nearest(name_of(word), names) : meant;
    sentence += "there is no option " + name_of(word) + (near.empty() ? "" : " (did you mean " + near + "?)");
  }
  return sentence + (text ? " (put quotes around what holds spaces)" : "");
}

CommandInfo CommandLine::info() const {
  CommandInfo info{app_->get_description(), {}};
  for (const CLI::Option* option : app_->get_options()) {
    info.options.push_back(info_of(*option));
    const auto own = std::ranges::find(suggestions_, option, &Suggestions::option);
    if (own != suggestions_.end()) info.options.back().suggestions = own->values;
  }
  return info;
}

// The words after the command's name. CLI11 would take the word after "--name=" for its value, and would leave out the
// empty elements of a list.
std::vector<std::string> CommandLine::words_of(int argc, char** argv) const {
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i], name = word.starts_with("--") ? name_of(word) : word;
    if (word == "--") return words.insert(words.end(), argv + i, argv + argc), words;
    const CLI::Option* option = word.starts_with("-") ? app_->get_option_no_throw(name) : nullptr;
    words.push_back(word);
    if (option == nullptr || option->get_items_expected_max() == 0) continue;
    if (word == name && i + 1 == argc) break;
    const std::string value = word == name ? argv[++i] : word.substr(name.size() + 1);
    const std::string between = "," + value + ",";
    if (option->get_delimiter() == ',' && !value.empty() && between.find(",,") != std::string::npos) {
      throw CLI::ValidationError(name, value + " has an empty element");
    }
    words.back() = name;
    words.push_back(value);
  }
  return words;
}

void CommandLine::check_conditions() const {
  for (const Condition& condition : conditions_) {
    const std::vector<std::string>& given = app_->get_option(condition.other)->results();
    if (condition.option->count() == 0 || (!given.empty() && given.back() == condition.value)) continue;
    const std::string is =
        given.empty() ? "which was not given" : "and this is " + condition.other + " " + given.back();
    throw CLI::ArgumentMismatch(condition.option->get_name() + " belongs to " + condition.other + " " +
                                condition.value + ", " + is);
  }
  for (const Condition& exclusion : exclusions_) {
    const std::vector<std::string>& given = app_->get_option(exclusion.other)->results();
    if (exclusion.option->count() == 0 || given.empty() || given.back() != exclusion.value) continue;
    throw CLI::ArgumentMismatch(exclusion.other + " " + exclusion.value + " excludes " + exclusion.option->get_name());
  }
}

// The sentence of required(otherwise), where `complaint` is CLI11's about that option.
std::optional<std::string> CommandLine::missing(const std::string& complaint) const {
  for (const auto& [option, sentence] : missing_) {
    if (complaint == CLI::RequiredError(option->get_name()).what()) return sentence;
  }
  return std::nullopt;
}

std::optional<int> CommandLine::parse(int argc, char** argv) {
  if (described != nullptr) {
    *described = info();
    return kExitOk;
  }
  try {
    std::vector<std::string> words = words_of(argc, argv);
    std::ranges::reverse(words);  // as CLI11 wants them
    app_->parse(std::move(words));
    check_conditions();
    return std::nullopt;
  } catch (const CLI::Success& success) {
    return app_->exit(success);
  } catch (const CLI::ParseError& error) {
    // A name that is not known is also why another one is missing.
    const std::vector<std::string> rest = app_->remaining();
    const std::optional<std::string> own = rest.empty() ? missing(error.what()) : std::nullopt;
    const std::string message = own ? *own : rest.empty() ? error.what() : unexpected(rest);
    std::fprintf(stderr, "%s: %s\n", own ? "gemma4" : name_.c_str(), message.c_str());
    return kExitBadInput;
  }
}

}  // namespace gemma4
