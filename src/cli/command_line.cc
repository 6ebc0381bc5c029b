#include "cli/command_line.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <sstream>
#include <vector>

#include "base/check.h"

namespace gemma4 {
namespace {

// CLI11's own checks accept NaN and print the largest double in full. Text that is no number is refused when it is
// converted.
CLI::Validator holds(std::function<bool(double)> allowed, const std::string& what, const std::string& help = "") {
  const auto check = [allowed, what](const std::string& text) {
    double value;
    return !CLI::detail::lexical_cast(text, value) || allowed(value) ? "" : text + " is not " + what;
  };
  return CLI::Validator(check, help);
}

template <typename T>
CLI::Validator range(T least, T most) {
  std::ostringstream what, help;
  what << "from " << least << " to " << most;
  help << "in [" << least << " - " << most << "]";
  return holds([least, most](double value) { return value >= least && value <= most; }, what.str(), help.str());
}

}  // namespace

using Option = CommandLine::Option;

Option& Option::required() { return option_->required(), *this; }
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
Option& Option::may_repeat() { return option_->take_all(), *this; }
Option& Option::separated_by_commas() { return option_->delimiter(','), *this; }
Option& Option::excludes(const std::string& other) { return option_->excludes(other), *this; }

Option& Option::bytes() {
  constexpr double kMost = 1e18;
  return option_->transform(CLI::AsSizeValue(false))
             ->check(holds([](double value) { return value >= 1 && value <= kMost; }, "from 1 to 1e18 bytes")),
         *this;
}

CommandLine::CommandLine(const std::string& name, const std::string& about)
    : app_(std::make_unique<CLI::App>(about, name)) {}
CommandLine::~CommandLine() = default;

template <typename T>
Option CommandLine::option(const std::string& names, T& value, const std::string& help) {
  return Option(app_->add_option(names, value, help));
}
Option CommandLine::flag(const std::string& names, bool& value, const std::string& help) {
  return Option(app_->add_flag(names, value, help));
}

#define GEMMA4_OPTION_OF(T) template Option CommandLine::option<T>(const std::string&, T&, const std::string&);
GEMMA4_OPTION_OF(std::string)
GEMMA4_OPTION_OF(std::filesystem::path)
GEMMA4_OPTION_OF(int)
GEMMA4_OPTION_OF(int64_t)
GEMMA4_OPTION_OF(double)
GEMMA4_OPTION_OF(std::optional<std::string>)
GEMMA4_OPTION_OF(std::optional<int>)
GEMMA4_OPTION_OF(std::optional<float>)
GEMMA4_OPTION_OF(std::optional<uint64_t>)
GEMMA4_OPTION_OF(std::vector<std::string>)
GEMMA4_OPTION_OF(std::vector<int>)
GEMMA4_OPTION_OF(std::vector<double>)
#undef GEMMA4_OPTION_OF

std::optional<int> CommandLine::parse(int argc, char** argv) {
  try {
    app_->parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::Success& success) {
    return app_->exit(success);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "%s: %s\n", app_->get_name().c_str(), error.what());
    return kExitBadInput;
  }
}

}  // namespace gemma4
