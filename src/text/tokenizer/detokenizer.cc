#include "text/tokenizer/detokenizer.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace gemma4 {

StopFilter::StopFilter(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    Pattern pattern{std::move(stop), {}};
    pattern.borders.assign(pattern.text.size(), 0);
    for (size_t i = 1; i < pattern.text.size(); ++i) {
      pattern.advance(pattern.text[i]);
      pattern.borders[i] = pattern.matched;
    }
    pattern.matched = 0;
    stops_.push_back(std::move(pattern));
  }
}

void StopFilter::Pattern::advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = borders[matched - 1];
  matched += text[matched] == byte;
}

// The stop string that completes first counts; of several that end at the same byte, the longest. So the result does
// not depend on how the text was split. What is held is the beginning of a stop string, so that while it is the same
// one's, it is never moved: with a long string each push would take as long as that.
std::string StopFilter::push(std::string_view text) {
  if (stopped_) return "";
  const auto first = [&](size_t size) {  // that many bytes of what is held, and of `text` behind it
    std::string out = held_.substr(0, size);
    return size > out.size() ? out.append(text.substr(0, size - out.size())) : out;
  };
  const auto holder = [&] { return std::ranges::max_element(stops_, {}, &Pattern::matched); };
  const auto before = holder();
  for (size_t i = 0; i < text.size(); ++i) {
    for (Pattern& stop : stops_) {
      stop.advance(text[i]);
      if (stop.matched == stop.text.size() && stop.matched > stop_.size()) stop_ = stop.text;
    }
    if (stop_.empty()) continue;
    stopped_ = true;
    std::string shown = first(held_.size() + i + 1 - stop_.size());
    held_.clear();
    return shown;
  }
  if (stops_.empty()) return std::string(text);
  const auto after = holder();
  std::string shown = first(held_.size() + text.size() - after->matched);
  if (after != before) held_.clear();
  held_.resize(std::min(held_.size(), after->matched));
  held_.append(after->text, held_.size(), after->matched - held_.size());
  return shown;
}

std::string StopFilter::finish() { return std::exchange(held_, ""); }

Detokenizer::Detokenizer(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer), filter_(std::move(stops)) {}

std::string Detokenizer::push(int32_t id) {
  std::string ready;
  const bool control = tokenizer_.is_control(id);
  if (control || !tokenizer_.is_byte(id))
    ready = utf8_repair(std::exchange(bytes_, ""));  // nothing can finish them now
  if (!control) bytes_ += tokenizer_.piece(id);
  const size_t complete = utf8_complete(bytes_);
  ready += utf8_repair(std::string_view(bytes_).substr(0, complete));
  bytes_.erase(0, complete);
  return filter_.push(ready);
}

std::string Detokenizer::finish() {
  const std::string ready = filter_.push(utf8_repair(std::exchange(bytes_, "")));
  return ready + filter_.finish();
}

}  // namespace gemma4
