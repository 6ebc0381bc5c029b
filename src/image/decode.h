// Decode: what pixels does this JPEG, PNG or WebP file show? The answer is what Pillow gives for
// ImageOps.exif_transpose(Image.open(file)).convert("RGB"): the orientation of the file's EXIF (or XMP) data is
// applied, alpha is dropped (not blended), and palettes, gray, 16-bit and CMYK become RGB with 8 bits (16-bit gray by
// clipping at 255: a quirk of Pillow's, kept because the model was used with it).
//
// The bytes are untrusted. Sizes are checked before anything is allocated, and every fault of a file is reported as an
// Error whose message is safe to show to the sender.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace gemma4 {

struct ImageSize {
  int width = 0, height = 0;
  bool operator==(const ImageSize&) const = default;
};

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]
};

// Limits on what a header may claim: 64 Mi pixels are 192 MiB of RGB (8192 x 8192), more than a 60-megapixel camera
// needs; JPEG cannot say more than 65535 on a side.
inline constexpr int64_t kMaxImagePixels = int64_t{1} << 26;
inline constexpr int kMaxImageSide = 65535;
// Limit on the size of an image file: 4 bytes per pixel, which is more than the formats need uncompressed.
inline constexpr uint64_t kMaxImageFileBytes = uint64_t{4} * kMaxImagePixels;

Image decode_image(std::span<const std::byte> bytes);  // throws Error

// The size that decode_image() would return, orientation applied, from the file's headers: no pixel is decoded. Throws
// Error where a header is damaged or claims more than the limits; pixel data that is damaged goes unnoticed.
ImageSize read_image_size(std::span<const std::byte> bytes);

}  // namespace gemma4
