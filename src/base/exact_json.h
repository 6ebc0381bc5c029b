// JSON whose whole numbers keep their digits: what a model or a client wrote as an integer comes out as the same one,
// however long, as in Python. One that 64 bits do not hold stands in the tree as binary data, its digits. Included by
// .cc files and by server/json.h only (nlohmann's header is heavy).
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace gemma4 {

// Half a surrogate pair (\ud83d alone) becomes U+FFFD: clients cut texts between the halves, and a conversation that
// holds one would be refused for ever. A value takes some 16 to 40 times the memory of its text, so their number is
// bounded.
constexpr int kJsonValuesMax = 1 << 19;

// Throws nlohmann::json::exception where the text is not JSON, Error where it is nested more than `depth_max` deep or
// has more than `values_max` values. Time and memory are linear in the text.
nlohmann::ordered_json parse_exact_json(std::string_view text, int depth_max, int values_max = kJsonValuesMax);

bool is_exact_json(std::string_view text, int depth_max);

// Whether the whole text is one JSON value.
bool is_json(std::string_view text);

// On one line; invalid UTF-8 is replaced.
std::string dump_exact_json(const nlohmann::ordered_json& value);

// A whole number that 64 bits do not hold. (No text gives a tree binary data otherwise.)
inline bool is_long_integer(const nlohmann::ordered_json& value) { return value.is_binary(); }

}  // namespace gemma4
