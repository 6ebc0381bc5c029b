#include "server/api/build_request.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <unordered_set>

#include "base/utf8.h"
#include "server/api/openai.h"
#include "text/schema/schema_keywords.h"

namespace gemma4 {
namespace {

constexpr int8_t kSpace = -2, kBad = -1;

constexpr std::array<int8_t, 256> make_digits() {
  std::array<int8_t, 256> digits = {};
  digits.fill(kBad);
  const std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < alphabet.size(); ++i) digits[static_cast<uint8_t>(alphabet[i])] = static_cast<int8_t>(i);
  digits['-'] = 62;
  digits['_'] = 63;
  for (const char c : {' ', '\n', '\r', '\t'}) digits[static_cast<uint8_t>(c)] = kSpace;
  return digits;
}
constexpr std::array<int8_t, 256> kDigits = make_digits();

bool is_base64(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c == '=' || kDigits[c] != kBad; });
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// About a tenth of a second of one core. What takes longer is not looked at.
constexpr WorkLimits kParametersLimits = {.steps = 10'000'000};

void check_parameters(const Json& parameters, const std::string& path) {
  WorkBudget budget("the parameters of a tool", kParametersLimits);
  try {
    check_kinds(parameters, "#", budget);
  } catch (const BudgetError&) {
  } catch (const Error& error) {
    fail_at(path, std::string("is no JSON schema: ") + error.what());
  }
}

}  // namespace

std::string encode_base64(std::string_view bytes) {
  static constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (k < count ? static_cast<uint8_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= count ? kAlphabet[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

std::string decode_base64(std::string_view text, const std::string& path) {
  std::string out;
  out.reserve(text.size() / 4 * 3);
  while (!text.empty() && (text.back() == '=' || kDigits[static_cast<uint8_t>(text.back())] == kSpace)) {
    text.remove_suffix(1);
  }
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int8_t digit = kDigits[static_cast<uint8_t>(c)];
    if (digit == kSpace) continue;
    if (digit == kBad) fail_at(path, "is not base64");
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if (++count % 4 != 0) continue;
    out += static_cast<char>(bits >> 16);
    out += static_cast<char>(bits >> 8);
    out += static_cast<char>(bits);
  }
  if (count % 4 == 1) fail_at(path, "is not base64");
  if (count % 4 == 2) out += static_cast<char>(bits >> 4);
  if (count % 4 == 3) {
    out += static_cast<char>(bits >> 10);
    out += static_cast<char>(bits >> 2);
  }
  if (out.empty()) fail_at(path, "holds no data");
  return out;
}

std::string image_of_url(const std::string& url, const ApiContext& context, const std::string& path) {
  const std::string head = lower(url.substr(0, 8));
  if (head.starts_with("http://") || head.starts_with("https://")) return context.fetch(url, path);
  if (!head.starts_with("data:")) {
    // Base64 alone, as some clients send it. No other URL is that long without a character that base64 does not have.
    constexpr size_t kShortest = 32;  // the smallest GIF has 26 bytes
    if (url.size() < kShortest || !is_base64(std::string_view(url).substr(0, 1024))) {
      fail_at(path, "must be a data: URL (data:image/png;base64,...), or base64");
    }
    return decode_base64(url, path);
  }
  const size_t comma = url.find(',');
  if (comma == std::string::npos) fail_at(path, "is a data: URL without a comma");
  const std::string media_type = lower(std::string_view(url).substr(5, std::min<size_t>(comma - 5, 200)));
  if (!media_type.ends_with(";base64")) fail_at(path, "must be a data: URL in base64 (data:image/png;base64,...)");
  // The image format is recognised from the bytes.
  if (!media_type.starts_with("image/") && !media_type.starts_with("application/octet-stream") &&
      !media_type.starts_with(";")) {
    fail_at(path, "must be a data: URL of an image, not of " + media_type.substr(0, media_type.find(';')));
  }
  return decode_base64(std::string_view(url).substr(comma + 1), path);
}

std::string text_of_url(const std::string& url, const std::string& path) {
  const size_t comma = url.find(',');
  const std::string head = lower(std::string_view(url).substr(0, std::min<size_t>(comma, 200)));
  const bool text = head.starts_with("data:text/") || head.starts_with("data:application/json");
  if (comma == std::string::npos || !text || !head.ends_with(";base64")) {
    fail_at(path, "must be a data: URL of a text file in base64 (data:text/plain;base64,...); no other file is read");
  }
  std::string bytes = decode_base64(std::string_view(url).substr(comma + 1), path);
  if (!utf8_valid(bytes)) fail_at(path, "is not a text in UTF-8");
  return bytes;
}

std::string named_text(const std::string& name, const std::string& text) {
  return name.empty() ? text : name + ":\n" + text;
}

void set_image_detail(Request& request, const std::string& detail, const ApiContext& context, const std::string& path) {
  if (detail == "auto") return;
  if (detail != "low" && detail != "high" && detail != "original") {
    fail_at(path, "must be one of auto, low, high, original");
  }
  const int most = context.image_budget_max > 0 ? context.image_budget_max : 1120;
  request.image_budget = std::max(request.image_budget, detail == "low" ? 70 : most);
}

void set_thinking_budget(Request& request, int64_t tokens) {
  request.thinking_budget = static_cast<int>(tokens);
  request.thinking_share = 1;
}

// The shares are those of OpenRouter (openrouter.ai/docs/use-cases/reasoning-tokens).
void set_effort(Request& request, const std::string& effort) {
  struct Level {
    const char* name;
    int budget;
    double share;
  };
  constexpr Level kLevels[] = {
      {"minimal", 512, 0.1}, {"low", 2048, 0.2}, {"medium", 8192, 0.5}, {"high", 32768, 0.8}, {"xhigh", -1, 0.95}};
  set_thinking_budget(request, -1);
  for (const Level& level : kLevels) {
    if (effort != level.name) continue;
    request.thinking_budget = level.budget;
    request.thinking_share = level.share;
  }
}

void parse_reasoning_amount(Fields& reasoning, Request& request) {
  if (const auto effort = reasoning.string("effort")) {
    request.chat.enable_thinking = thinking_wanted(*effort, reasoning.where("effort"));
    set_effort(request, *effort);
  }
  if (const auto budget = reasoning.integer("max_tokens", 0, INT32_MAX)) {
    set_thinking_budget(request, *budget);
    request.chat.enable_thinking = *budget > 0;
  }
  if (const auto on = reasoning.boolean("enabled")) request.chat.enable_thinking = *on;
}

void parse_think(const Json& value, Request& request) {
  if (value.is_boolean()) {
    request.chat.enable_thinking = value.get<bool>();
  } else if (value.is_string()) {
    const auto& effort = value.get_ref<const std::string&>();
    request.chat.enable_thinking = thinking_wanted(effort, "think", "true, false, or ");
    set_effort(request, effort);
  } else {
    fail_at("think", "must be true, false, or one of none, minimal, low, medium, high, xhigh, max");
  }
}

Message& add_message(Request& request, std::string role) {
  request.messages.emplace_back().role = std::move(role);
  return request.messages.back();
}

void add_text(Message& message, std::string text) {
  ContentPart part;
  part.text = std::move(text);
  message.content.push_back(std::move(part));
}

void add_image(Request& request, Message& message, std::string bytes) {
  ContentPart part;
  part.type = ContentPart::kImage;
  message.content.push_back(std::move(part));
  request.images.push_back(std::move(bytes));
}

void parse_continuation(Fields& body, Request& request) {
  const auto wanted = body.boolean("continue_final_message"), fresh = body.boolean("add_generation_prompt");
  if (wanted.value_or(false)) {
    if (request.messages.back().role != "assistant") {
      fail_at("continue_final_message", "is true, but the last message is not the assistant's");
    }
    if (fresh.value_or(false)) fail_at("continue_final_message", "and add_generation_prompt cannot both be true");
  }
  request.chat.continue_final = wanted.value_or(!fresh.has_value());
  request.chat.add_generation_prompt = fresh.value_or(true);
}

Json make_tool(const std::string& name, const Json* description, const Json* parameters, const std::string& path,
               const char* member) {
  if (name.empty() || name.size() > 128) fail_at(path + ".name", "must have 1 to 128 characters");
  for (const unsigned char c : name) {
    if (!std::isalnum(c) && std::string_view("_-.:/@").find(static_cast<char>(c)) == std::string_view::npos) {
      fail_at(path + ".name", "may hold letters, digits, '_', '-', '.', ':', '/' and '@' only");
    }
  }
  Json function = {{"name", name}};
  if (description != nullptr) function["description"] = expect_string(*description, path + ".description");
  if (parameters != nullptr) {
    const std::string where = path + "." + member;
    if (!parameters->is_object()) fail_at(where, "must be an object (a JSON schema)");
    check_parameters(*parameters, where);
    function["parameters"] = *parameters;
  } else {
    function["parameters"] = {{"type", "object"}, {"properties", Json::object()}};
  }
  return {{"type", "function"}, {"function", std::move(function)}};
}

void check_tool_name(const Json& tools, const std::string& name, const std::string& path) {
  for (const Json& tool : tools) {
    if (tool["function"]["name"] == name) return;
  }
  fail_at(path, "names '" + name.substr(0, 128) + "', which is none of the tools");
}

void warn_of_lost_results(const Request& request, const std::shared_ptr<Warnings>& warnings) {
  std::unordered_set<std::string_view> ids;
  for (const Message& message : request.messages) {
    if (message.role == "assistant") {
      ids.clear();
      for (const ToolCall& call : message.tool_calls) ids.insert(call.id);
    } else if (message.role == "tool" && message.name.empty() && !ids.contains(message.tool_call_id)) {
      warn(warnings, "a tool's result ('" + message.tool_call_id.substr(0, 40) +
                         "') belongs to no call before it: the model is told that its tool is unknown");
    }
  }
}

}  // namespace gemma4
