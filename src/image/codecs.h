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

Decoded decode_jpeg(std::span<const std::byte> bytes);
Decoded decode_png(std::span<const std::byte> bytes);
Decoded decode_webp(std::span<const std::byte> bytes);

// Without decoding pixels. Sizes are checked against the limits.
ImageHeader read_jpeg_header(std::span<const std::byte> bytes);
ImageHeader read_png_header(std::span<const std::byte> bytes);
ImageHeader read_webp_header(std::span<const std::byte> bytes);

// Throws Error unless both sides lie in [1, kMaxImageSide] and the product within kMaxImagePixels.
void check_image_size(uint64_t width, uint64_t height);

// The orientation tag of a TIFF block (with or without "Exif\0\0" before it), or 0 where it has none or is damaged:
// Pillow shows such pictures unrotated too.
int exif_orientation(std::span<const std::byte> block);

// The number after tiff:Orientation in an XMP packet, or 0. Pillow asks it where EXIF says nothing.
int xmp_orientation(std::string_view packet);

}  // namespace gemma4
