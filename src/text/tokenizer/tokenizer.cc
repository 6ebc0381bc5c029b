#include "text/tokenizer/tokenizer.h"

#include <algorithm>

#include "base/check.h"
#include "base/utf8.h"
#include "text/tokenizer/tokenizer_state.h"

namespace gemma4 {
namespace {

constexpr size_t kTextMax = size_t{1} << 30;               // bytes; symbols are counted in 32 bits
constexpr std::string_view kSpaceMark = "\xe2\x96\x81";    // U+2581
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// The byte 0xAB for the token <0xAB>; -1 for every other token.
int byte_of(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

bool marks_format(std::string_view token) {
  const bool opens = token.starts_with("<|"), closes = token.ends_with("|>");
  if (token.size() > 3 && ((opens && token.ends_with(">")) || (closes && token.starts_with("<")))) return true;
  return token.starts_with("<unused") && token.ends_with(">");
}

}  // namespace

std::string replace_all(std::string_view text, const std::vector<Replacement>& replacements) {
  std::string result(text);
  for (const Replacement& r : replacements) {
    size_t at = result.find(r.from);
    if (at == std::string::npos) continue;
    std::string next;
    size_t done = 0;
    for (; at != std::string::npos; at = result.find(r.from, done)) {
      next.append(result, done, at - done).append(r.to);
      done = at + r.from.size();
    }
    next.append(result, done);
    result = std::move(next);
  }
  return result;
}

Tokenizer::State::State(TokenizerDefinition definition) : normalizer(std::move(definition.normalizer)) {
  const size_t of_model = definition.vocabulary.size();
  for (const AddedToken& token : definition.added) definition.vocabulary.emplace_back(token.content, token.id);
  name_tokens(definition);
  add_tokens(definition.added);
  if (!definition.unknown.empty()) unknown = table.find(definition.unknown);
  std::vector<uint8_t> barred(tokens.size(), 1);
  for (size_t i = 0; i < of_model; ++i) {
    const int32_t id = definition.vocabulary[i].second;
    barred[id] = (flags[id] & kTokenControl) != 0;
  }
  bpe.build(
      {&tokens, &table, byte_ids.data(), barred.data(), unknown, definition.byte_fallback, definition.fuse_unknown},
      usable_merges(definition));
}

// Fills tokens, pieces, flags, byte_ids and the table. Every id from 0 to the highest must have exactly one token.
void Tokenizer::State::name_tokens(const TokenizerDefinition& definition) {
  int32_t count = 0;
  for (const auto& [token, id] : definition.vocabulary) count = std::max(count, id + 1);
  if (definition.vocabulary.empty() || static_cast<size_t>(count) > definition.vocabulary.size()) {
    throw Error("the vocabulary names " + std::to_string(definition.vocabulary.size()) + " tokens but ids up to " +
                std::to_string(count - 1));
  }
  std::vector<const std::string*> by_id(count);
  for (const auto& [token, id] : definition.vocabulary) {
    if (token.empty() || !utf8_valid(token)) throw Error("token " + std::to_string(id) + " is empty or not UTF-8");
    if (by_id[id] != nullptr && *by_id[id] != token) throw Error("two tokens have the id " + std::to_string(id));
    by_id[id] = &token;
  }
  flags.assign(count, 0);
  for (const AddedToken& token : definition.added) {
    flags[token.id] |= kTokenAdded | (token.special ? kTokenSpecial | kTokenControl : 0);
    if (marks_format(token.content)) flags[token.id] |= kTokenControl;
  }
  byte_ids.fill(-1);
  for (int32_t id = 0; id < count; ++id) {
    if (by_id[id] == nullptr) throw Error("no token has the id " + std::to_string(id));
    const std::string& token = *by_id[id];
    tokens.add(token);
    const int byte = byte_of(token);
    if (byte >= 0 && definition.decode_bytes) flags[id] |= kTokenByte;
    if (byte >= 0 && byte_ids[byte] < 0) byte_ids[byte] = id;
    const char value = static_cast<char>(byte);
    pieces.add(flags[id] & kTokenByte ? std::string(1, value) : replace_all(token, definition.decoder));
  }
  table.build(tokens);
}

void Tokenizer::State::add_tokens(const std::vector<AddedToken>& added) {
  for (AddedToken token : added) {
    if (table.find(token.content) != token.id) {
      throw Error("the added token '" + token.content + "' has another id in the vocabulary");
    }
    token.control = flags[token.id] & kTokenControl;
    if (token.normalized) {
      normalized.add(token, replace_all(token.content, normalizer));
    } else {
      raw.add(token, token.content);
    }
  }
}

std::vector<Bpe::Merge> Tokenizer::State::usable_merges(const TokenizerDefinition& definition) const {
  std::vector<Bpe::Merge> list;
  std::string both;
  for (const auto& [left, right] : definition.merges) {
    both.assign(left).append(right);
    const Bpe::Merge merge{table.find(left), table.find(right), table.find(both)};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0) {
      if (definition.skip_bad_merges) continue;
      throw Error("the merge of '" + left + "' and '" + right + "' is not in the vocabulary");
    }
    // Where control tokens are parsed, they are matched before merging. Elsewhere merges must not produce one.
    if ((flags[merge.result] & kTokenControl) == 0) list.push_back(merge);
  }
  return list;
}

Tokenizer Tokenizer::from_json(std::string_view json) {
  return Tokenizer(std::make_shared<State>(parse_tokenizer_json(json)));
}

Tokenizer Tokenizer::from_arrays(const TokenizerArrays& arrays) {
  if (arrays.types.size() != arrays.tokens.size()) throw Error("the vocabulary has a type missing or too many");
  TokenizerDefinition definition;
  for (size_t i = 0; i < arrays.tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const auto type = static_cast<TokenType>(arrays.types[i]);
    definition.vocabulary.emplace_back(arrays.tokens[i], id);
    if (type == TokenType::kByte) definition.byte_fallback = true;
    if (type == TokenType::kUnknown) definition.unknown = arrays.tokens[i];
    const bool special = type == TokenType::kControl || type == TokenType::kUnknown;
    if (special || type == TokenType::kUserDefined || type == TokenType::kUnused) {
      AddedToken token;
      token.id = id, token.content = arrays.tokens[i], token.special = special;
      definition.added.push_back(token);
    }
  }
  for (const std::string& merge : arrays.merges) {
    const size_t space = merge.find(' ');
    if (space == std::string::npos) throw Error("the merge '" + merge + "' has no space between its two tokens");
    definition.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  if (definition.merges.empty())
    throw Error("the vocabulary has no merges; a vocabulary of scores alone is not implemented");
  definition.skip_bad_merges = true;
  definition.fuse_unknown = definition.decode_bytes = true;
  definition.normalizer = {{" ", std::string(kSpaceMark)}};
  definition.decoder = {{std::string(kSpaceMark), " "}};
  return Tokenizer(std::make_shared<State>(std::move(definition)));
}

TokenizerArrays Tokenizer::to_arrays() const {
  TokenizerArrays arrays;
  for (int32_t id = 0; id < vocab_size(); ++id) {
    arrays.tokens.emplace_back(token(id));
    TokenType type = TokenType::kNormal;
    if (is_byte(id)) type = TokenType::kByte;
    if (state_->flags[id] & kTokenAdded) type = is_special(id) ? TokenType::kControl : TokenType::kUserDefined;
    if (id == state_->unknown) type = TokenType::kUnknown;
    arrays.types.push_back(static_cast<int32_t>(type));
  }
  for (const Bpe::Merge& merge : state_->bpe.list()) {
    arrays.merges.push_back(std::string(token(merge.left)) + ' ' + std::string(token(merge.right)));
  }
  return arrays;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special,
                                       const std::function<void()>& between) const {
  if (text.size() > kTextMax) throw Error("a text of more than 1 GiB cannot be tokenised");
  if (!utf8_valid(text)) throw Error("the text is not valid UTF-8");
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  for (const AddedTokens::Segment& segment : state_->raw.split(text, parse_special)) {
    if (segment.token != nullptr) {
      ids.push_back(segment.token->id);
      continue;
    }
    const std::string plain = replace_all(segment.text, state_->normalizer);
    if (state_->normalized.empty()) {
      state_->bpe.encode(plain, ids, between);
      continue;
    }
    for (const AddedTokens::Segment& inner : state_->normalized.split(plain, parse_special)) {
      if (inner.token != nullptr) {
        ids.push_back(inner.token->id);
      } else {
        state_->bpe.encode(inner.text, ids, between);
      }
    }
  }
  return ids;
}

std::vector<Tokenizer::Segment> Tokenizer::split_control(std::string_view text) const {
  if (!utf8_valid(text)) throw Error("the text is not valid UTF-8");
  std::vector<Segment> segments;
  for (const AddedTokens::Segment& segment : state_->raw.split(text, true)) {
    const bool control = segment.token != nullptr && segment.token->control;
    if (!control && !segments.empty() &&
        !segments.back().control) {  // an added token that is plain text joins its neighbours
      const char* begin = segments.back().text.data();
      segments.back().text = {begin, static_cast<size_t>(segment.text.data() + segment.text.size() - begin)};
    } else {
      segments.push_back({segment.text, control});
    }
  }
  return segments;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string text, bytes;
  const auto flush = [&] {
    if (utf8_valid(bytes)) {
      text += bytes;
    } else {
      for (size_t i = 0; i < bytes.size(); ++i) text += kReplacement;
    }
    bytes.clear();
  };
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size()) throw Error("the vocabulary has no token " + std::to_string(id));
    if (skip_special && is_special(id)) continue;
    if (is_byte(id)) {
      bytes += piece(id);
    } else {
      flush();
      text += piece(id);
    }
  }
  flush();
  return text;
}

int Tokenizer::vocab_size() const { return static_cast<int>(state_->flags.size()); }

// The id must come from this tokenizer or be checked by the caller.
static size_t index_of(const Tokenizer& tokenizer, int32_t id) {
  CHECK(id >= 0 && id < tokenizer.vocab_size());
  return static_cast<size_t>(id);
}

std::string_view Tokenizer::piece(int32_t id) const { return state_->pieces[index_of(*this, id)]; }
std::string_view Tokenizer::token(int32_t id) const { return state_->tokens[index_of(*this, id)]; }

std::optional<int32_t> Tokenizer::find(std::string_view token) const {
  const int32_t id = state_->table.find(token);
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

int32_t Tokenizer::require(std::string_view token) const {
  const auto id = find(token);
  if (!id) throw Error("the tokenizer has no token " + std::string(token));
  return *id;
}

bool Tokenizer::is_special(int32_t id) const { return state_->flags[index_of(*this, id)] & kTokenSpecial; }
bool Tokenizer::is_control(int32_t id) const { return state_->flags[index_of(*this, id)] & kTokenControl; }
bool Tokenizer::is_byte(int32_t id) const { return state_->flags[index_of(*this, id)] & kTokenByte; }

}  // namespace gemma4
