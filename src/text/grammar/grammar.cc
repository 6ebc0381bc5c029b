#include "text/grammar/grammar.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "text/chat/tool_format.h"
#include "text/grammar/mask.h"
#include "text/grammar/schema.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kSchemaMax = 256 << 10;  // bytes

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

}  // namespace

WorkLimits grammar_limits() { return {.steps = 50'000'000, .bytes = uint64_t{96} << 20}; }

struct Grammar::Position {
  PushdownAutomaton::States states;
};

struct Grammar::Compiled {
  Compiled(Vocabulary vocabulary_in, const GrammarOptions& options)
      : budget(options.budget ? options.budget : std::make_shared<WorkBudget>("the schema", grammar_limits())),
        vocabulary(std::move(vocabulary_in)),
        end_ids(options.end_ids),
        automaton(*budget),
        masks(vocabulary->state(), automaton, end_ids, *budget) {
    if (end_ids.empty()) throw Error("a grammar needs an end token");
    for (const int32_t id : end_ids) {
      if (id < 0 || id >= vocabulary->tokenizer().vocab_size()) throw Error("an end token is not in the vocabulary");
    }
  }

  // The output must match `rule`; a thought may come before it.
  void begin(int rule, bool allow_thinking) {
    start = rule;
    if (allow_thinking) {
      const int output = automaton.call(rule, automaton.finish());
      const int thought = automaton.reserve();
      automaton.set(thought, automaton.split({automaton.bytes(byte_range(0, 255), thought),
                                              automaton.symbol(kChannelEnd, output)}));
      start = automaton.new_rule();
      automaton.set_rule(start, automaton.split({output, automaton.symbol(kChannelBegin, thought)}));
    }
    automaton.check(start);
  }

  const std::shared_ptr<WorkBudget> budget;
  Vocabulary vocabulary;
  std::vector<int32_t> end_ids;
  PushdownAutomaton automaton;
  TokenMasks masks;
  int start = -1;
};

Grammar::Grammar(std::shared_ptr<Compiled> compiled)
    : compiled_(std::move(compiled)),
      position_(std::make_shared<const Position>(Position{compiled_->automaton.start(compiled_->start)})) {}

Grammar Grammar::json_object(const Vocabulary& vocabulary, const GrammarOptions& options) {
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  const Json root;
  compiled->begin(SchemaGrammar(compiled->automaton, Syntax::kJson, root).any_object(), options.allow_thinking);
  return Grammar(std::move(compiled));
}

Grammar Grammar::json_schema(const Vocabulary& vocabulary, std::string_view schema, const GrammarOptions& options) {
  if (schema.size() > kSchemaMax) throw Error("the schema is too large");
  const Json root = parse_json(schema, "schema");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  compiled->begin(SchemaGrammar(compiled->automaton, Syntax::kJson, root).rule(root, "#"), options.allow_thinking);
  return Grammar(std::move(compiled));
}

Grammar Grammar::tool_calls(const Vocabulary& vocabulary, std::string_view tools, std::string_view name, bool parallel,
                            const GrammarOptions& options) {
  if (tools.size() > kSchemaMax) throw Error("the tools are too large");
  for (const auto& [symbol, token] : kGrammarSymbolNames) vocabulary->tokenizer().require(token);
  const Json list = parse_json(tools, "tools");
  if (!list.is_array()) throw Error("tools: not an array");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  PushdownAutomaton& a = compiled->automaton;
  std::vector<int> calls;
  const int finish = a.finish();
  for (const Json& tool : list) {
    const Json& function = tool.is_object() && tool.contains("function") ? tool["function"] : tool;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string()) {
      throw Error("tools: a tool has no name");
    }
    const auto tool_name = function["name"].get<std::string>();
    if (!name.empty() && tool_name != name) continue;
    if (tool_name.empty() || tool_name.find_first_of("{}<>") != std::string::npos) {
      throw Error("tools: the name '" + tool_name + "' cannot be written in a call");
    }
    Json parameters = function.value("parameters", Json::object());
    if (!parameters.is_object()) throw Error("tools: the parameters of " + tool_name + " are no object");
    if (parameters.empty() || parameters == Json{{"type", "object"}}) parameters["properties"] = Json::object();
    parameters["type"] = "object";
    if (!parameters.contains("additionalProperties") && !parameters.contains("$ref")) close_parameters(parameters);
    const int arguments = SchemaGrammar(a, Syntax::kGemma, parameters).rule(parameters, tool_name);
    const int body = a.call(arguments, a.symbol(kCallEnd, finish));
    calls.push_back(a.symbol(kCallBegin, a.literal("call:" + tool_name, body)));
  }
  if (calls.empty())
    throw Error(name.empty() ? "tools: there is none to call" : "tools: no tool is named " + std::string(name));
  const int rule = a.new_rule();
  a.set_rule(rule, a.loop(a.split(std::move(calls)), 1, parallel ? kUnbounded : 1, a.finish()));
  compiled->begin(rule, options.allow_thinking);
  return Grammar(std::move(compiled));
}

std::span<const uint32_t> Grammar::mask() const {
  if (!mask_) {
    const auto words = static_cast<size_t>(compiled_->vocabulary->state().vocab_size + 31) / 32;
    mask_ = ended_ ? std::make_shared<const std::vector<uint32_t>>(words, 0) : compiled_->masks.mask(position_->states);
  }
  return *mask_;
}

bool Grammar::advance(int32_t token) {
  const Tokenizer& tokenizer = compiled_->vocabulary->tokenizer();
  if (ended_ || token < 0 || token >= tokenizer.vocab_size()) return false;
  if (!(mask()[static_cast<size_t>(token) / 32] >> (token % 32) & 1)) return false;
  compiled_->budget->earn(kGrammarStepsPerToken);
  const auto& symbols = compiled_->vocabulary->state().symbols;
  const auto symbol = std::find(symbols.begin(), symbols.end(), token);
  const int input = kQuote + static_cast<int>(symbol - symbols.begin());
  PushdownAutomaton::States states = position_->states;
  bool ends = false;
  if (symbol != symbols.end() && compiled_->automaton.reads(states, input)) {
    states = compiled_->automaton.advance(states, input);
  } else if (std::find(compiled_->end_ids.begin(), compiled_->end_ids.end(), token) != compiled_->end_ids.end()) {
    ends = true;
  } else {
    for (const char byte : tokenizer.piece(token)) {
      states = compiled_->automaton.advance(states, static_cast<unsigned char>(byte));
    }
  }
  position_ = std::make_shared<const Position>(Position{std::move(states)});
  ended_ = ends;
  mask_.reset();
  return true;
}

WorkBudget& Grammar::budget() const { return *compiled_->budget; }

bool Grammar::complete() const { return !ended_ && position_->states.complete; }

}  // namespace gemma4
