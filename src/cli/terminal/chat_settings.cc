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

using Value = std::optional<double>;  // none: what the checkpoint or a flag says, or drawn

struct NumberSetting {
  const char* name;
  const char* what;
  double least, most;
  bool whole;
  const char* unset;  // whose value holds without one, or what that means
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

constexpr const char *kCheckpoints = "the checkpoint's", *kFlags = "of --thinking-budget";

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
    {"thinking_budget", "tokens that thoughts may take", 0, 1 << 30, true, kFlags,
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

// The request with the values that hold where it says nothing.
Request filled(Request request, const ChatDefaults& defaults) {
  const SamplingParams sampling = resolve_sampling(request.sampling, defaults.checkpoint, 1);
  request.sampling.temperature = sampling.temperature;
  request.sampling.top_k = sampling.top_k;
  request.sampling.top_p = sampling.top_p;
  if (request.thinking_budget < 0) request.thinking_budget = defaults.thinking_budget;
  return request;
}

// "0.5", or "1 (the checkpoint's)".
std::string text_of(const NumberSetting& setting, const Request& request, const ChatDefaults& defaults) {
  if (const Value value = setting.get(request)) return text_of(*value);
  const Value value = setting.get(filled(request, defaults));
  if (value) return text_of(*value) + " (" + setting.unset + ")";
  return setting.unset == kFlags ? "no limit" : setting.unset;
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
                          ChatView& view, const ChatDefaults& defaults) {
  std::string name = typed;
  std::ranges::replace(name, '-', '_');
  for (const NumberSetting& setting : kNumbers) {
    if (name != setting.name) continue;
    if (!value.empty()) setting.set(request, value == "default" ? setting.get(base) : Value(parsed(setting, value)));
    return name + " is " + text_of(setting, request, defaults);
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

std::string list_settings(const Request& request, const ChatView& view, const ChatDefaults& defaults) {
  struct Row {
    std::string name, value, what;
  };
  std::vector<Row> rows;
  for (const NumberSetting& setting : kNumbers) {
    rows.push_back({setting.name, text_of(setting, request, defaults), setting.what});
  }
  for (const SwitchSetting& setting : kSwitches) {
    rows.push_back({setting.name, view.*setting.value ? "on" : "off", setting.what});
  }
  size_t names = 0, values = 0;
  for (const Row& row : rows) names = std::max(names, row.name.size()), values = std::max(values, row.value.size());
  std::string lines;
  for (Row& row : rows) {
    row.name.resize(names, ' '), row.value.resize(values, ' ');
    lines += "  " + row.name + "  " + row.value + "  " + row.what + "\n";
  }
  return lines;
}

}  // namespace gemma4
