// nlohmann's JSON library, whose largest templates are compiled in json_plain.cc and json_ordered.cc alone: elsewhere
// they would be most of what a compiler does for a file. Heavy all the same: included by .cc files, and by headers for
// those.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

// Made in the two sources. Json::parse() is a template of its own and is not among what they make: sources of the
// program call read_json() instead, which saves each of them several seconds.
extern template class nlohmann::basic_json<>;
extern template class nlohmann::basic_json<nlohmann::ordered_map>;

namespace gemma4 {

// Json::parse(text): `Json` is nlohmann::json or nlohmann::ordered_json. Throws nlohmann::json::parse_error.
template <class Json>
Json read_json(std::string_view text);
template <>
nlohmann::json read_json(std::string_view text);
template <>
nlohmann::ordered_json read_json(std::string_view text);

// `watch` sees each value as it is read, and may throw.
nlohmann::json read_json(std::string_view text, const nlohmann::json::parser_callback_t& watch);

// As the first, but what is not JSON gives a value of which is_discarded() is true.
template <class Json>
Json read_json_or_discard(std::string_view text);
template <>
nlohmann::json read_json_or_discard(std::string_view text);
template <>
nlohmann::ordered_json read_json_or_discard(std::string_view text);

}  // namespace gemma4
