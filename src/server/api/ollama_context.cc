#include "server/api/ollama_context.h"

namespace gemma4 {
namespace {

constexpr int64_t kMark = 0x67346374;  // the first number: whose they are

[[noreturn]] void not_ours() { fail_at("context", "is not one that this server has returned"); }

}  // namespace

Json encode_ollama_context(const std::vector<OllamaTurn>& turns) {
  Json json = Json::array();
  for (const OllamaTurn& turn : turns) json.push_back({turn.role, turn.text});
  Json numbers = Json::array({kMark});
  for (const unsigned char byte : dump(json)) numbers.push_back(byte);
  return numbers;
}

std::vector<OllamaTurn> decode_ollama_context(const Json& numbers, const std::string& system) {
  expect_array(numbers, "context");
  if (numbers.empty() || numbers.front() != kMark) not_ours();
  std::string text;
  for (size_t i = 1; i < numbers.size(); ++i) {
    if (!numbers[i].is_number_integer() || numbers[i] < 0 || numbers[i] > 255) not_ours();
    text += static_cast<char>(numbers[i].get<int>());
  }
  std::vector<OllamaTurn> turns;
  Json json;
  try {
    json = parse_body(text);
  } catch (const ApiError&) {
    not_ours();  // the body is JSON; the context in it is not
  }
  if (!json.is_array()) not_ours();
  for (const Json& turn : json) {
    const bool pair = turn.is_array() && turn.size() == 2 && turn[0].is_string() && turn[1].is_string();
    if (!pair) not_ours();
    const std::string role = turn[0];
    if (role != "system" && role != "user" && role != "assistant") not_ours();
    turns.push_back({role, turn[1]});
  }
  if (system.empty()) return turns;
  if (!turns.empty() && turns.front().role == "system") turns.erase(turns.begin());
  turns.insert(turns.begin(), {"system", system});
  return turns;
}

}  // namespace gemma4
