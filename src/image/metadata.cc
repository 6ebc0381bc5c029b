// The orientation in the metadata of PNG and JPEG files, read from the bytes: of all metadata only what is asked for is
// looked into, whatever else a file holds.
#include <algorithm>
#include <cstring>
#include <string>

#include <zlib.h>

#include "image/codecs.h"

namespace gemma4 {
namespace {

constexpr size_t kKeywordMax = 79;

uint32_t big_endian32(std::string_view text) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(text[i]);
  return value;
}

// ImageMagick stores EXIF as text: a newline, the kind, the byte count, then hexadecimal digits in lines.
int raw_profile_orientation(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const size_t end = text.find('\n');
    if (end == text.npos) return 0;
    text.remove_prefix(end + 1);
  }
  std::vector<std::byte> block;
  int high = -1;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) continue;
    if (high >= 0) block.push_back(static_cast<std::byte>(high << 4 | digit));
    high = high >= 0 ? -1 : digit;
  }
  return exif_orientation(block);
}

// What a PNG's chunks say.
class PngMetadata {
 public:
  explicit PngMetadata(size_t text_max) : left_(text_max) {}

  void add(std::string_view type, std::string_view data) {
    if (type == "eXIf" && exif_ == 0) exif_ = exif_orientation(std::as_bytes(std::span(data)));
    const std::string_view keyword = data.substr(0, data.substr(0, kKeywordMax + 1).find('\0'));
    const bool raw_exif = keyword == "Raw profile type exif" && exif_ == 0;
    if (!raw_exif && !(keyword == "XML:com.adobe.xmp" && xmp_ == 0)) return;
    data.remove_prefix(std::min(data.size(), keyword.size() + 1));
    std::string text;
    if (type == "tEXt") {
      text = data;
    } else if (type == "zTXt") {
      if (data.empty() || data[0] != 0) return;
      text = inflated(data.substr(1));
    } else if (type == "iTXt") {
      text = international(data);
    }
    (raw_exif ? exif_ : xmp_) = raw_exif ? raw_profile_orientation(text) : xmp_orientation(text);
  }

  int orientation() const { return exif_ ? exif_ : xmp_; }

 private:
  // After the keyword: whether the text is compressed, the method, a language, a translated keyword, the text.
  std::string international(std::string_view data) {
    if (data.size() < 2 || data[1] != 0) return "";
    const bool compressed = data[0] != 0;
    data.remove_prefix(2);
    for (int skipped = 0; skipped < 2; ++skipped) {
      const size_t end = data.find('\0');
      if (end == data.npos) return "";
      data.remove_prefix(end + 1);
    }
    return compressed ? inflated(data) : std::string(data);
  }

  // Empty if the text is damaged or the budget of all texts does not hold it.
  std::string inflated(std::string_view data) {
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
    stream.avail_in = static_cast<uInt>(data.size());
    std::string text;
    int status = Z_OK;
    while (status == Z_OK && text.size() < left_) {
      const size_t done = text.size();
      text.resize(std::min(left_, done + (size_t{64} << 10)));
      stream.next_out = reinterpret_cast<Bytef*>(text.data() + done);
      stream.avail_out = static_cast<uInt>(text.size() - done);
      status = inflate(&stream, Z_NO_FLUSH);
      text.resize(text.size() - std::min(text.size(), size_t{stream.avail_out}));
    }
    inflateEnd(&stream);
    left_ -= text.size();
    return status == Z_STREAM_END ? text : "";
  }

  size_t left_;  // bytes that texts may still become
  int exif_ = 0, xmp_ = 0;
};

}  // namespace

int png_orientation(std::span<const std::byte> bytes, size_t text_max) {
  const std::string_view file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  PngMetadata metadata(text_max);
  for (size_t at = 8; at + 12 <= file.size();) {  // a chunk: length, type, data, checksum of type and data
    const uint32_t length = big_endian32(file.substr(at));
    if (length > file.size() - at - 12) break;
    const std::string_view type = file.substr(at + 4, 4), data = file.substr(at + 8, length);
    at += size_t{12} + length;
    if (type == "IEND") break;
    if (type != "eXIf" && type != "tEXt" && type != "zTXt" && type != "iTXt") continue;
    const uLong sum = crc32(0, reinterpret_cast<const Bytef*>(type.data()), static_cast<uInt>(4 + length));
    if (sum == big_endian32(file.substr(at - 4))) metadata.add(type, data);
  }
  return metadata.orientation();
}

int jpeg_orientation(std::span<const std::byte> bytes) {
  constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  const std::string_view file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  int exif = 0, xmp = 0;
  for (size_t at = 2; at < file.size() && exif == 0;) {  // after the marker that begins the file
    at = file.find('\xff', at);
    if (at != file.npos) at = file.find_first_not_of('\xff', at);
    if (at == file.npos) break;
    const auto marker = static_cast<uint8_t>(file[at++]);
    if (marker == 0xda || marker == 0xd9) break;                                     // the first scan, or the end
    if (marker == 0 || marker == 1 || (marker >= 0xd0 && marker <= 0xd8)) continue;  // without data
    if (file.size() - at < 2) break;
    const size_t length = static_cast<uint8_t>(file[at]) << 8 | static_cast<uint8_t>(file[at + 1]);
    if (length < 2 || length > file.size() - at) break;
    const std::string_view data = file.substr(at + 2, length - 2);
    at += length;
    if (marker != 0xe1) continue;
    if (data.starts_with(kExif)) exif = exif_orientation(std::as_bytes(std::span(data)));
    if (data.starts_with(kXmp) && xmp == 0) xmp = xmp_orientation(data.substr(kXmp.size()));
  }
  return exif ? exif : xmp;
}

}  // namespace gemma4
