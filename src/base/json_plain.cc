#include "base/json.h"

template class nlohmann::basic_json<>;

namespace gemma4 {

template <>
nlohmann::json read_json(std::string_view text) {
  return nlohmann::json::parse(text);
}

nlohmann::json read_json(std::string_view text, const nlohmann::json::parser_callback_t& watch) {
  return nlohmann::json::parse(text, watch);
}

template <>
nlohmann::json read_json_or_discard(std::string_view text) {
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace gemma4
