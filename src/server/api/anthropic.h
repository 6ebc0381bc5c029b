// Anthropic's API: parses the bodies of /v1/messages and /v1/messages/count_tokens, and writes the answers as JSON.
// Source: Anthropic's API reference (docs.anthropic.com/en/api/messages) and the `anthropic` Python client's types.
#pragma once

#include "server/completion_request.h"

namespace gemma4 {

CompletionRequest parse_messages(const Json& body, const ApiContext& context);
Request parse_count_tokens(const Json& body, const ApiContext& context);

Json anthropic_error(const ApiError& error);
ApiError anthropic_error_of(const ContextError& error);  // in the words that clients look for

}  // namespace gemma4
