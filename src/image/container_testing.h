// Containers of pictures, taken apart and put together again with right lengths and checksums: for tests and for the
// fuzz targets, whose mutations would otherwise be refused by a checksum.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gemma4 {

using Chunks = std::vector<std::pair<std::string, std::string>>;  // name and data

inline std::string big_endian(uint32_t v) {
  return {static_cast<char>(v >> 24), static_cast<char>(v >> 16), static_cast<char>(v >> 8), static_cast<char>(v)};
}

inline std::string little_endian(uint32_t v) {
  return {static_cast<char>(v), static_cast<char>(v >> 8), static_cast<char>(v >> 16), static_cast<char>(v >> 24)};
}

inline uint32_t read_number(std::string_view text, size_t at, int bytes, bool big) {
  uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | static_cast<uint8_t>(text[at + (big ? i : bytes - 1 - i)]);
  return value;
}

inline std::string deflated(std::string_view text) {
  uLongf size = compressBound(text.size());
  std::string out(size, '\0');
  compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(text.data()), text.size(), 9);
  out.resize(size);
  return out;
}

inline std::string png_chunk(const std::string& name, const std::string& data) {
  const std::string body = name + data;
  const auto sum = static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(body.data()), body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(sum);
}

inline std::string png_header(uint32_t width, uint32_t height, int depth, int colour, bool interlaced = false) {
  return big_endian(width) + big_endian(height) +
         std::string{static_cast<char>(depth), static_cast<char>(colour), 0, 0, static_cast<char>(interlaced)};
}

inline std::string write_png(const Chunks& chunks) {
  std::string out = "\x89PNG\r\n\x1a\n";
  for (const auto& [name, data] : chunks) out += png_chunk(name, data);
  return out;
}

inline Chunks read_png(std::string_view file) {
  Chunks chunks;
  for (size_t at = 8; at + 12 <= file.size();) {
    const uint32_t size = read_number(file, at, 4, true);
    if (size > file.size() - at - 12) break;
    chunks.emplace_back(file.substr(at + 4, 4), file.substr(at + 8, size));
    at += size_t{12} + size;
  }
  return chunks;
}

inline std::string write_webp(const Chunks& chunks) {
  std::string body = "WEBP";
  for (const auto& [name, data] : chunks) {
    body += name + little_endian(static_cast<uint32_t>(data.size())) + data + std::string(data.size() % 2, '\0');
  }
  return "RIFF" + little_endian(static_cast<uint32_t>(body.size())) + body;
}

inline Chunks read_webp(std::string_view file) {
  Chunks chunks;
  for (size_t at = 12; at + 8 <= file.size();) {
    const uint32_t size = read_number(file, at + 4, 4, false);
    if (size > file.size() - at - 8) break;
    chunks.emplace_back(file.substr(at, 4), file.substr(at + 8, size));
    at += size_t{8} + size + size % 2;
  }
  return chunks;
}

// A JPEG's segments, each named by its marker's byte. That of a scan (0xda) holds its header, and the name "scan" what
// follows it up to the next marker.
inline std::string write_jpeg(const Chunks& chunks) {
  std::string out = "\xff\xd8";
  for (const auto& [name, data] : chunks) {
    if (name == "scan") {
      out += data;
      continue;
    }
    const auto size = static_cast<uint32_t>(data.size() + 2);
    out += '\xff' + name + static_cast<char>(size >> 8) + static_cast<char>(size) + data;
  }
  return out + "\xff\xd9";
}

inline Chunks read_jpeg(std::string_view file) {
  Chunks chunks;
  for (size_t at = 2; at + 4 <= file.size() && file[at] == '\xff' && file[at + 1] != '\xd9';) {
    const std::string name(1, file[at + 1]);
    const uint32_t size = read_number(file, at + 2, 2, true);
    if (size < 2 || size > file.size() - at - 2) break;
    chunks.emplace_back(name, file.substr(at + 4, size - 2));
    at += size_t{2} + size;
    if (name != "\xda") continue;
    size_t end = at;
    const auto inside = [&](size_t i) {
      const auto next = static_cast<uint8_t>(file[i + 1]);
      return file[i] != '\xff' || next == 0 || (next >= 0xd0 && next <= 0xd7);
    };
    while (end + 1 < file.size() && inside(end)) ++end;
    chunks.emplace_back("scan", file.substr(at, end - at));
    at = end;
  }
  return chunks;
}

}  // namespace gemma4
