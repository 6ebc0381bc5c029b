// UTF-8: checking, and finding where the last whole character of a growing string ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace gemma4 {

// Bytes of the character that begins at text[0], or 0 where no valid character begins there (overlong forms, surrogates
// and code points past U+10FFFF are invalid).
size_t utf8_length(std::string_view text);

bool utf8_valid(std::string_view text);

// How many bytes of `text` end in whole characters: text.size() minus an unfinished but so far valid tail of at most 3.
size_t utf8_complete(std::string_view text);

// `text` with each invalid byte replaced by U+FFFD.
std::string utf8_repair(std::string_view text);

// The character that `text` begins with; `text` begins with a valid one.
uint32_t utf8_point(std::string_view text);

void utf8_append(std::string& out, uint32_t code_point);

}  // namespace gemma4
