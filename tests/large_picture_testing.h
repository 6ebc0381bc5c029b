// Test support: a picture that takes long to prepare.
#pragma once

#include <zlib.h>

#include <string>

namespace gemma4 {

// A white picture of 4096 x 4096 in 2 KB: the sender's work is small, and the decoder's is not.
inline std::string large_picture() {
  const auto word = [](uLong value) {
    std::string bytes;
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 255);
    return bytes;
  };
  const auto chunk = [&](const std::string& body) {
    const auto* bytes = reinterpret_cast<const Bytef*>(body.data());
    return word(body.size() - 4) + body + word(crc32(0, bytes, static_cast<uInt>(body.size())));
  };
  const std::string rows(size_t{4096} * (1 + 4096 / 8), '\0');
  std::string packed(compressBound(rows.size()), '\0');
  uLongf size = packed.size();
  compress2(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()), rows.size(),
            9);
  packed.resize(size);
  const std::string header = word(4096) + word(4096) + std::string("\x01\0\0\0\0", 5);  // 1 bit, grey
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR" + header) + chunk("IDAT" + packed) + chunk("IEND");
}

}  // namespace gemma4
