// JSON that somebody else wrote, for the readers of checkpoint files: duplicate keys, deep nesting and bad UTF-8 are
// errors that name the file, never a silent choice. Included by .cc files only (nlohmann's header is heavy).
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "base/json.h"

namespace gemma4 {

// `what` names the text in errors. Throws Error.
nlohmann::json parse_strict_json(std::string_view text, const std::string& what);

// Throws Error if the text holds a NUL byte. No JSON does, and nlohmann's lexer takes one for the end of the text, so
// what follows it would never be looked at.
void refuse_nul(std::string_view text);

// `name` fit for a message: at most 120 bytes, control characters and invalid UTF-8 replaced.
std::string printable(std::string_view name);

// What the JSON library says was wrong, for a sentence of ours: without its name of the exception.
std::string json_complaint(const std::exception& error);

}  // namespace gemma4
