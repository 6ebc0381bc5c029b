#include "text/tokenizer/detokenizer.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace gemma4 {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

// The stop string that completes first counts; of several that end at the same byte, the longest. So the result does
// not depend on how the text was split.
std::string StopFilter::push(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  size_t first_end = std::string::npos, cut = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < first_end || (end == first_end && at < cut)) {
      first_end = end, cut = at, stop_ = stop;
      stopped_ = true;
    }
  }
  if (!stopped_) {
    cut = held_.size();  // keep the longest suffix that begins a stop string
    for (const std::string& stop : stops_) {
      for (size_t length = std::min(stop.size() - 1, held_.size()); length > held_.size() - cut; --length) {
        if (held_.ends_with(std::string_view(stop).substr(0, length))) {
          cut = held_.size() - length;
          break;
        }
      }
    }
  }
  std::string shown = held_.substr(0, cut);
  held_.erase(0, stopped_ ? std::string::npos : cut);
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
