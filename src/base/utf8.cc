#include "base/utf8.h"

#include <algorithm>

namespace gemma4 {
namespace {

bool continuation(unsigned char byte) { return (byte & 0xc0) == 0x80; }

size_t expected_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

// The second byte's range is narrower after four lead bytes (Unicode 15, table 3-7).
bool second_allowed(unsigned char lead, unsigned char second) {
  if (!continuation(second)) return false;
  if (lead == 0xe0) return second >= 0xa0;
  if (lead == 0xed) return second <= 0x9f;
  if (lead == 0xf0) return second >= 0x90;
  if (lead == 0xf4) return second <= 0x8f;
  return true;
}

// How many ASCII characters text begins with: nearly all of most texts.
size_t ascii_length(std::string_view text) {
  return static_cast<size_t>(std::ranges::find_if(text, [](unsigned char byte) { return byte >= 0x80; }) -
                             text.begin());
}

// Whether text is a valid beginning of one character.
bool valid_prefix(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty() || expected_length(byte(0)) == 0) return false;
  if (text.size() > 1 && !second_allowed(byte(0), byte(1))) return false;
  for (size_t i = 2; i < text.size(); ++i) {
    if (!continuation(byte(i))) return false;
  }
  return true;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const size_t length = expected_length(static_cast<unsigned char>(text[0]));
  if (length == 0 || text.size() < length || !valid_prefix(text.substr(0, length))) return 0;
  return length;
}

bool utf8_valid(std::string_view text) {
  for (text.remove_prefix(ascii_length(text)); !text.empty(); text.remove_prefix(ascii_length(text))) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

size_t utf8_complete(std::string_view text) {
  for (size_t tail = 1; tail <= std::min<size_t>(3, text.size()); ++tail) {
    const std::string_view end = text.substr(text.size() - tail);
    const size_t length = expected_length(static_cast<unsigned char>(end[0]));
    if (length > tail && valid_prefix(end)) return text.size() - tail;
    if (length != 0) break;
  }
  return text.size();
}

std::string utf8_repair(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t ascii = ascii_length(text);
    const size_t length = ascii > 0 ? ascii : utf8_length(text);
    if (length == 0) {
      out += "\xef\xbf\xbd";
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out;
}

uint32_t utf8_point(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[i])); };
  if (byte(0) < 0x80) return byte(0);
  if (byte(0) < 0xe0) return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
  if (byte(0) < 0xf0) return (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

void utf8_append(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | (c >> 6)), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | (c >> 12)), put(0x80 | ((c >> 6) & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | (c >> 18)), put(0x80 | ((c >> 12) & 0x3f)), put(0x80 | ((c >> 6) & 0x3f)), put(0x80 | (c & 0x3f));
  }
}

}  // namespace gemma4
