// Grammar: which tokens may come next, so that the output has the requested form. The forms are any JSON object, JSON
// that matches a schema, Gemma tool calls (<|tool_call>call:NAME{...}<tool_call|>), and plain text that a regular
// expression, a list or a grammar describes. End tokens are allowed exactly where the value is complete. What a schema
// asks for and masks cannot keep is in notes(); check_json() (text/schema/schema_check.h) tells whether a finished
// answer keeps it.
// Why not a library: XGrammar and llguidance are neither in Debian nor plain C++ packages (the latter needs Rust), and
// neither knows Gemma's call syntax, whose string delimiter is a token that no bytes spell.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/work_budget.h"
#include "text/grammar/key_tracker.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// A keyword of a schema that masks do not keep, or not wholly.
struct SchemaNote {
  std::string keyword, path;  // the first place
  bool checked = true;        // check_json() knows it
  std::string why = {};       // of a pattern: "pattern 'a++' has ..."; may be empty
  std::string subject() const { return why.empty() ? "the keyword " + keyword : why; }
};

struct GrammarOptions {
  std::vector<int32_t> end_ids;  // tokens that end a turn (generation_config's eos ids); at least one
  bool allow_thinking = false;   // a <|channel>...<channel|> may come first
  bool in_thought = false;       // the prompt ends inside one
  // A call of these tools, as render_chat takes them, may come in place of what a schema describes; empty: none may.
  std::string tools;
  bool parallel_tools = true;  // one call or more; else exactly one
  bool loose_tools = false;    // arguments of tools that are not strict may be any object: far less to compile
  // Charged by compiling, by masks and by reading tokens; null: one with grammar_limits(). Its limits and its
  // cancelling reach all of these, at any time and from any thread.
  std::shared_ptr<WorkBudget> budget;
  bool strict = false;          // a keyword of a schema that masks cannot keep is an Error
  bool masks_by_parts = false;  // for tests: makes masks as for a grammar with too many states (mask.h)
};

// What one request's grammar may take, for all its choices together: about half a second of one core at a vocabulary of
// 262,144. Each token that is taken adds kGrammarStepsPerToken, so that long answers of ordinary schemas pass.
WorkLimits grammar_limits();
constexpr uint64_t kGrammarStepsPerToken = 200'000;

// The tokens that a mask chooses from, arranged by their bytes. Build one for each tokenizer and share it.
class GrammarVocabulary {
 public:
  explicit GrammarVocabulary(const Tokenizer& tokenizer);
  struct State;
  const State& state() const { return *state_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  Tokenizer tokenizer_;
  std::shared_ptr<const State> state_;
};

// The state of one output: a compiled grammar, which copies share, and the position reached in it. Copy it to look
// ahead, to roll back, or to start another output.
// Threads: mask() and all else may be called on any thread, one at a time for each object (a mask that a worker makes
// comes before the advance() that uses it). Copies are independent: any number of threads may use one each, though they
// share the cache of masks. Masks and advance() throw BudgetError past the budget and CancelledError once it is
// cancelled; the object is as before then.
class Grammar {
 public:
  using Vocabulary = std::shared_ptr<const GrammarVocabulary>;
  static Grammar json_object(const Vocabulary& vocabulary, const GrammarOptions& options);
  static Grammar json_schema(const Vocabulary& vocabulary, std::string_view schema, const GrammarOptions& options);
  // `tools` as render_chat takes them; `name`: only that tool, empty: any of them. parallel: one call or more.
  static Grammar tool_calls(const Vocabulary& vocabulary, std::string_view tools, std::string_view name, bool parallel,
                            const GrammarOptions& options);
  // What comes after a <|tool_call> that the model may write or not: the rest of one call. restart() begins another.
  static Grammar rest_of_call(const Vocabulary& vocabulary, std::string_view tools, const GrammarOptions& options);
  void restart();
  // Tools whose parameters cannot be enforced, so that their arguments may be any object. None of them is strict.
  const std::vector<std::string>& unenforced_tools() const;
  // Plain text: all of it matches the expression, is one of the choices, or is what the grammar derives (GBNF, as
  // llama.cpp has it, or Lark's syntax: text_grammar.h).
  static Grammar regex(const Vocabulary& vocabulary, std::string_view expression, const GrammarOptions& options);
  static Grammar choice(const Vocabulary& vocabulary, const std::vector<std::string>& choices,
                        const GrammarOptions& options);
  static Grammar text_grammar(const Vocabulary& vocabulary, std::string_view grammar, const GrammarOptions& options);

  // The keywords of the schema that masks do not keep, or not wholly.
  const std::vector<SchemaNote>& notes() const;

  // Bit id % 32 of word id / 32 says whether `id` may come next: [(vocab_size + 31) / 32]. At least one bit is set
  // until an end token is taken. Valid until this object changes or is destroyed.
  std::span<const uint32_t> mask() const;
  bool advance(int32_t token);  // false, and nothing changes, where the mask forbids it
  bool complete() const;        // an end token may come
  bool ended() const { return ended_; }
  WorkBudget& budget() const;  // of all copies

  struct Compiled;

 private:
  struct Position;
  explicit Grammar(std::shared_ptr<Compiled> compiled);
  std::shared_ptr<const std::vector<uint32_t>> without_repeats(std::shared_ptr<const std::vector<uint32_t>> mask) const;
  void track(int32_t token, int symbol);
  std::shared_ptr<Compiled> compiled_;
  std::shared_ptr<const Position> position_;
  mutable std::shared_ptr<const std::vector<uint32_t>> mask_;  // of position_; null until first used
  bool ended_ = false;
  std::optional<KeyTracker> keys_;  // of a schema with free keys; none while a thought or a call is written
};

}  // namespace gemma4
