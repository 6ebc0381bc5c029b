// Detokenizer: incremental detokenization. Token ids come in one by one, and text goes out as soon as it is certain:
// whole UTF-8 characters, no control tokens, and nothing that could still become a stop string. All texts joined are
// the text of all ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// Holds back text whose end could be the beginning of a stop string. Its work is linear in the text (Knuth, Morris and
// Pratt's automaton for each string).
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // empty strings are ignored
  std::string push(std::string_view text);              // the text that may be shown now; empty once stopped()
  std::string finish();                                 // the text that was held back
  bool stopped() const { return stopped_; }
  const std::string& stop() const { return stop_; }  // the string that stopped it

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> borders;  // [size] of text[0, i]: the longest proper prefix of it that is also its suffix
    size_t matched = 0;           // bytes of `text` that what was pushed ends with
    void advance(char byte);      // sets `matched`, which becomes the size where the string is complete
  };

  std::vector<Pattern> stops_;
  std::string held_, stop_;
  bool stopped_ = false;
};

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, std::vector<std::string> stops = {});
  std::string push(int32_t id);
  std::string finish();  // the rest; an unfinished character becomes U+FFFD for each of its bytes
  bool stopped() const { return filter_.stopped(); }
  const std::string& stop() const { return filter_.stop(); }

 private:
  Tokenizer tokenizer_;
  StopFilter filter_;
  std::string bytes_;  // of a character that is not complete yet
};

}  // namespace gemma4
