// Stands in for text/grammar.cc until that is there: structured output is refused.
#include "base/check.h"
#include "text/grammar.h"

#define WEAK __attribute__((weak))

namespace gemma4 {

struct GrammarVocabulary::State {};
WEAK GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
[[noreturn]] static Grammar refuse() { throw Error("structured output is not in this build"); }
WEAK Grammar Grammar::json_object(std::shared_ptr<const GrammarVocabulary>, const GrammarOptions&) { refuse(); }
WEAK Grammar Grammar::json_schema(std::shared_ptr<const GrammarVocabulary>, std::string_view, const GrammarOptions&) {
  refuse();
}
WEAK Grammar Grammar::tool_calls(std::shared_ptr<const GrammarVocabulary>, std::string_view, std::string_view, bool,
                                 const GrammarOptions&) {
  refuse();
}
WEAK std::span<const uint32_t> Grammar::mask() const { return {}; }
WEAK bool Grammar::advance(int32_t) { return false; }
WEAK bool Grammar::ended() const { return false; }

}  // namespace gemma4
