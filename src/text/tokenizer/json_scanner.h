// JsonScanner: one pass over a large JSON text without building a tree, for tokenizer.json's half a million merges. It
// returns strings and integers where the caller expects them, skips other values, and returns small values as raw text
// for a full JSON parser. Throws Error at the first byte that is not allowed. It does not recurse, so nesting cannot
// exhaust the stack.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"

namespace gemma4 {

class JsonScanner {
 public:
  JsonScanner(std::string_view text, std::string what) : text_(text), what_(std::move(what)) {}

  // Calls member(key) before each value of an object; the callback must read the value.
  template <typename Member>
  void object(Member member) {
    expect('{');
    if (accept('}')) return;
    do {
      std::string scratch;
      const std::string key(string(scratch));
      expect(':');
      member(std::string_view(key));
    } while (accept(','));
    expect('}');
  }

  template <typename Element>
  void array(Element element) {
    expect('[');
    if (accept(']')) return;
    do {
      element();
    } while (accept(','));
    expect(']');
  }

  char peek();  // the first byte of the next value
  // The next string, unescaped; a view into the text or into `scratch`, valid until scratch changes.
  std::string_view string(std::string& scratch);
  int64_t integer();
  std::string_view raw();  // the text of the next value, whatever it is
  void end();              // nothing may follow

  [[noreturn]] void fail(const std::string& why) const;

 private:
  void skip_space();
  bool accept(char c);
  void expect(char c);
  void unescape(std::string& out);
  uint32_t hex4();

  std::string_view text_;
  std::string what_;
  size_t at_ = 0;
};

}  // namespace gemma4
