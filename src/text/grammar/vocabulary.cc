// GrammarVocabulary: the tokens as tries of their bytes.
#include <algorithm>
#include <utility>

#include "base/utf8.h"
#include "text/grammar/mask.h"

namespace gemma4 {
namespace {

// The characters of a plain token; 0 where it is not plain. Plain characters need no escape in a JSON string, and the
// `.` of a pattern matches them.
int plain_characters(std::string_view piece) {
  int count = 0;
  for (size_t at = 0; at < piece.size(); ++count) {
    const size_t length = utf8_length(piece.substr(at));
    if (length == 0) return 0;
    const uint32_t point = utf8_point(piece.substr(at));
    if (point < 0x20 || point == '"' || point == '\\' || point == 0x7f || point == 0x2028 || point == 0x2029) return 0;
    at += length;
  }
  return count;
}

GrammarVocabulary::State::Trie make_trie(const Tokenizer& tokenizer, std::vector<int32_t> ids) {
  GrammarVocabulary::State::Trie trie;
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return tokenizer.piece(a) < tokenizer.piece(b); });
  std::vector<int32_t> open;  // the path of nodes of the last token
  const auto close_to = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back())
      trie.nodes[static_cast<size_t>(open.back())].end = static_cast<int32_t>(trie.nodes.size());
  };
  std::string_view last;
  for (const int32_t id : ids) {
    const std::string_view piece = tokenizer.piece(id);
    const auto common =
        static_cast<size_t>(std::mismatch(last.begin(), last.end(), piece.begin(), piece.end()).first - last.begin());
    close_to(common);
    for (size_t depth = common; depth < piece.size(); ++depth) {
      open.push_back(static_cast<int32_t>(trie.nodes.size()));
      const auto tokens = static_cast<int32_t>(trie.tokens.size());
      trie.nodes.push_back({static_cast<uint8_t>(piece[depth]), tokens, 0});
      trie.depths.push_back(static_cast<int32_t>(depth));
    }
    trie.tokens.push_back(id);
    last = piece;
  }
  close_to(0);
  trie.nodes.push_back({0, static_cast<int32_t>(trie.tokens.size()), 0});
  return trie;
}

}  // namespace

GrammarVocabulary::GrammarVocabulary(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  auto state = std::make_shared<State>();
  state->vocab_size = tokenizer.vocab_size();
  for (const auto& [symbol, name] : kGrammarSymbolNames) {
    state->symbols[static_cast<size_t>(symbol - kQuote)] = tokenizer.find(name).value_or(-1);
  }
  std::vector<int32_t> all, others;
  std::vector<std::pair<int, int32_t>> plain;  // characters, token
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string_view piece = tokenizer.piece(id);
    if (tokenizer.is_control(id) || piece.empty()) continue;
    all.push_back(id);
    if (piece.find('"') != std::string_view::npos) state->quoted.push_back(id);
    state->longest = std::max(state->longest, static_cast<int>(piece.size()));
    const int characters = plain_characters(piece);
    state->plain_longest = std::max(state->plain_longest, characters);
    if (characters == 0) {
      others.push_back(id);
    } else {
      plain.emplace_back(characters, id);
    }
  }
  const auto words = static_cast<size_t>(state->vocab_size + 31) / 32;
  state->plain.resize(static_cast<size_t>(state->plain_longest) + 1, std::vector<uint32_t>(words));
  for (const auto& [characters, id] : plain) {
    state->plain[static_cast<size_t>(characters)][static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
  }
  for (size_t i = 1; i < state->plain.size(); ++i) {
    for (size_t word = 0; word < words; ++word) state->plain[i][word] |= state->plain[i - 1][word];
  }
  state->all = make_trie(tokenizer, std::move(all));
  state->others = make_trie(tokenizer, std::move(others));
  state_ = std::move(state);
}

}  // namespace gemma4
