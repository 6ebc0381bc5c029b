#include "text/grammar/grammar.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "text/chat/tool_format.h"
#include "text/grammar/mask.h"
#include "text/grammar/schema.h"
#include "text/grammar/text_grammar.h"
#include "text/grammar/tool_grammar.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kSchemaMax = 256 << 10;  // bytes

Json parse_tools(std::string_view tools, bool loose) {
  if (!loose && tools.size() > kSchemaMax) throw BudgetError("the tools are too large");
  return parse_json(tools, "tools");
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
        masks(vocabulary->state(), automaton, end_ids, *budget, options.masks_by_parts) {
    if (end_ids.empty()) throw Error("a grammar needs an end token");
    for (const int32_t id : end_ids) {
      if (id < 0 || id >= vocabulary->tokenizer().vocab_size()) throw Error("an end token is not in the vocabulary");
    }
  }

  // The output must match `rule` or be a call; a thought may come before it.
  void begin(int rule, const GrammarOptions& options) {
    if (!options.tools.empty()) {
      const int calls = tool_calls(options.tools, "", options.parallel_tools, options.loose_tools);
      const int value = rule, end = automaton.finish();
      rule = automaton.new_rule();
      automaton.set_rule(rule, automaton.split({automaton.call(value, end), automaton.call(calls, end)}));
    }
    start = rule;
    in_thought = options.in_thought;
    if (options.allow_thinking || options.in_thought) {
      const int output = automaton.call(rule, automaton.finish());
      const int thought = automaton.reserve();
      automaton.set(thought, automaton.split({automaton.bytes(byte_range(0, 255), thought),
                                              automaton.symbol(kChannelEnd, output)}));
      start = automaton.new_rule();
      automaton.set_rule(
          start, options.in_thought ? thought : automaton.split({output, automaton.symbol(kChannelBegin, thought)}));
    }
    automaton.check(start);
  }

  // A rule for one call or more.
  int tool_calls(std::string_view tools, std::string_view name, bool parallel, bool loose) {
    require_symbols();
    const int body = tool_call_body(automaton, parse_tools(tools, loose), {.name = name, .loose = loose},
                                    automaton.finish(), unenforced, notes);
    const int rule = automaton.new_rule();
    automaton.set_rule(
        rule, automaton.loop(automaton.symbol(kCallBegin, body), 1, parallel ? kUnbounded : 1, automaton.finish()));
    return rule;
  }

  void require_symbols() const {
    for (const auto& [symbol, token] : kGrammarSymbolNames) vocabulary->tokenizer().require(token);
  }

  const std::shared_ptr<WorkBudget> budget;
  Vocabulary vocabulary;
  std::vector<int32_t> end_ids;
  PushdownAutomaton automaton;
  TokenMasks masks;
  int start = -1;
  std::vector<std::string> unenforced;  // names of tools
  std::vector<SchemaNote> notes;
  bool free_keys = false, in_thought = false;
};

Grammar::Grammar(std::shared_ptr<Compiled> compiled)
    : compiled_(std::move(compiled)),
      position_(std::make_shared<const Position>(Position{compiled_->automaton.start(compiled_->start)})) {
  if (compiled_->free_keys && !compiled_->in_thought) keys_.emplace();
}

Grammar Grammar::json_object(const Vocabulary& vocabulary, const GrammarOptions& options) {
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  const Json root;
  compiled->free_keys = true;
  compiled->begin(SchemaGrammar(compiled->automaton, Syntax::kJson, root).any_object(), options);
  return Grammar(std::move(compiled));
}

Grammar Grammar::json_schema(const Vocabulary& vocabulary, std::string_view schema, const GrammarOptions& options) {
  if (schema.size() > kSchemaMax) throw Error("the schema is too large");
  const Json root = parse_json(schema, "schema");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  SchemaGrammar rules(compiled->automaton, Syntax::kJson, root);
  const int value = rules.rule(root, "#");
  try {
    compiled->begin(value, options);
  } catch (const EndlessGrammar& error) {
    throw Error(rules.why_endless(error));
  }
  const std::vector<SchemaNote> notes = rules.notes();
  compiled->free_keys = rules.has_free_keys();
  compiled->notes.insert(compiled->notes.end(), notes.begin(), notes.end());
  if (options.strict && !notes.empty()) {
    const SchemaNote& note = notes.front();
    throw Error("schema " + note.path + ": " + note.subject() + (note.why.empty() ? "" : ", so it") +
                " cannot be enforced here while the answer is written, as \"strict\": true asks; without strict " +
                (note.checked ? "the finished answer is checked" : "nothing keeps it"));
  }
  return Grammar(std::move(compiled));
}

Grammar Grammar::tool_calls(const Vocabulary& vocabulary, std::string_view tools, std::string_view name, bool parallel,
                            const GrammarOptions& options) {
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  GrammarOptions forced = options;
  forced.tools.clear();  // a call is what must come
  compiled->begin(compiled->tool_calls(tools, name, parallel, options.loose_tools), forced);
  return Grammar(std::move(compiled));
}

Grammar Grammar::rest_of_call(const Vocabulary& vocabulary, std::string_view tools, const GrammarOptions& options) {
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  compiled->require_symbols();
  PushdownAutomaton& a = compiled->automaton;
  const int body = tool_call_body(a, parse_tools(tools, options.loose_tools), {.loose = options.loose_tools},
                                  a.finish(), compiled->unenforced, compiled->notes);
  compiled->start = a.new_rule();
  a.set_rule(compiled->start, body);
  a.check(compiled->start);
  return Grammar(std::move(compiled));
}

void Grammar::restart() {
  position_ = std::make_shared<const Position>(Position{compiled_->automaton.start(compiled_->start)});
  mask_.reset();
  ended_ = false;
}

const std::vector<std::string>& Grammar::unenforced_tools() const { return compiled_->unenforced; }

std::span<const uint32_t> Grammar::mask() const {
  if (!mask_) {
    const auto words = static_cast<size_t>(compiled_->vocabulary->state().vocab_size + 31) / 32;
    mask_ = ended_ ? std::make_shared<const std::vector<uint32_t>>(words, 0)
                   : without_repeats(compiled_->masks.mask(position_->states));
  }
  return *mask_;
}

// Without the tokens that would write a key a second time. (Where no other is left, they stay.)
std::shared_ptr<const std::vector<uint32_t>> Grammar::without_repeats(
    std::shared_ptr<const std::vector<uint32_t>> mask) const {
  if (!keys_ || !keys_->has_keys()) return mask;
  const Tokenizer& tokenizer = compiled_->vocabulary->tokenizer();
  const std::vector<int32_t>& quoted = compiled_->vocabulary->state().quoted;
  compiled_->budget->charge(quoted.size() / 4);
  std::vector<int32_t> repeating;
  for (const int32_t id : quoted) {
    if (!((*mask)[static_cast<size_t>(id) / 32] >> (id % 32) & 1)) continue;
    compiled_->budget->charge(10);
    if (keys_->repeats(tokenizer.piece(id))) repeating.push_back(id);
  }
  if (repeating.empty()) return mask;
  std::vector<uint32_t> others = *mask;
  for (const int32_t id : repeating) others[static_cast<size_t>(id) / 32] &= ~(uint32_t{1} << (id % 32));
  const bool any = std::any_of(others.begin(), others.end(), [](uint32_t word) { return word != 0; });
  return any ? std::make_shared<const std::vector<uint32_t>>(std::move(others)) : mask;
}

// `symbol`: the input that the token was read as, or -1 where it was read byte by byte.
void Grammar::track(int32_t token, int symbol) {
  if (!compiled_->free_keys) return;
  if (symbol == kChannelBegin || symbol == kCallBegin) keys_.reset();
  if (symbol == kChannelEnd) keys_.emplace();
  if (symbol < 0 && keys_) keys_->read(compiled_->vocabulary->tokenizer().piece(token));
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
  const bool is_symbol = symbol != symbols.end() && compiled_->automaton.reads(states, input);
  if (is_symbol) {
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
  if (!ends) track(token, is_symbol ? input : -1);
  return true;
}

Grammar Grammar::regex(const Vocabulary& vocabulary, std::string_view expression, const GrammarOptions& options) {
  if (expression.size() > kSchemaMax) throw Error("the regular expression is too large");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  PushdownAutomaton& a = compiled->automaton;
  const int rule = a.new_rule();
  a.set_rule(rule, expression_nodes(a, expression, a.finish()));
  compiled->begin(rule, options);
  return Grammar(std::move(compiled));
}

Grammar Grammar::choice(const Vocabulary& vocabulary, const std::vector<std::string>& choices,
                        const GrammarOptions& options) {
  if (choices.empty()) throw Error("there is nothing to choose from");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  PushdownAutomaton& a = compiled->automaton;
  std::vector<std::vector<int>> sequences;
  for (const std::string& choice : choices) {
    a.budget().charge(10 + choice.size());
    sequences.emplace_back();
    for (const char c : choice) sequences.back().push_back(static_cast<unsigned char>(c));
  }
  const int rule = a.new_rule();
  a.set_rule(rule, a.one_of(std::move(sequences), a.finish()));
  compiled->begin(rule, options);
  return Grammar(std::move(compiled));
}

Grammar Grammar::text_grammar(const Vocabulary& vocabulary, std::string_view grammar, const GrammarOptions& options) {
  if (grammar.size() > kSchemaMax) throw Error("the grammar is too large");
  auto compiled = std::make_shared<Compiled>(vocabulary, options);
  compiled->begin(TextGrammar(compiled->automaton, grammar).rule(), options);
  return Grammar(std::move(compiled));
}

const std::vector<SchemaNote>& Grammar::notes() const { return compiled_->notes; }

WorkBudget& Grammar::budget() const { return *compiled_->budget; }

bool Grammar::complete() const { return !ended_ && position_->states.complete; }

}  // namespace gemma4
