#include "base/json.h"

template class nlohmann::basic_json<nlohmann::ordered_map>;

namespace gemma4 {

template <>
nlohmann::ordered_json read_json(std::string_view text) {
  return nlohmann::ordered_json::parse(text);
}

template <>
nlohmann::ordered_json read_json_or_discard(std::string_view text) {
  return nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace gemma4
