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

constexpr std::pair<GrammarSymbol, const char*> kSymbolNames[] = {{kQuote, "<|\"|>"},
                                                                  {kCallBegin, "<|tool_call>"},
                                                                  {kCallEnd, "<tool_call|>"},
                                                                  {kChannelBegin, "<|channel>"},
                                                                  {kChannelEnd, "<channel|>"}};

}  // namespace

GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  auto state = std::make_shared<State>();
  state->vocab_size = tokenizer.vocab_size();
  for (const auto& [symbol, name] : kSymbolNames) state->symbols[symbol - kQuote] = tokenizer.find(name).value_or(-1);
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_control(id) && !tokenizer.piece(id).empty()) ids.push_back(id);
  }
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return tokenizer.piece(a) < tokenizer.piece(b); });
  std::vector<int32_t> open;  // the path of nodes of the last token
  const auto close_to = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back())
      state->nodes[open.back()].end = static_cast<int32_t>(state->nodes.size());
  };
  std::string_view last;
  for (const int32_t id : ids) {
    const std::string_view piece = tokenizer.piece(id);
    const auto common =
        static_cast<size_t>(std::mismatch(last.begin(), last.end(), piece.begin(), piece.end()).first - last.begin());
    close_to(common);
    for (size_t depth = common; depth < piece.size(); ++depth) {
      open.push_back(static_cast<int32_t>(state->nodes.size()));
      const auto tokens = static_cast<int32_t>(state->tokens.size());
      state->nodes.push_back({static_cast<uint8_t>(piece[depth]), tokens, 0});
      state->depths.push_back(static_cast<int32_t>(depth));
    }
    state->tokens.push_back(id);
    state->longest = std::max(state->longest, static_cast<int>(piece.size()));
    last = piece;
  }
  close_to(0);
  state->nodes.push_back({0, static_cast<int32_t>(state->tokens.size()), 0});
  state_ = std::move(state);
}

struct Grammar::Position {
  PushdownAutomaton::States states;
};

struct Grammar::Compiled {
  Compiled(Vocabulary vocabulary_in, const GrammarOptions& options)
      : vocabulary(std::move(vocabulary_in)), end_ids(options.end_ids), masks(vocabulary->state(), automaton, end_ids) {
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
    automaton.check();
  }

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
  for (const auto& [symbol, token] : kSymbolNames) vocabulary->tokenizer().require(token);
  const Json list = parse_json(tools, "tools");
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
    Json parameters = function.value("parameters", Json::object());
    if (!parameters.is_object()) throw Error("tools: the parameters of " + tool_name + " are no object");
    if (parameters.empty() || parameters == Json{{"type", "object"}}) parameters["properties"] = Json::object();
    parameters["type"] = "object";
    if (!parameters.contains("additionalProperties") && !parameters.contains("$ref"))
      parameters["additionalProperties"] = false;
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
  const auto& symbols = compiled_->vocabulary->state().symbols;
  PushdownAutomaton::States states = position_->states;
  if (const auto at = std::find(symbols.begin(), symbols.end(), token);
      at != symbols.end() && compiled_->automaton.reads(states, kQuote + static_cast<int>(at - symbols.begin()))) {
    states = compiled_->automaton.advance(states, kQuote + static_cast<int>(at - symbols.begin()));
  } else if (std::find(compiled_->end_ids.begin(), compiled_->end_ids.end(), token) != compiled_->end_ids.end()) {
    ended_ = true;
  } else {
    for (const char byte : tokenizer.piece(token)) {
      states = compiled_->automaton.advance(states, static_cast<unsigned char>(byte));
    }
  }
  position_ = std::make_shared<const Position>(Position{std::move(states)});
  mask_.reset();
  return true;
}

bool Grammar::complete() const { return !ended_ && position_->states.complete; }

}  // namespace gemma4
