// Tool format: how Gemma's template writes structured values: tool declarations, call arguments and tool results.
// Strings stand between <|"|> tokens and need no escapes; keys are bare; members are sorted like Jinja's dictsort,
// which ignores case.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/json.h"
#include "text/chat/piece_writer.h"
#include "text/chat/tool_schema.h"

namespace gemma4 {

// Throws Error, naming `what`, if the text is not JSON.
nlohmann::ordered_json parse_json(std::string_view text, const std::string& what);

void write_value(const nlohmann::ordered_json& value, bool quote_keys, PieceWriter& out);
void write_members(const nlohmann::ordered_json& object, bool quote_keys, PieceWriter& out);  // without the braces

// `tool` is {"type": "function", "function": {...}} or the inner object alone.
void write_declaration(const nlohmann::ordered_json& tool, ToolSchemas& schemas, PieceWriter& out);

}  // namespace gemma4
