// The fields by which other servers' clients ask for a form of the answer: vLLM's guided_json, guided_regex,
// guided_choice, guided_grammar and structured_outputs, llama.cpp's grammar and json_schema, and SGLang's regex and
// ebnf. Called by the parsers of chat completions and completions.
#pragma once

#include "engine/request.h"
#include "server/completion_request.h"

namespace gemma4 {

// Sets request.format. Throws ApiError where two of them ask for different forms, or one of them and a
// response_format for a form each. A tool call that is forced wins over all of them.
void parse_guided(Fields& body, Request& request, const ApiContext& context);

}  // namespace gemma4
