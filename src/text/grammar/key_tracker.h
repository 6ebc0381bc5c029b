// KeyTracker: the keys of the objects that are open in a JSON output, so that none of them is written twice. A grammar
// cannot know them where keys are free; Grammar takes the tokens that would repeat one out of a mask.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace gemma4 {

class KeyTracker {
 public:
  void read(std::string_view text);                   // the next part of an output that is valid JSON so far
  bool repeats(std::string_view text) const;          // whether it would complete a key that its object has already
  bool has_keys() const { return keys_in_all_ > 0; }  // otherwise nothing can repeat one

 private:
  // Where in the text we are: small, so that tokens are tried on a copy.
  struct Cursor {
    bool in_string = false, is_key = false, expects_key = false, escaped = false;
    int hex_left = 0;  // digits of an escaped code point
    uint32_t point = 0;
    std::string key;
  };
  enum Happened { kNothing, kOpened, kOpenedArray, kClosed, kComma, kKey };
  static Happened step(Cursor& cursor, char c);

  Cursor cursor_;
  struct Level {
    bool is_object;
    std::set<std::string> keys;
  };
  std::vector<Level> levels_;
  size_t keys_in_all_ = 0;  // of all levels
};

}  // namespace gemma4
