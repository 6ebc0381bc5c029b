// Content: the parts of messages that the APIs share: pictures as data URLs or base64, and tools.
#pragma once

#include <string>
#include <string_view>

#include "engine/request.h"
#include "server/call.h"

namespace gemma4 {

// Whitespace is allowed; anything else outside the alphabet (standard or URL-safe) is an Error.
std::string decode_base64(std::string_view text, const std::string& path);

// The bytes of an image that a URL names; `path` is where the URL stands in the request. Only data: URLs carry bytes.
std::string image_of_url(const std::string& url, const ApiContext& context, const std::string& path);

// Notes that an image was asked for in this detail ("low", "auto", "high"): the largest wish sets
// Request::image_budget.
void want_detail(Request& request, const std::string& detail, const ApiContext& context, const std::string& path);

Message& add_message(Request& request, std::string role);
void add_text(Message& message, std::string text);
void add_image(Request& request, Message& message, std::string bytes);

// One tool in the form that the engine takes.
Json make_tool(const std::string& name, const Json* description, const Json* parameters, const std::string& path);

// The tool that `name` must be one of; throws where it is not.
void check_tool_name(const Json& tools, const std::string& name, const std::string& path);

}  // namespace gemma4
