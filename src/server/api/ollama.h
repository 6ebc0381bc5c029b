// Ollama's API: parses the bodies of /api/chat and /api/generate, and writes the answers as JSON, one object a line
// where they are streamed. What changes the answer is done or refused by name; what only hints (`keep_alive`,
// `num_gpu`, an option that is not known) is taken and listed in "warnings". Source: Ollama's API reference
// (docs.ollama.com/api) and the `ollama` Python client's types.
#pragma once

#include <string>

#include "server/completion_request.h"

namespace gemma4 {

CompletionRequest parse_ollama_chat(const Json& body, const ApiContext& context);
CompletionRequest parse_ollama_generate(const Json& body, const ApiContext& context);

Json ollama_error(const ApiError& error);

// The name of a model as Ollama's programs know it: with ":latest", unless it has a tag.
std::string ollama_name(const std::string& model);

// Throws ApiError 404 if no model has this name, with or without ":latest".
void check_ollama_model(const std::string& name, const ApiContext& context);

// Nanoseconds of 1970 as "2026-05-01T12:00:00.123456789Z".
std::string ollama_time(int64_t nanoseconds);

}  // namespace gemma4
