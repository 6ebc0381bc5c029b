// Codecs: how each file format becomes RGB, and what its headers say. Orientation is not applied here. For
// image/decode.cc only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "image/decode.h"

namespace gemma4 {

struct Decoded {
  Image image;
  int orientation = 1;  // EXIF's numbers, 1 .. 8
};

struct ImageHeader {
  ImageSize size;
  int orientation = 1;  // as above
};

// What a codec asks while it works.
class DecodeBudget {
 public:
  DecodeBudget(const ImageLimits& limits, FunctionRef<bool()> stop) : limits_(limits), stop_(stop) {}
  const ImageLimits& limits() const { return limits_; }
  bool stopped() const { return stop_(); }
  void check_stop() const {
    if (stopped()) throw_stopped();
  }
  [[noreturn]] static void throw_stopped();  // DecodeStopped
  void check_memory(uint64_t bytes) const;   // throws Error if the picture needs more than its budget
  // Pixels between two calls of check_stop().
  static constexpr int64_t kStopPixels = int64_t{1} << 20;

 private:
  ImageLimits limits_;
  FunctionRef<bool()> stop_;
};

Decoded decode_jpeg(std::span<const std::byte> bytes, const DecodeBudget& budget);
Decoded decode_png(std::span<const std::byte> bytes, const DecodeBudget& budget);
Decoded decode_webp(std::span<const std::byte> bytes, const DecodeBudget& budget);
Decoded decode_gif(std::span<const std::byte> bytes, const DecodeBudget& budget);
Decoded decode_bmp(std::span<const std::byte> bytes, const DecodeBudget& budget);
Decoded decode_heif(std::span<const std::byte> bytes, const DecodeBudget& budget);

// Without decoding pixels. Sizes are checked against the limits.
ImageHeader read_jpeg_header(std::span<const std::byte> bytes);
ImageHeader read_png_header(std::span<const std::byte> bytes);
ImageHeader read_webp_header(std::span<const std::byte> bytes);
ImageHeader read_gif_header(std::span<const std::byte> bytes);
ImageHeader read_bmp_header(std::span<const std::byte> bytes);
ImageHeader read_heif_header(std::span<const std::byte> bytes);

// Throws Error unless both sides lie in [1, kMaxImageSide] and the product within kMaxImagePixels.
void check_image_size(uint64_t width, uint64_t height);

// The orientation tag of a TIFF block (with or without "Exif\0\0" before it), or 0 where it has none or is damaged:
// Pillow shows such pictures unrotated too.
int exif_orientation(std::span<const std::byte> block);

// The orientation that a PNG's eXIf, text and XMP chunks say, before or after the pixels; 1 .. 8, or 0. No other chunk
// is looked into, and a compressed text that is longer than `text_max` counts as absent.
int png_orientation(std::span<const std::byte> bytes, size_t text_max);

// The same for a JPEG's markers before its first scan.
int jpeg_orientation(std::span<const std::byte> bytes);

// The number after tiff:Orientation in an XMP packet, or 0. Pillow asks it where EXIF says nothing.
int xmp_orientation(std::string_view packet);

}  // namespace gemma4
