#include "text/grammar/key_tracker.h"

#include <utility>

#include "base/utf8.h"

namespace gemma4 {

KeyTracker::Happened KeyTracker::step(Cursor& at, char c) {
  if (at.in_string) {
    if (at.hex_left > 0) {
      const char lower = static_cast<char>(c | 0x20);
      at.point = at.point * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : lower - 'a' + 10);
      if (--at.hex_left == 0 && at.is_key) utf8_append(at.key, at.point);
    } else if (std::exchange(at.escaped, false)) {
      constexpr std::string_view kNames = "bfnrt", kValues = "\b\f\n\r\t";
      const size_t i = kNames.find(c);
      if (c == 'u') at.hex_left = 4, at.point = 0;
      if (c != 'u' && at.is_key) at.key += i == std::string_view::npos ? c : kValues[i];
    } else if (c == '\\') {
      at.escaped = true;
    } else if (c == '"') {
      at.in_string = false;
      if (std::exchange(at.is_key, false)) return kKey;
    } else if (at.is_key) {
      at.key += c;
    }
    return kNothing;
  }
  switch (c) {
    case '"':
      at.in_string = true;
      at.is_key = std::exchange(at.expects_key, false);
      at.key.clear();
      return kNothing;
    case '{':
      at.expects_key = true;
      return kOpened;
    case '[':
      return kOpenedArray;
    case '}':
    case ']':
      at.expects_key = false;
      return kClosed;
    case ',':
      return kComma;
    default:
      return kNothing;
  }
}

void KeyTracker::read(std::string_view text) {
  for (const char c : text) {
    switch (step(cursor_, c)) {
      case kOpened:
        levels_.push_back({true, {}});
        break;
      case kOpenedArray:
        levels_.push_back({false, {}});
        break;
      case kClosed:
        if (levels_.empty()) break;
        keys_in_all_ -= levels_.back().keys.size();
        levels_.pop_back();
        break;
      case kComma:
        cursor_.expects_key = !levels_.empty() && levels_.back().is_object;
        break;
      case kKey:
        if (!levels_.empty()) keys_in_all_ += levels_.back().keys.insert(cursor_.key).second;
        break;
      case kNothing:
        break;
    }
  }
}

bool KeyTracker::repeats(std::string_view text) const {
  Cursor at = cursor_;
  size_t below = levels_.size();  // levels that are still open of those before the text
  std::set<std::string> added;    // keys of the last of them
  std::vector<Level> above;       // levels that the text opens
  const auto is_object = [&] {
    return above.empty() ? below > 0 && levels_[below - 1].is_object : above.back().is_object;
  };
  for (const char c : text) {
    switch (step(at, c)) {
      case kOpened:
        above.push_back({true, {}});
        break;
      case kOpenedArray:
        above.push_back({false, {}});
        break;
      case kClosed:
        if (!above.empty()) {
          above.pop_back();
        } else if (below > 0) {
          --below;
          added.clear();
        }
        break;
      case kComma:
        at.expects_key = is_object();
        break;
      case kKey:
        if (!above.empty()) {
          if (!above.back().keys.insert(at.key).second) return true;
        } else if (below > 0 && (levels_[below - 1].keys.contains(at.key) || !added.insert(at.key).second)) {
          return true;
        }
        break;
      case kNothing:
        break;
    }
  }
  return false;
}

}  // namespace gemma4
