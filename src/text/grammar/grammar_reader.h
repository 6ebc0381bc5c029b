// GrammarReader: the characters of a grammar, for the parsers of its notations (gbnf.cc, lark.cc).
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/utf8.h"
#include "text/grammar/text_grammar.h"

namespace gemma4 {

class GrammarReader {
 public:
  static constexpr int kNestingMax = 100;

  GrammarReader(std::string_view text, std::string comment, WorkBudget& budget)
      : text_(text), comment_(std::move(comment)) {
    budget.charge(text.size() * 20);
    if (!utf8_valid(text)) throw Error("the grammar is not UTF-8");
  }

  [[noreturn]] void fail(const std::string& why) const {
    const auto line = std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n') + 1;
    throw Error("grammar, line " + std::to_string(line) + ": " + why);
  }

  bool more() const { return at_ < text_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  size_t position() const { return at_; }
  void back_to(size_t position) { at_ = position; }

  bool accept(std::string_view text) {
    if (!text_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  void skip() {  // white space and comments
    while (more()) {
      if (std::string_view(" \t\r\n").find(peek()) != std::string_view::npos) {
        ++at_;
      } else if (accept(comment_)) {
        skip_line();
      } else {
        return;
      }
    }
  }
  void skip_line() { at_ = std::min(text_.find('\n', at_), text_.size()); }

  std::string name(std::string_view more_characters) {  // empty where none is here
    const size_t begin = at_;
    while (more() && (is_letter(peek()) || (peek() >= '0' && peek() <= '9') ||
                      more_characters.find(peek()) != std::string_view::npos)) {
      ++at_;
    }
    return std::string(text_.substr(begin, at_ - begin));
  }

  uint32_t number() {
    constexpr uint64_t kRepeatsMax = 99'999;
    uint64_t value = 0;
    const size_t begin = at_;
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      value = std::min(value * 10 + static_cast<uint64_t>(peek() - '0'), kRepeatsMax + 1);
    }
    if (begin == at_) fail("a number of repeats is missing");
    if (value > kRepeatsMax) {
      fail("the number of repeats " + std::string(text_.substr(begin, std::min<size_t>(at_ - begin, 40))) +
           " is above " + std::to_string(kRepeatsMax) + ", the most that is supported");
    }
    return static_cast<uint32_t>(value);
  }

  std::string character() {  // as it stands
    const size_t length = std::max<size_t>(utf8_length(text_.substr(at_)), 1);
    at_ += length;
    return std::string(text_.substr(at_ - length, length));
  }

  std::string escape() {  // after a backslash
    const char c = peek();
    if (!more()) fail("a backslash at the end");
    ++at_;
    constexpr std::string_view kNames = "nrtfv0", kValues("\n\r\t\f\v\0", 6);
    if (const size_t i = kNames.find(c); i != std::string_view::npos) return std::string(1, kValues[i]);
    if (c != 'x' && c != 'u' && c != 'U') return std::string(1, c);
    uint32_t point = 0;
    for (int i = 0; i < (c == 'x' ? 2 : c == 'u' ? 4 : 8); ++i, ++at_) {
      const char digit = peek(), lower = static_cast<char>(digit | 0x20);
      const bool decimal = digit >= '0' && digit <= '9';
      if (!decimal && (lower < 'a' || lower > 'f')) fail("an unfinished escape");
      point = point * 16 + static_cast<uint32_t>(decimal ? digit - '0' : lower - 'a' + 10);
      if (point > kLastPoint) fail("a code point above 10FFFF");
    }
    if (point >= 0xd800 && point < 0xe000) fail("half a surrogate pair");
    std::string out;
    utf8_append(out, point);
    return out;
  }

 private:
  static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

  std::string_view text_;
  std::string comment_;
  size_t at_ = 0;
};

// `one` repeated, as an expression.
inline Expression repeated(Expression one, uint32_t least, uint32_t most) {
  Expression all;
  all.type = Expression::kRepeat;
  all.least = least;
  all.most = most;
  all.operands.push_back(std::move(one));
  return all;
}

}  // namespace gemma4
