#include "server/api/tool_list.h"

#include <algorithm>

#include "base/exact_json.h"
#include "server/api/build_request.h"
#include "text/chat/call_parser.h"
#include "text/grammar/tool_grammar.h"

namespace gemma4 {
namespace {

std::string at(const std::string& path, size_t index) { return path + "[" + std::to_string(index) + "]"; }

// Tools that have no schema, because a provider runs them or made the model for them.
bool hosted(std::string_view type) {
  for (const char* prefix : {"web_search",
                             "web_fetch",
                             "file_search",
                             "computer",
                             "code_interpreter",
                             "code_execution",
                             "image_generation",
                             "mcp",
                             "local_shell",
                             "shell",
                             "apply_patch",
                             "tool_search",
                             "programmatic_tool_calling",
                             "bash_",
                             "text_editor_",
                             "memory_",
                             "browser_toolset_",
                             "advisor_",
                             "url_context",
                             "google_search"}) {
    if (type.starts_with(prefix)) return true;
  }
  return false;
}

void leave_out(const std::string& type, const ApiContext& context) {
  warn(context.warnings, "the tool '" + type + "' is one of the provider's own and was left out");
}

// Members of a tool that change nothing for a model that is told all tools at once.
void read_tool_hints(Fields& tool, const ApiContext& context) {
  tool.ignore({"cache_control", "eager_input_streaming"});
  tool.hint(context.warnings, "defer_loading", {false});
  tool.hint(context.warnings, "allowed_callers", {Json::array({"direct"})});
  tool.hints(context.warnings, {"input_examples"});
}

// `fields`: the members beside a function's name; `name`: as the model is told it.
void add_function(ToolList& list, Fields& fields, const std::string& name, const std::string& path) {
  list.tools.push_back(make_tool(name, fields.find("description"), fields.find("parameters"), path));
  if (fields.boolean("strict").value_or(false)) list.tools.back()["function"]["strict"] = true;
}

// {"syntax", "definition"}, which chat completions have in an object of their own.
Json parse_text_grammar(Fields& format) {
  const auto read = [](Fields& fields) -> Json {
    fields.only("syntax", {"lark", "regex"});
    return {{"syntax", fields.required_string("syntax")}, {"definition", fields.required_string("definition")}};
  };
  const Json* inner = format.find("grammar");
  if (inner == nullptr) return read(format);
  Fields fields(*inner, format.where("grammar"));
  Json grammar = read(fields);
  fields.done();
  return grammar;
}

void add_custom(ToolList& list, Fields& fields, const std::string& name, const ToolList::Origin& origin,
                const std::string& path) {
  Json input = {{"type", "string"}}, grammar;
  if (const Json* value = fields.find("format")) {
    Fields format(*value, fields.where("format"));
    const std::string type = format.required_string("type");
    if (type == "grammar") {
      grammar = parse_text_grammar(format);
      input["description"] = "Text by this " + grammar["syntax"].get<std::string>() +
                             " grammar: " + grammar["definition"].get<std::string>();
    } else if (type != "text") {
      fail_at(format.where("type"), "must be text or grammar");
    }
    format.done();
  }
  const Json parameters = {{"type", "object"},
                           {"properties", {{kTextArgument, std::move(input)}}},
                           {"required", Json::array({kTextArgument})}};
  list.tools.push_back(make_tool(name, fields.find("description"), &parameters, path));
  Json& function = list.tools.back()["function"];
  if (!grammar.is_null()) function.update({{kTextGrammar, std::move(grammar)}, {"strict", true}});
  list.origins[name] = origin;
}

void parse_chat_tool(ToolList& list, const Json& value, const std::string& path, const ApiContext& context) {
  Fields tool(value, path);
  const std::string type = tool.string("type").value_or("function");
  if (hosted(type)) return leave_out(type, context);
  if (type == "custom") {
    Fields custom(tool.require("custom"), tool.where("custom"));
    const std::string name = custom.required_string("name");
    add_custom(list, custom, name, {name, "", true}, tool.where("custom"));
    custom.done();
  } else {
    tool.only("type", {"function"});
    Fields function(tool.require("function"), tool.where("function"));
    add_function(list, function, function.required_string("name"), tool.where("function"));
    read_tool_hints(function, context);
    function.done();
  }
  read_tool_hints(tool, context);
  tool.done();
}

void parse_responses_tool(ToolList& list, const Json& value, const std::string& space, const std::string& path,
                          const ApiContext& context) {
  Fields tool(value, path);
  const std::string type = tool.string("type").value_or("function");
  if (hosted(type)) return leave_out(type, context);
  const std::string given = tool.required_string("name");
  if (type == "namespace" && space.empty()) {
    const Json& inner = expect_array(tool.require("tools"), tool.where("tools"));
    for (size_t i = 0; i < inner.size(); ++i) {
      parse_responses_tool(list, inner[i], given, at(tool.where("tools"), i), context);
    }
    tool.ignore({"description"});  // of the whole namespace; the model is told each tool's own
    return tool.done();
  }
  const std::string name = space.empty() ? given : name_in_space(space, given);
  if (type == "custom") {
    add_custom(list, tool, name, {given, space, true}, path);
  } else {
    tool.only("type", {"function"});
    add_function(list, tool, name, path);
    if (!space.empty()) list.origins[name] = {given, space, false};
  }
  tool.ignore({"output_schema"});
  read_tool_hints(tool, context);
  tool.done();
}

void check_names(const ToolList& list, const std::string& path) {
  std::vector<std::string> names;
  for (const Json& tool : list.tools) names.push_back(tool["function"]["name"]);
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  if (twice != names.end() && !list.origins.empty()) fail_at(path, "has two tools with the name '" + *twice + "'");
}

}  // namespace

const ToolList::Origin* ToolList::origin(const std::string& name) const {
  const auto found = origins.find(name);
  return found == origins.end() ? nullptr : &found->second;
}

ToolList parse_chat_tools(Fields& body, const ApiContext& context) {
  ToolList list;
  if (const Json* tools = body.find("tools")) {
    expect_array(*tools, "tools");
    for (size_t i = 0; i < tools->size(); ++i) parse_chat_tool(list, (*tools)[i], at("tools", i), context);
  }
  if (const Json* functions = body.find("functions")) {
    expect_array(*functions, "functions");
    if (!list.tools.empty() && !functions->empty()) fail_at("functions", "cannot stand beside tools");
    list.functions = !functions->empty();
    for (size_t i = 0; i < functions->size(); ++i) {
      Fields function((*functions)[i], at("functions", i));
      add_function(list, function, function.required_string("name"), at("functions", i));
      function.done();
    }
  }
  check_names(list, "tools");
  return list;
}

ToolList parse_responses_tools(const Json& value, const ApiContext& context) {
  ToolList list;
  expect_array(value, "tools");
  for (size_t i = 0; i < value.size(); ++i) parse_responses_tool(list, value[i], "", at("tools", i), context);
  check_names(list, "tools");
  return list;
}

ToolList parse_messages_tools(const Json& value, const ApiContext& context) {
  ToolList list;
  expect_array(value, "tools");
  for (size_t i = 0; i < value.size(); ++i) {
    Fields tool(value[i], at("tools", i));
    const std::string type = tool.string("type").value_or("custom");
    if (hosted(type)) {
      leave_out(type, context);
      continue;
    }
    tool.only("type", {"custom"});
    const std::string name = tool.required_string("name");
    list.tools.push_back(make_tool(name, tool.find("description"), &tool.require("input_schema"), at("tools", i),
                                   "input_schema"));
    if (tool.boolean("strict").value_or(false)) list.tools.back()["function"]["strict"] = true;
    read_tool_hints(tool, context);
    tool.done();
  }
  return list;
}

static void check_schemas(const Json& tools) {
  WorkBudget budget("the tools", {.steps = 10'000'000, .bytes = uint64_t{64} << 20});
  try {
    check_tool_schemas(tools, budget);
  } catch (const Error& error) {
    throw ApiError(400, error.what(), "tools");
  }
}

void check_uncalled_tools(const Json& tools, const Request& request) {
  if (request.tools.empty() || !request.format.tool_name.empty()) check_schemas(tools);
}

void allow_tools(ToolList& list, const std::vector<std::string>& names, const std::string& path) {
  for (const std::string& name : names) check_tool_name(list.tools, name, path);
  Json kept = Json::array(), others = Json::array();
  for (Json& tool : list.tools) {
    const std::string name = tool["function"]["name"];
    const bool allowed = std::ranges::find(names, name) != names.end();
    (allowed ? kept : others).push_back(std::move(tool));
  }
  check_schemas(others);
  list.tools = std::move(kept);
}

void parse_allowed_tools(Fields& allowed, ToolList& list, Request& request,
                         const std::function<std::string(Fields& tool, const std::string& type)>& name) {
  const std::string mode = allowed.string("mode").value_or("auto");
  if (mode != "auto" && mode != "required") fail_at(allowed.where("mode"), "must be auto or required");
  std::vector<std::string> names;
  for (const Json& value : expect_array(allowed.require("tools"), allowed.where("tools"))) {
    Fields tool(value, allowed.where("tools"));
    const std::string type = tool.required_string("type");
    if (type == "function" || type == "custom") names.push_back(name(tool, type));  // others were left out
  }
  allow_tools(list, names, allowed.where("tools"));
  request.tools = list.text();
  if (mode == "required") request.format.type = ResponseFormat::kToolCall;
}

std::string name_in_space(const std::string& space, const std::string& name) {
  return space + (space.ends_with("__") ? "" : "__") + name;
}

std::string custom_arguments(const std::string& input) { return dump({{kTextArgument, input}}); }

std::string custom_input(const std::string& arguments) {
  const Json json = parse_exact_json(close_arguments(arguments), kCallDepthMax + 28);  // made by this server
  const auto input = json.is_object() ? json.find(kTextArgument) : json.end();
  if (input == json.end()) return "";
  return input->is_string() ? input->get<std::string>() : dump(*input);
}

}  // namespace gemma4
