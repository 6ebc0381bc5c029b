// The grammar of Gemma's tool calls: <|tool_call>call:NAME{key:value,...}<tool_call|>, with the names of the offered
// tools and arguments that fit their parameters. Called by Grammar.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/grammar/grammar.h"
#include "text/grammar/pushdown_automaton.h"

namespace gemma4 {

// A tool that takes a text by a grammar has this member beside its name: {"syntax": "lark" or "regex", "definition"}.
// The text is its only argument, of this name.
constexpr const char* kTextGrammar = "text_grammar";
constexpr const char* kTextArgument = "input";

struct ToolGrammarOptions {
  std::string_view name;  // only this tool; empty: any of them
  bool loose = false;     // arguments of tools that are not strict may be any object
};

// A node that matches one call after its <|tool_call> marker, and continues at `next`. `tools`: an array as render_chat
// takes it. Throws Error where a tool has no name, none has `name`, the parameters or the grammar of a tool are none or
// allow no value, or a tool that is strict cannot be enforced. One that is not strict gets any object as its arguments
// then, and its name goes to `unenforced`; what its arguments keep but for some keywords goes to `notes`.
int tool_call_body(PushdownAutomaton& automaton, const nlohmann::ordered_json& tools, const ToolGrammarOptions& options,
                   int next, std::vector<std::string>& unenforced, std::vector<SchemaNote>& notes);

// Throws Error for the first of the tools whose parameters are no schema or allow no value. For tools that are not
// offered; tool_call_body() does it for those that are. Past the budget nothing is said.
void check_tool_schemas(const nlohmann::ordered_json& tools, WorkBudget& budget);

// Whether the tool says "strict": true, in {"type": "function", "function": {...}} or the inner object.
bool is_strict_tool(const nlohmann::ordered_json& tool);

}  // namespace gemma4
