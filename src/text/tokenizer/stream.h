// TokenStream: token ids in, text out as it arrives. What it hands out is always whole UTF-8 characters, never a
// control token, and never the beginning of a stop string that may still complete. The parts joined are the text of all
// ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

// Holds text back while its end could be the beginning of a stop string.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // empty strings are ignored
  std::string push(std::string_view text);              // what may be shown now; nothing once stopped()
  std::string finish();                                 // what was held back
  bool stopped() const { return stopped_; }
  const std::string& stop() const { return stop_; }  // the string that stopped it

 private:
  std::vector<std::string> stops_;
  std::string held_, stop_;
  bool stopped_ = false;
};

class TokenStream {
 public:
  explicit TokenStream(const Tokenizer& tokenizer, std::vector<std::string> stops = {});
  std::string push(int32_t id);
  std::string finish();  // the rest; an unfinished character becomes U+FFFD for each of its bytes
  bool stopped() const { return filter_.stopped(); }
  const std::string& stop() const { return filter_.stop(); }

 private:
  Tokenizer tokenizer_;
  StopFilter filter_;
  std::string bytes_;  // the last character's bytes so far
};

}  // namespace gemma4
