// OpenAI's API: parses the bodies of /v1/chat/completions, /v1/completions and /v1/responses, and writes the answers as
// JSON. A member that asks for something this server does not do is refused by name (ApiError 400). Source: OpenAI's
// API reference (platform.openai.com/docs/api-reference) and the `openai` Python client's types; `reasoning_content`,
// `chat_template_kwargs`, `thinking_token_budget`, `top_k`, `min_p` and `repetition_penalty` are those of vLLM.
#pragma once

#include "server/completion_request.h"

namespace gemma4 {

constexpr float kTopPLeast = 1e-6f;  // top_p: 0 means the likeliest token alone, and so does this

CompletionRequest parse_chat(const Json& body, const ApiContext& context);
CompletionRequest parse_completions(const Json& body, const ApiContext& context);
CompletionRequest parse_responses(const Json& body, const ApiContext& context);
CompletionRequest parse_compact(const Json& body, const ApiContext& context);  // of /v1/responses/compact

// Throws ApiError for the first item that could not be part of a conversation.
void check_items(const Json& items, const ApiContext& context);

// The member `metadata`: labels of the client's, which are given back. At most 16 pairs of a key of 64 characters and a
// text of 512, OpenAI's bounds; {} if it is not there.
Json parse_metadata(Fields& body);
std::optional<std::string> parse_user(Fields& body);  // given back, too: at most 512 characters

// Parses only the conversation, for /tokenize: messages, tools, chat_template_kwargs, reasoning_effort,
// continue_final_message, add_generation_prompt.
Request parse_chat_prompt(Fields& body, const ApiContext& context);

Json openai_error(const ApiError& error);
ApiError openai_error_of(const ContextError& error);  // in the words that clients look for

// Used by all three parsers.
void parse_sampling(Fields& body, Request& request);
// What vLLM, llama.cpp and Ollama take beside OpenAI's parameters: done where it changes the answer.
void parse_other_servers(Fields& body, Request& request, const ApiContext& context);
// Whether the usage is wanted. Without a stream its options have no effect.
bool parse_stream_options(Fields& body, bool streamed, const ApiContext& context);
// The first of these members that is there, as Request::max_new_tokens; -1 is no limit.
int parse_max_tokens(Fields& body, std::initializer_list<const char*> names);
bool thinking_wanted(const std::string& effort, const std::string& path, const std::string& also = "");
Json logprob_entry(const TokenLogprob& token);
Json logprob_entries(const std::vector<TokenLogprobs>& tokens);  // each with its `top_logprobs`
std::string schema_text(const Json& schema, const std::string& path);

}  // namespace gemma4
