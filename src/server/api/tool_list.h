// ToolList: the tools of a request, as each API writes them, in the one form that the model is told. What a provider
// runs on its own machines (web search, code interpreters) is left out with a warning. Tools without a schema
// ("custom") become functions with one string; tools in a namespace get the namespace in front of their names. The
// serializers write calls in the client's form again.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "server/completion_request.h"

namespace gemma4 {

struct ToolList {
  struct Origin {
    std::string name, space;  // the client's name, and its namespace if it has one
    bool custom = false;      // takes a text, not arguments
  };

  Json tools = Json::array();             // in the form of Request::tools
  std::map<std::string, Origin> origins;  // of the tools that the client knows under another name or in another form
  bool functions = false;                 // they came as OpenAI's older `functions`: so go the calls

  const Origin* origin(const std::string& name) const;
  std::string text() const { return tools.empty() ? "" : dump(tools); }  // Request::tools
};

ToolList parse_chat_tools(Fields& body, const ApiContext& context);  // `tools` and `functions`
ToolList parse_responses_tools(const Json& value, const ApiContext& context);
ToolList parse_messages_tools(const Json& value, const ApiContext& context);

// Throws ApiError for the first of the tools whose schema is none, or allows no value, where the engine does not look
// at it: none may be called, or only another one.
void check_uncalled_tools(const Json& tools, const Request& request);

// Leaves only these tools. Throws ApiError if one of the names is none of the tools.
void allow_tools(ToolList& list, const std::vector<std::string>& names, const std::string& path);
// The same for {"mode": "auto" | "required", "tools": [..]}; `name` reads that of a tool of type function or custom.
void parse_allowed_tools(Fields& allowed, ToolList& list, Request& request,
                         const std::function<std::string(Fields& tool, const std::string& type)>& name);

// The name of a tool in a namespace, as the model is told it.
std::string name_in_space(const std::string& space, const std::string& name);

// A custom tool's text as the arguments of its function, and back. Arguments that a limit cut give the text so far.
std::string custom_arguments(const std::string& input);
std::string custom_input(const std::string& arguments);

}  // namespace gemma4
