// Building a Request from the JSON of any API: text and images (base64, data: and http(s) URLs) as message content, and
// tool definitions.
#pragma once

#include <string>
#include <string_view>

#include "engine/request.h"
#include "server/completion_request.h"

namespace gemma4 {

// Of the JSON text in a tool call: what the chat template takes.
constexpr int kCallDepthMax = 100;

std::string encode_base64(std::string_view bytes);

// White space is allowed. Any other character outside the alphabet (standard or URL-safe) is an ApiError.
std::string decode_base64(std::string_view text, const std::string& path);

// The bytes of the image behind a data: or http(s) URL, or of base64 alone; `path` is the URL's path in the request,
// for errors.
std::string image_of_url(const std::string& url, const ApiContext& context, const std::string& path);

// The text behind a data: URL of a text file, or ApiError; a file's name, if it has one, and its text.
std::string text_of_url(const std::string& url, const std::string& path);
std::string named_text(const std::string& name, const std::string& text);

// Sets Request::image_budget from an image's detail ("low", "auto", "high", "original"). The largest one of a request
// counts.
void set_image_detail(Request& request, const std::string& detail, const ApiContext& context, const std::string& path);

Message& add_message(Request& request, std::string role);
void add_text(Message& message, std::string text);
void add_image(Request& request, Message& message, std::string bytes);

// Whether the last message, if it is the assistant's, is the beginning of the answer: yes, unless
// `continue_final_message` or `add_generation_prompt` (vLLM's) say otherwise. Of OpenAI's and Anthropic's bodies, after
// their messages.
void parse_continuation(Fields& body, Request& request);

// Warns of a result that belongs to none of the calls before it and does not name its tool: the template then calls it
// "unknown".
void warn_of_lost_results(const Request& request, const std::shared_ptr<Warnings>& warnings);

// How much of the answer a thought may take: "minimal", "low", "medium", "high", "xhigh" or "max". Any other effort
// sets none.
void set_effort(Request& request, const std::string& effort);
// A budget in tokens, in place of what an effort sets.
void set_thinking_budget(Request& request, int64_t tokens);
// Of OpenRouter's `reasoning`, and OpenAI's of the responses API: how much the model thinks. `max_tokens` counts more
// than `effort`, and `enabled` says whether it thinks at all.
void parse_reasoning_amount(Fields& reasoning, Request& request);
// Ollama's `think`: true, false or an effort.
void parse_think(const Json& value, Request& request);

// A tool in the form of Request::tools. `member`: where its parameters came from. Throws ApiError where they are no
// schema: a keyword has a value of the wrong kind.
Json make_tool(const std::string& name, const Json* description, const Json* parameters, const std::string& path,
               const char* member = "parameters");

// Throws ApiError if no tool has this name.
void check_tool_name(const Json& tools, const std::string& name, const std::string& path);

}  // namespace gemma4
