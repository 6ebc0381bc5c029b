// BMP, of Windows and of OS/2: 1 to 32 bits, palettes, bit masks, run lengths. There is no library for it that others
// use; the format is the one of Microsoft's documentation of BITMAPFILEHEADER, BITMAPINFOHEADER and BITMAPV5HEADER.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

using Bytes = std::span<const std::byte>;

enum BmpCompression : uint32_t { kRgb = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3, kAlphaBitFields = 6 };

uint32_t bmp_number(Bytes bytes, size_t at, size_t count) {
  uint32_t value = 0;
  for (size_t i = count; i-- > 0;) value = value << 8 | std::to_integer<uint32_t>(bytes[at + i]);
  return value;
}

struct BmpHeader {
  ImageSize size;
  bool top_down = false;
  uint32_t bits = 0, compression = kRgb;
  std::array<uint32_t, 3> masks = {};  // red, green, blue, of 16 and 32 bits
  size_t palette = 0, entry = 0, colours = 0;
  size_t pixels = 0;  // where they begin
};

[[noreturn]] void throw_bmp(const std::string& what) { throw Error("the BMP image " + what); }

void read_bmp_masks(Bytes bytes, size_t info, size_t size, BmpHeader& header) {
  const size_t end = info + 40;
  if (header.compression == kRgb) {
    header.masks = header.bits == 16 ? std::array<uint32_t, 3>{0x7c00, 0x3e0, 0x1f}
                                     : std::array<uint32_t, 3>{0xff0000, 0xff00, 0xff};
    return;
  }
  if (bytes.size() < end + 12) throw_bmp("is cut short");
  for (size_t i = 0; i < 3; ++i) header.masks[i] = bmp_number(bytes, end + 4 * i, 4);
  if (size == 40) header.palette = end + (header.compression == kAlphaBitFields ? 16 : 12);
  for (const uint32_t mask : header.masks) {
    const uint32_t low = mask >> std::countr_zero(mask | 0x80000000u);
    if (mask == 0 || (low & (low + 1)) != 0) throw_bmp("has colour masks that are no runs of bits");
  }
}

BmpHeader read_bmp(Bytes bytes) {
  constexpr size_t kInfo = 14;  // the header of the file
  if (bytes.size() < kInfo + 12) throw_bmp("is cut short");
  BmpHeader header;
  header.pixels = bmp_number(bytes, 10, 4);
  const size_t size = bmp_number(bytes, kInfo, 4);
  const bool core = size == 12;
  if (!core && size != 40 && size != 52 && size != 56 && size != 64 && size != 108 && size != 124) {
    throw_bmp("has a header of " + std::to_string(size) + " bytes, which no known kind has");
  }
  if (bytes.size() < kInfo + size) throw_bmp("is cut short");
  const size_t number = core ? 2 : 4;
  const uint32_t width = bmp_number(bytes, kInfo + 4, number);
  uint32_t height = bmp_number(bytes, kInfo + 4 + number, number);
  header.top_down = !core && height >= 0x80000000u;
  if (header.top_down) height = 0u - height;
  check_image_size(width, height);
  header.size = {static_cast<int>(width), static_cast<int>(height)};
  header.bits = bmp_number(bytes, kInfo + 6 + 2 * number, 2);
  if (!core) {
    header.compression = bmp_number(bytes, kInfo + 16, 4);
    header.colours = bmp_number(bytes, kInfo + 32, 4);
  }
  header.palette = kInfo + size;
  header.entry = core ? 3 : 4;
  const uint32_t c = header.compression;
  const bool indexed = header.bits == 1 || header.bits == 4 || header.bits == 8;
  const bool known =
      c == kRgb || (c == kRle8 && header.bits == 8) || (c == kRle4 && header.bits == 4) ||
      ((c == kBitFields || c == kAlphaBitFields) && (header.bits == 16 || header.bits == 32) && size != 64);
  if (!known || (!indexed && header.bits != 16 && header.bits != 24 && header.bits != 32)) {
    throw_bmp("has " + std::to_string(header.bits) + " bits for a pixel in a compression of the kind " +
              std::to_string(c) + ", which is not supported");
  }
  if (indexed) {
    const size_t most = size_t{1} << header.bits;
    if (header.colours == 0 || header.colours > most) header.colours = most;
  } else if (header.bits != 24) {
    read_bmp_masks(bytes, kInfo, size, header);
  }
  return header;
}

using BmpPalette = std::array<std::array<uint8_t, 3>, 256>;

BmpPalette read_bmp_palette(Bytes bytes, const BmpHeader& header) {
  BmpPalette palette = {};
  for (size_t i = 0; i < header.colours; ++i) {
    const size_t at = header.palette + i * header.entry;
    if (at + 3 > bytes.size()) throw_bmp("is cut short");
    if (at + 3 > header.pixels) break;  // a short palette; the rest is black
    for (size_t k = 0; k < 3; ++k) palette[i][k] = std::to_integer<uint8_t>(bytes[at + 2 - k]);
  }
  return palette;
}

// Writes rows in the order of the file.
class BmpRows {
 public:
  BmpRows(const BmpHeader& header, Image& image) : header_(header), image_(image) {}
  uint8_t* row(int y) const {
    const int from_top = header_.top_down ? y : image_.height - 1 - y;
    return image_.rgb.data() + size_t{3} * from_top * image_.width;
  }

 private:
  const BmpHeader& header_;
  Image& image_;
};

uint8_t bmp_channel(uint32_t pixel, uint32_t mask) {
  const int shift = std::countr_zero(mask);
  const uint64_t most = mask >> shift;
  return static_cast<uint8_t>(uint64_t{(pixel & mask) >> shift} * 255 / most);
}

void read_bmp_row(const std::byte* from, const BmpHeader& header, const BmpPalette& palette, int width, uint8_t* to) {
  const uint32_t bits = header.bits;
  const auto byte = [&](size_t i) { return std::to_integer<uint32_t>(from[i]); };
  for (int x = 0; x < width; ++x, to += 3) {
    if (bits == 24) {
      for (size_t k = 0; k < 3; ++k) to[k] = static_cast<uint8_t>(byte(3 * x + 2 - k));
    } else if (bits <= 8) {
      const uint32_t at = static_cast<uint32_t>(x) * bits;
      const uint32_t index = byte(at / 8) >> (8 - bits - at % 8) & ((1u << bits) - 1);
      std::memcpy(to, palette[index].data(), 3);
    } else {
      const size_t at = static_cast<size_t>(x) * bits / 8;
      uint32_t pixel = byte(at) | byte(at + 1) << 8;
      if (bits == 32) pixel |= byte(at + 2) << 16 | byte(at + 3) << 24;
      for (size_t k = 0; k < 3; ++k) to[k] = bmp_channel(pixel, header.masks[k]);
    }
  }
}

// Run lengths: pairs of a count and a value; a count of 0 begins an end of the line (0), of the picture (1), a step (2)
// or a run of single values. What is skipped has colour 0.
class BmpRuns {
 public:
  BmpRuns(Bytes bytes, const BmpHeader& header, const BmpPalette& palette, Image& image, const DecodeBudget& budget)
      : bytes_(bytes.subspan(std::min(bytes.size(), header.pixels))),
        nibbles_(header.compression == kRle4),
        palette_(palette),
        image_(image),
        rows_(header, image),
        budget_(budget) {}

  void read() {
    for (size_t i = 0; i < image_.rgb.size(); i += 3) std::memcpy(image_.rgb.data() + i, palette_[0].data(), 3);
    while (y_ < image_.height) {
      const uint32_t count = next(), value = next();
      if (count > 0) {
        for (uint32_t i = 0; i < count; ++i) put(nibbles_ ? (i % 2 == 0 ? value >> 4 : value & 15) : value);
      } else if (value == 0) {
        end_line();
      } else if (value == 1) {
        return;
      } else if (value == 2) {
        x_ += static_cast<int>(next());
        for (uint32_t down = next(); down > 0; --down) ++y_;
      } else {
        read_single(value);
      }
    }
  }

 private:
  uint32_t next() {
    if (at_ >= bytes_.size()) throw_bmp("is cut short");
    return std::to_integer<uint32_t>(bytes_[at_++]);
  }

  void read_single(uint32_t count) {
    uint32_t two = 0;
    for (uint32_t i = 0; i < count; ++i) {
      if (!nibbles_) {
        put(next());
        continue;
      }
      if (i % 2 == 0) two = next();
      put(i % 2 == 0 ? two >> 4 : two & 15);
    }
    const uint32_t read = nibbles_ ? (count + 1) / 2 : count;
    if (read % 2 == 1) next();  // runs of single values are padded to two bytes
  }

  void put(uint32_t index) {  // past the end of a line, it is dropped
    if (x_ < image_.width && y_ < image_.height) {
      std::memcpy(rows_.row(y_) + size_t{3} * x_, palette_[index].data(), 3);
      ++x_;
    }
  }

  void end_line() {
    x_ = 0;
    ++y_;
    if (y_ % 1024 == 0) budget_.check_stop();
  }

  Bytes bytes_;
  bool nibbles_;
  const BmpPalette& palette_;
  Image& image_;
  BmpRows rows_;
  const DecodeBudget& budget_;
  size_t at_ = 0;
  int x_ = 0, y_ = 0;
};

}  // namespace

ImageHeader read_bmp_header(Bytes bytes) { return {read_bmp(bytes).size, 1}; }

Decoded decode_bmp(Bytes bytes, const DecodeBudget& budget) {
  const BmpHeader header = read_bmp(bytes);
  const auto [width, height] = header.size;
  const int64_t pixels = int64_t{1} * width * height;
  budget.check_memory(3 * static_cast<uint64_t>(pixels));
  const uint64_t stride = (uint64_t{header.bits} * width + 31) / 32 * 4;
  const bool runs = header.compression == kRle8 || header.compression == kRle4;
  // The rows must be there before memory is taken for them. The padding of the last may be missing.
  if (!runs && (header.pixels > bytes.size() ||
                bytes.size() - header.pixels < stride * (height - 1) + (uint64_t{header.bits} * width + 7) / 8)) {
    throw_bmp("is cut short");
  }
  if (runs && header.pixels >= bytes.size()) throw_bmp("is cut short");
  const BmpPalette palette = read_bmp_palette(bytes, header);
  Decoded out;
  out.image.width = width;
  out.image.height = height;
  out.image.rgb.resize(3 * static_cast<size_t>(pixels));
  if (runs) {
    BmpRuns(bytes, header, palette, out.image, budget).read();
    return out;
  }
  const BmpRows rows(header, out.image);
  int64_t since = 0;
  for (int y = 0; y < height; ++y, since += width) {
    if (since >= DecodeBudget::kStopPixels) {
      budget.check_stop();
      since = 0;
    }
    read_bmp_row(bytes.data() + header.pixels + stride * y, header, palette, width, rows.row(y));
  }
  return out;
}

}  // namespace gemma4
