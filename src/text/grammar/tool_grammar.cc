#include "text/grammar/tool_grammar.h"

#include <utility>

#include "base/check.h"
#include "text/grammar/schema.h"
#include "text/grammar/text_grammar.h"
#include "text/schema/schema_keywords.h"

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

// The schema of a call's arguments as the tool has it.
Json parameters_of(const Json& function, WorkBudget& budget) {
  Json parameters = function.value("parameters", Json::object());
  if (!parameters.is_object()) throw Error("the parameters are no object");
  check_kinds(parameters, "#", budget);
  const auto type = parameters.find("type");
  if (type != parameters.end() && !(type_bits(*type) & kObjectType)) {
    throw Error("the parameters allow no object, but the arguments of a call are one");
  }
  return parameters;
}

// `parameters` as a rule. Throws EndlessGrammar, with the reason, where no value matches.
int compile(PushdownAutomaton& a, Syntax syntax, const Json& parameters, std::vector<SchemaNote>& notes) {
  const PushdownAutomaton::Mark before = a.mark();
  SchemaGrammar rules(a, syntax, parameters);
  const int rule = rules.rule(parameters, "#");
  try {
    a.check(rule, before);
  } catch (const EndlessGrammar& error) {
    throw EndlessGrammar(rules.why_endless(error), error.rules);
  }
  notes = rules.notes();
  return rule;
}

// The argument of a tool that takes a text by a grammar.
int text_argument(PushdownAutomaton& a, const Json& grammar) {
  const PushdownAutomaton::Mark before = a.mark();
  if (!grammar.is_object() || !grammar.value("syntax", Json()).is_string() ||
      !grammar.value("definition", Json()).is_string()) {
    throw Error(std::string(kTextGrammar) + " has no syntax or no definition");
  }
  const auto& definition = grammar.at("definition").get_ref<const std::string&>();
  const int close = a.symbol(kQuote, a.byte('}', a.finish()));
  int text = -1;
  if (grammar.at("syntax") == "regex") {
    text = expression_nodes(a, definition, close);
  } else {
    text = a.call(TextGrammar(a, definition, TextGrammar::kLark).rule(), close);
  }
  const int rule = a.new_rule();
  a.set_rule(rule, a.literal(std::string("{") + kTextArgument + ":", a.symbol(kQuote, text)));
  a.check(rule, before);
  return rule;
}

// Throws Error where no value at all matches, and UnenforceableSchema where only those that a call cannot write do.
int arguments_of(PushdownAutomaton& a, const Json& function, std::vector<SchemaNote>& notes) {
  if (function.contains(kTextGrammar)) return text_argument(a, function[kTextGrammar]);
  Json parameters = parameters_of(function, a.budget()), closed = parameters;
  if (closed.empty() || closed == Json{{"type", "object"}}) closed["properties"] = Json::object();
  closed["type"] = parameters["type"] = "object";
  const bool closes = !closed.contains("additionalProperties") && !closed.contains("$ref");
  if (closes) close_parameters(closed);
  const PushdownAutomaton::Mark mark = a.mark();
  try {
    return compile(a, Syntax::kGemma, closed, notes);
  } catch (const EndlessGrammar&) {
    a.roll_back(mark);
  }
  if (closes) {  // an allOf or an anyOf may ask for what is not described beside it
    try {
      return compile(a, Syntax::kGemma, parameters, notes);
    } catch (const EndlessGrammar&) {
      a.roll_back(mark);
    }
  }
  compile(a, Syntax::kJson, parameters, notes);
  throw UnenforceableSchema("the arguments that the parameters allow cannot be written in a call");
}

void add_notes(std::vector<SchemaNote> found, const std::string& tool, bool strict, std::vector<SchemaNote>& notes) {
  for (SchemaNote& note : found) {
    if (strict) {
      throw UnenforceableSchema(note.subject() + " at " + note.path + (note.why.empty() ? "" : ", so it") +
                                " cannot be enforced while arguments are written, as \"strict\": true asks");
    }
    note.path = tool + note.path.substr(1);
    notes.push_back(std::move(note));
  }
}

}  // namespace

bool is_strict_tool(const Json& tool) {
  const Json& function = tool_function(tool);
  return function.is_object() && function.contains("strict") && function["strict"] == true;
}

void check_tool_schemas(const Json& tools, WorkBudget& budget) {
  for (const Json& tool : tools) {
    const Json& function = tool_function(tool);
    const std::string name = tool_name(function);
    try {
      PushdownAutomaton a(budget);
      std::vector<SchemaNote> notes;
      arguments_of(a, function, notes);
    } catch (const BudgetError&) {
      return;
    } catch (const CancelledError&) {
      throw;
    } catch (const UnenforceableSchema&) {
      continue;
    } catch (const Error& error) {
      throw Error("tools: " + name + ": " + error.what());
    }
  }
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
        std::vector<SchemaNote> found;
        arguments = arguments_of(a, function, found);
        add_notes(std::move(found), name, strict, notes);
      } catch (const BudgetError&) {
        throw;
      } catch (const CancelledError&) {
        throw;
      } catch (const UnenforceableSchema& error) {
        if (strict) throw Error("tools: " + name + ": " + error.what());
        a.roll_back(mark);
        unenforced.push_back(name);
      } catch (const Error& error) {
        throw Error("tools: " + name + ": " + error.what());
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
