// The `context` of Ollama's /api/generate: numbers that a client sends back to go on with a conversation. Programs
// treat them as opaque. Here they are the conversation itself, as the bytes of a JSON text, so that the server keeps
// nothing.
#pragma once

#include <string>
#include <vector>

#include "server/json.h"

namespace gemma4 {

struct OllamaTurn {
  std::string role, text;  // "system", "user", "assistant"
};

Json encode_ollama_context(const std::vector<OllamaTurn>& turns);

// Throws ApiError 400 for numbers that this server did not make. A `system` message that is not empty takes the place
// of the one inside.
std::vector<OllamaTurn> decode_ollama_context(const Json& numbers, const std::string& system);

}  // namespace gemma4
