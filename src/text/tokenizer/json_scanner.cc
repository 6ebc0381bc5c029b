#include "text/tokenizer/json_scanner.h"

#include "base/utf8.h"

namespace gemma4 {

void JsonScanner::fail(const std::string& why) const {
  throw Error(what_ + ": not the JSON it should be at byte " + std::to_string(at_) + ": " + why);
}

void JsonScanner::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    ++at_;
  }
}

char JsonScanner::peek() {
  skip_space();
  if (at_ >= text_.size()) fail("the text ends");
  return text_[at_];
}

bool JsonScanner::accept(char c) {
  if (peek() != c) return false;
  ++at_;
  return true;
}

void JsonScanner::expect(char c) {
  if (!accept(c)) fail(std::string("expected '") + c + "'");
}

std::string_view JsonScanner::string(std::string& scratch) {
  if (peek() != '"') fail("expected a string");
  const size_t begin = ++at_;
  for (; at_ < text_.size(); ++at_) {
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') return text_.substr(begin, at_++ - begin);
    if (c == '\\') break;
    if (c < 0x20) fail("a control character in a string");
  }
  scratch.assign(text_.substr(begin, at_ - begin));
  while (at_ < text_.size()) {
    const auto c = static_cast<unsigned char>(text_[at_++]);
    if (c == '"') return scratch;
    if (c < 0x20) fail("a control character in a string");
    if (c == '\\') {
      unescape(scratch);
    } else {
      scratch.push_back(static_cast<char>(c));
    }
  }
  fail("a string does not end");
}

uint32_t JsonScanner::hex4() {
  if (text_.size() - at_ < 4) fail("\\u needs four digits");
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[at_++];
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("\\u needs four digits");
    value = value * 16 + static_cast<uint32_t>(digit);
  }
  return value;
}

void JsonScanner::unescape(std::string& out) {
  if (at_ >= text_.size()) fail("a string does not end");
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const char c = text_[at_++];
  if (const size_t i = kNames.find(c); i != std::string_view::npos) {
    out.push_back(kValues[i]);
    return;
  }
  if (c != 'u') fail("an unknown escape");
  uint32_t point = hex4();
  if (point >= 0xd800 && point < 0xdc00) {  // a high surrogate needs its low one
    if (text_.substr(at_, 2) != "\\u") fail("half of a surrogate pair");
    at_ += 2;
    const uint32_t low = hex4();
    if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
    point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
  } else if (point >= 0xdc00 && point < 0xe000) {
    fail("half of a surrogate pair");
  }
  utf8_append(out, point);
}

int64_t JsonScanner::integer() {
  const bool negative = peek() == '-';
  if (negative) ++at_;
  const size_t begin = at_;
  int64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    if (at_ - begin >= 18) fail("an integer is too large");
    value = value * 10 + (text_[at_] - '0');
  }
  if (at_ == begin) fail("expected an integer");
  return negative ? -value : value;
}

std::string_view JsonScanner::raw() {
  peek();
  const size_t begin = at_;
  int64_t depth = 0;
  std::string scratch;
  do {
    const char c = peek();
    if (c == '"') {
      string(scratch);
    } else if (c == '{' || c == '[') {
      ++depth, ++at_;
    } else if (c == '}' || c == ']') {
      if (depth == 0) fail("a bracket closes nothing");
      --depth, ++at_;
    } else if (c == ',' || c == ':') {
      if (depth == 0) fail("expected a value");
      ++at_;
    } else {
      const size_t word = at_;
      while (at_ < text_.size() && std::string_view(" \n\r\t,:]}[{\"").find(text_[at_]) == std::string_view::npos)
        ++at_;
      if (at_ == word) fail("expected a value");
    }
  } while (depth > 0);
  return text_.substr(begin, at_ - begin);
}

void JsonScanner::end() {
  skip_space();
  if (at_ != text_.size()) fail("something follows the end");
}

}  // namespace gemma4
