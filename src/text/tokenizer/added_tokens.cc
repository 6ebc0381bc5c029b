#include "text/tokenizer/added_tokens.h"

#include <algorithm>

#include "base/utf8.h"

namespace gemma4 {
namespace {

// Unicode White_Space, as Rust's char::is_whitespace.
bool is_space(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

// Bytes of the white space that `text` begins with.
size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const std::string_view rest = text.substr(at);
    const size_t length = utf8_length(rest);
    if (length == 0 || !is_space(utf8_point(rest))) break;
    at += length;
  }
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    if (!is_space(utf8_point(text.substr(begin, end - begin)))) break;
    end = begin;
  }
  return text.size() - end;
}

// Whether a character belongs to a word. Past ASCII every character but white space counts as a letter. `tokenizers`
// uses Unicode's tables, but the difference matters to no token of a Gemma vocabulary (single_word is false in all).
bool is_word(uint32_t c) {
  if (c >= 128) return !is_space(c);
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool begins_word(std::string_view text) { return !text.empty() && is_word(utf8_point(text)); }

bool ends_word(std::string_view text) {
  if (text.empty()) return false;
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
  return is_word(utf8_point(text.substr(begin)));
}

}  // namespace

void AddedTokens::add(const AddedToken& token, std::string_view pattern) {
  int32_t node = 0;
  for (const char byte : pattern) {
    int32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({0, nodes_[node].child, -1, byte});
      nodes_[node].child = next;
    }
    node = next;
  }
  if (node == 0) return;  // an empty token matches nothing
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  begins_[static_cast<unsigned char>(pattern[0])] = true;
}

int32_t AddedTokens::child(int32_t node, char byte) const {
  int32_t at = nodes_[node].child;
  while (at != 0 && nodes_[at].byte != byte) at = nodes_[at].sibling;
  return at;
}

int32_t AddedTokens::longest(std::string_view text, size_t at, size_t& length) const {
  int32_t found = -1, node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = child(node, text[i]);
    if (node == 0) break;
    if (nodes_[node].token >= 0) found = nodes_[node].token, length = i + 1 - at;
  }
  return found;
}

std::vector<AddedTokens::Segment> AddedTokens::split(std::string_view text, bool parse_control) const {
  std::vector<Segment> segments;
  size_t done = 0, at = 0;
  while (at < text.size()) {
    size_t length = 0;
    const int32_t found = begins_[static_cast<unsigned char>(text[at])] ? longest(text, at, length) : -1;
    if (found < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[found];
    size_t begin = at, end = at + length;
    at = end;
    if (token.control && !parse_control) continue;
    if (token.single_word && (ends_word(text.substr(0, begin)) || begins_word(text.substr(end)))) continue;
    if (token.lstrip) begin -= trailing_space(text.substr(done, begin - done));
    if (token.rstrip) end += leading_space(text.substr(end));
    if (begin > done) segments.push_back({text.substr(done, begin - done), nullptr});
    segments.push_back({text.substr(begin, end - begin), &token});
    at = done = end;
  }
  if (done < text.size()) segments.push_back({text.substr(done), nullptr});
  return segments;
}

}  // namespace gemma4
