// nlohmann's JSON library, whose largest templates are compiled in json_plain.cc and json_ordered.cc alone: elsewhere
// they would be most of what a compiler does for a file. Heavy all the same: included by .cc files, and by headers for
// those.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

// `template` makes it, `extern template` says that it is made elsewhere. Text is read from a std::string or between two
// pointers.
#define GEMMA4_JSON_READER(how, Json, Input)      \
  how class nlohmann::detail::lexer<Json, Input>; \
  how class nlohmann::detail::parser<Json, Input>;
#define GEMMA4_JSON(how, Json)                                                                         \
  how class Json;                                                                                      \
  how class nlohmann::detail::serializer<Json>;                                                        \
  how class nlohmann::detail::json_sax_dom_parser<Json>;                                               \
  how class nlohmann::detail::json_sax_dom_callback_parser<Json>;                                      \
  GEMMA4_JSON_READER(how, Json, nlohmann::detail::iterator_input_adapter<std::string::const_iterator>) \
  GEMMA4_JSON_READER(how, Json, nlohmann::detail::iterator_input_adapter<const char*>)

GEMMA4_JSON(extern template, nlohmann::basic_json<>)
GEMMA4_JSON(extern template, nlohmann::basic_json<nlohmann::ordered_map>)
