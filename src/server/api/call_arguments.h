// The arguments of a call that a conversation holds, as OpenAI's APIs write them. Called by the parsers of chat
// completions and responses.
#pragma once

#include <string>

#include "server/completion_request.h"

namespace gemma4 {

// Of a JSON object as a string or, as some clients write it, of the object: what the chat template takes. Empty, "null"
// or absent: none. Of a call that a limit of tokens cut, which this server gives too, what was written of it is taken,
// with a warning. Anything else is an ApiError at `path`.
std::string call_arguments(const Json* value, const ApiContext& context, const std::string& path);

}  // namespace gemma4
