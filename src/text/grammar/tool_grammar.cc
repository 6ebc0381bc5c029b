#include "text/grammar/tool_grammar.h"

#include <utility>

#include "base/check.h"
#include "text/grammar/schema.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;

const Json& tool_function(const Json& tool) {
  return tool.is_object() && tool.contains("function") ? tool["function"] : tool;
}

// A call has the arguments that are described, and those that are required only by name.
void close_parameters(Json& parameters) {
  parameters["additionalProperties"] = false;
  if (!parameters.contains("required") || !parameters["required"].is_array()) return;
  if (!parameters.contains("properties")) parameters["properties"] = Json::object();
  if (!parameters["properties"].is_object()) return;  // refused later, by name
  for (const Json& name : parameters["required"]) {
    if (name.is_string() && !parameters["properties"].contains(name.get<std::string>()))
      parameters["properties"][name.get<std::string>()] = true;
  }
}

std::string tool_name(const Json& function) {
  if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) {
    throw Error("tools: a tool has no name");
  }
  auto name = function["name"].get<std::string>();
  if (name.empty() || name.find('{') != std::string::npos) {
    throw Error("tools: the name '" + name + "' cannot be written in a call");
  }
  return name;
}

int arguments_of(PushdownAutomaton& a, const Json& function, const std::string& name, bool strict,
                 std::vector<SchemaNote>& notes) {
  Json parameters = function.value("parameters", Json::object());
  if (!parameters.is_object()) throw Error("tools: the parameters of " + name + " are no object");
  if (parameters.empty() || parameters == Json{{"type", "object"}}) parameters["properties"] = Json::object();
  parameters["type"] = "object";
  if (!parameters.contains("additionalProperties") && !parameters.contains("$ref")) close_parameters(parameters);
  const PushdownAutomaton::Mark before = a.mark();
  SchemaGrammar rules(a, Syntax::kGemma, parameters);
  const int rule = rules.rule(parameters, name);
  try {
    a.check(rule, before);
  } catch (const EndlessGrammar& error) {
    throw Error("tools: " + name + ": " + (rules.reason().empty() ? error.what() : rules.reason()));
  }
  for (SchemaNote& note : rules.notes()) {
    if (strict) {
      throw Error("tools: " + name + ": the keyword " + note.keyword + " at " + note.path +
                  " cannot be enforced while arguments are written, as \"strict\": true asks");
    }
    note.checked = false;  // arguments are not
    notes.push_back(std::move(note));
  }
  return rule;
}

}  // namespace

bool is_strict_tool(const Json& tool) {
  const Json& function = tool_function(tool);
  return function.is_object() && function.contains("strict") && function["strict"] == true;
}

int tool_call_body(PushdownAutomaton& a, const Json& tools, const ToolGrammarOptions& options, int next,
                   std::vector<std::string>& unenforced, std::vector<SchemaNote>& notes) {
  if (!tools.is_array()) throw Error("tools: not an array");
  const Json anything;
  const int any = SchemaGrammar(a, Syntax::kGemma, anything).any_object();
  std::vector<int> calls;
  for (const Json& tool : tools) {
    const Json& function = tool_function(tool);
    const std::string name = tool_name(function);
    if (!options.name.empty() && name != options.name) continue;
    const bool strict = is_strict_tool(tool);
    int arguments = any;
    if (strict || !options.loose) {
      const PushdownAutomaton::Mark mark = a.mark();
      try {
        arguments = arguments_of(a, function, name, strict, notes);
      } catch (const BudgetError&) {
        throw;
      } catch (const CancelledError&) {
        throw;
      } catch (const Error&) {
        if (strict) throw;
        a.roll_back(mark);
        unenforced.push_back(name);
      }
    }
    calls.push_back(a.literal("call:" + name, a.call(arguments, a.symbol(kCallEnd, next))));
  }
  if (calls.empty()) {
    throw Error(options.name.empty() ? "tools: there is none to call"
                                     : "tools: no tool is named " + std::string(options.name));
  }
  return a.split(std::move(calls));
}

}  // namespace gemma4
