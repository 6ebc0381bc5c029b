#include "cli/terminal/chat_settings.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "cli/nearest.h"
#include "cli/numbers.h"
#include "engine/check_request.h"

namespace gemma4 {
namespace {

using Value = std::optional<double>;  // none: the checkpoint's, or drawn

struct NumberSetting {
  const char* name;
  const char* what;
  double least, most;
  bool whole;
  const char* unset;  // what it means without a value
  Value (*get)(const Request&);
  void (*set)(Request&, Value);
};

template <typename T>
std::optional<T> as(Value value) {
  return value ? std::optional<T>(static_cast<T>(*value)) : std::nullopt;
}
template <typename T>
Value from(const std::optional<T>& value) {
  return value ? Value(static_cast<double>(*value)) : Value();
}
float number(Value value, float otherwise) { return value ? static_cast<float>(*value) : otherwise; }

constexpr const char* kCheckpoints = "the checkpoint's";

constexpr NumberSetting kNumbers[] = {
    {"temperature", "0: always the likeliest token", 0, kTemperatureMax, false, kCheckpoints,
     [](const Request& r) { return from(r.sampling.temperature); },
     [](Request& r, Value v) { r.sampling.temperature = as<float>(v); }},
    {"top_k", "choose among this many; 0: all", 0, 1 << 30, true, kCheckpoints,
     [](const Request& r) { return from(r.sampling.top_k); },
     [](Request& r, Value v) { r.sampling.top_k = as<int>(v); }},
    {"top_p", "choose among the likeliest that make up this share", 1e-6, 1, false, kCheckpoints,
     [](const Request& r) { return from(r.sampling.top_p); },
     [](Request& r, Value v) { r.sampling.top_p = as<float>(v); }},
    {"min_p", "drop tokens less likely than this share of the likeliest", 0, 0.999, false, "",
     [](const Request& r) { return Value(r.sampling.min_p); },
     [](Request& r, Value v) { r.sampling.min_p = number(v, 0); }},
    {"repetition_penalty", "over prompt and answer; 1: none", 0.001, 100, false, "",
     [](const Request& r) { return Value(r.sampling.repetition_penalty); },
     [](Request& r, Value v) { r.sampling.repetition_penalty = number(v, 1); }},
    {"presence_penalty", "over the answer; 0: none", -2, 2, false, "",
     [](const Request& r) { return Value(r.sampling.presence_penalty); },
     [](Request& r, Value v) { r.sampling.presence_penalty = number(v, 0); }},
    {"frequency_penalty", "over the answer; 0: none", -2, 2, false, "",
     [](const Request& r) { return Value(r.sampling.frequency_penalty); },
     [](Request& r, Value v) { r.sampling.frequency_penalty = number(v, 0); }},
    {"seed", "of the random choices", 0, 9007199254740992.0, true, "drawn for each answer",
     [](const Request& r) { return from(r.sampling.seed); },
     [](Request& r, Value v) { r.sampling.seed = as<uint64_t>(v); }},
    {"max_new_tokens", "stop after this many; 0: when the context is full", 0, 1 << 30, true, "",
     [](const Request& r) { return Value(r.max_new_tokens); },
     [](Request& r, Value v) { r.max_new_tokens = as<int>(v).value_or(0); }},
    {"thinking_budget", "tokens that thoughts may take", 0, 1 << 30, true, "no limit, or --thinking-budget's",
     [](const Request& r) { return r.thinking_budget < 0 ? Value() : Value(r.thinking_budget); },
     [](Request& r, Value v) { r.thinking_budget = as<int>(v).value_or(-1); }},
};

struct SwitchSetting {
  const char* name;
  const char* what;
  bool ChatView::*value;
};

constexpr SwitchSetting kSwitches[] = {
    {"stats", "a line after each answer: tokens, speed, seed", &ChatView::stats},
    {"thoughts", "are shown, where /think is on", &ChatView::thoughts},
};

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), value == std::floor(value) ? "%.0f" : "%.6g", value);
  return text;
}

std::string text_of(const NumberSetting& setting, const Request& request) {
  const Value value = setting.get(request);
  return value ? text_of(*value) : setting.unset;
}

double parsed(const NumberSetting& setting, const std::string& text) {
  double value = 0;
  const bool good = read_number(text, value) == NumberText::kGood && value >= setting.least && value <= setting.most &&
                    (!setting.whole || value == std::floor(value));
  if (good) return value;
  throw Error(std::string(setting.name) + " is a" + (setting.whole ? " whole" : "") + " number from " +
              text_of(setting.least) + " to " + text_of(setting.most) + ", or default");
}

}  // namespace

std::vector<std::string> setting_names() {
  std::vector<std::string> names;
  for (const NumberSetting& setting : kNumbers) names.emplace_back(setting.name);
  for (const SwitchSetting& setting : kSwitches) names.emplace_back(setting.name);
  return names;
}

std::vector<std::string> setting_values(const std::string& name) {
  const auto found = std::ranges::find(kSwitches, name, &SwitchSetting::name);
  return found == std::end(kSwitches) ? std::vector<std::string>() : std::vector<std::string>{"off", "on"};
}

std::string apply_setting(const std::string& typed, const std::string& value, const Request& base, Request& request,
                          ChatView& view) {
  std::string name = typed;
  std::ranges::replace(name, '-', '_');
  for (const NumberSetting& setting : kNumbers) {
    if (name != setting.name) continue;
    if (!value.empty()) setting.set(request, value == "default" ? setting.get(base) : Value(parsed(setting, value)));
    return name + " is " + text_of(setting, request);
  }
  for (const SwitchSetting& setting : kSwitches) {
    if (name != setting.name) continue;
    if (value != "" && value != "on" && value != "off" && value != "default") throw Error(name + " is on or off");
    if (!value.empty()) view.*setting.value = value != "off";
    return name + " is " + (view.*setting.value ? "on" : "off");
  }
  const std::string near = nearest(name, setting_names());
  throw Error("there is no setting " + typed + (near.empty() ? "; /set lists them" : "; did you mean " + near + "?"));
}

std::string list_settings(const Request& request, const ChatView& view) {
  std::string lines;
  const auto add = [&](const char* name, const std::string& value, const char* what) {
    char line[160];
    std::snprintf(line, sizeof(line), "  %-18s %-18s %s\n", name, value.c_str(), what);
    lines += line;
  };
  for (const NumberSetting& setting : kNumbers) add(setting.name, text_of(setting, request), setting.what);
  for (const SwitchSetting& setting : kSwitches) {
    add(setting.name, view.*setting.value ? "on" : "off", setting.what);
  }
  return lines;
}

}  // namespace gemma4
