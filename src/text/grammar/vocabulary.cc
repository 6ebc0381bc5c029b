// GrammarVocabulary: the tokens as tries of their bytes.
#include <algorithm>
#include <map>
#include <utility>

#include "base/check.h"
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

class TrieBuilder {
  using Trie = GrammarVocabulary::State::Trie;
  using Node = GrammarVocabulary::State::Node;

 public:
  TrieBuilder(const Tokenizer& tokenizer, std::vector<int32_t> ids) : tokenizer_(tokenizer) {
    std::stable_sort(ids.begin(), ids.end(),
                     [&](int32_t a, int32_t b) { return tokenizer.piece(a) < tokenizer.piece(b); });
    trie_.tokens = std::move(ids);
    trie_.characters.resize(trie_.tokens.size());
  }

  Trie build() {
    add_node(0, 0);
    std::vector<Work> work = {{0, 0, trie_.tokens.size()}};
    while (!work.empty()) {
      const Work one = work.back();
      work.pop_back();
      path_.resize(one.depth);
      path_.push_back(one.node);
      add_children(one);
      const Node& node = trie_.nodes[one.node];
      if (node.own > 0) read_characters(node);
      size_t end = one.end;
      for (size_t i = static_cast<size_t>(node.children) + node.count; i-- > static_cast<size_t>(node.children);) {
        work.push_back({i, one.depth + 1, end});
        end = static_cast<size_t>(trie_.nodes[i].begin);
      }
    }
    number_rests();
    trie_.mask.resize(static_cast<size_t>(tokenizer_.vocab_size() + 31) / 32);
    for (const int32_t id : trie_.tokens) trie_.mask[static_cast<size_t>(id) / 32] |= uint32_t{1} << (id % 32);
    return std::move(trie_);
  }

 private:
  struct Work {
    size_t node, depth;  // bytes up to and with the node
    size_t end;          // of its tokens
  };

  std::string_view piece(size_t token) const { return tokenizer_.piece(trie_.tokens[token]); }

  void add_node(uint8_t byte, size_t begin) {
    Node node = {};
    node.byte = byte;
    node.begin = static_cast<int32_t>(begin);
    trie_.nodes.push_back(node);
    rests_.emplace_back();
    longest_.push_back(0);
    inside_.push_back(false);
  }

  void add_children(const Work& one) {
    const auto begin = static_cast<size_t>(trie_.nodes[one.node].begin), first = trie_.nodes.size();
    size_t at = begin;
    while (at < one.end && piece(at).size() == one.depth) ++at;
    constexpr size_t kOwnMax = 127;
    if (at - begin > kOwnMax) throw Error("the vocabulary has too many tokens of the same bytes");
    trie_.nodes[one.node].own = static_cast<uint16_t>((at - begin) & kOwnMax);
    while (at < one.end) {
      const char byte = piece(at)[one.depth];
      add_node(static_cast<uint8_t>(byte), at);
      while (at < one.end && piece(at)[one.depth] == byte) ++at;
    }
    trie_.nodes[one.node].children = static_cast<int32_t>(first);
    trie_.nodes[one.node].count = static_cast<uint16_t>((trie_.nodes.size() - first) & 0x1ff);
  }

  // Those of a node's tokens, which have equal bytes.
  void read_characters(const Node& node) {
    const std::string_view text = piece(static_cast<size_t>(node.begin));
    std::vector<std::pair<size_t, CharacterSet>> characters;  // where each begins
    for (size_t at = 0; at < text.size();) {
      CharacterSet set = set_of_character(text.substr(at));
      const size_t length = std::max<size_t>(utf8_length(text.substr(at)), 1);
      if (set.empty()) set.others = CharacterSet::kBroken;
      characters.emplace_back(at, set);
      for (size_t i = at + 1; i < at + length; ++i) inside_[path_[i]] = true;
      at += length;
    }
    std::fill_n(trie_.characters.begin() + node.begin, node.own,
                static_cast<uint16_t>(std::min<size_t>(characters.size(), UINT16_MAX)));
    CharacterSet after;
    for (size_t i = characters.size(); i-- > 0;) {
      const size_t before = path_[characters[i].first];
      after |= characters[i].second;
      rests_[before] |= after;
      longest_[before] = std::max(longest_[before], characters.size() - i);
    }
  }

  void number_rests() {
    std::map<CharacterSet, int32_t> numbers;
    trie_.rests.resize(trie_.nodes.size(), -1);
    for (size_t i = 0; i < trie_.nodes.size(); ++i) {
      if (inside_[i] || longest_[i] == 0 || longest_[i] > UINT8_MAX) continue;
      const auto [found, is_new] = numbers.try_emplace(rests_[i], static_cast<int32_t>(trie_.sets.size()));
      if (is_new) trie_.sets.push_back(rests_[i]);
      trie_.rests[i] = found->second;
      trie_.nodes[i].longest = static_cast<uint8_t>(longest_[i]);
      trie_.nodes[i].kinds = rests_[i].kinds();
    }
  }

  const Tokenizer& tokenizer_;
  Trie trie_;
  std::vector<size_t> path_;         // [bytes + 1] the nodes to one
  std::vector<CharacterSet> rests_;  // [nodes], as are those below
  std::vector<size_t> longest_;
  std::vector<bool> inside_;  // of a character
};

// Divides tokens by the kinds of their characters. The last group has those of kinds that few tokens have.
std::vector<std::vector<int32_t>> group_tokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  constexpr size_t kFewest = 500, kGroupsMax = 60;
  std::map<uint32_t, std::vector<int32_t>> by_kinds;
  for (const int32_t id : ids) {
    const std::string_view piece = tokenizer.piece(id);
    CharacterSet all;
    for (size_t at = 0; at < piece.size();) {
      all |= set_of_character(piece.substr(at));
      at += std::max<size_t>(utf8_length(piece.substr(at)), 1);
    }
    by_kinds[all.kinds()].push_back(id);
  }
  std::vector<std::vector<int32_t>> groups;
  std::vector<int32_t> rest;
  for (auto& [kinds, tokens] : by_kinds) {
    if (tokens.size() >= kFewest && groups.size() < kGroupsMax) {
      groups.push_back(std::move(tokens));
    } else {
      rest.insert(rest.end(), tokens.begin(), tokens.end());
    }
  }
  groups.push_back(std::move(rest));
  return groups;
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
  for (std::vector<int32_t>& group : group_tokens(tokenizer, all)) {
    state->all.push_back(TrieBuilder(tokenizer, std::move(group)).build());
  }
  state->others = TrieBuilder(tokenizer, std::move(others)).build();
  state_ = std::move(state);
}

}  // namespace gemma4
