// Decode: what pixels does this JPEG, PNG, WebP, GIF, BMP, HEIC or AVIF file show? The answer is what Pillow gives for
// ImageOps.exif_transpose(Image.open(file)).convert("RGB"): the orientation of the file's EXIF (or XMP) data is
// applied, alpha is dropped (not blended), and palettes, gray, 16-bit and CMYK become RGB with 8 bits (16-bit gray by
// clipping at 255: a quirk of Pillow's, kept because the model was used with it).
//
// The bytes are untrusted. Sizes are checked before anything is allocated, and every fault of a file is reported as an
// Error whose message is safe to show to the sender. A picture has budgets (ImageLimits) for what its decoder may take
// beyond the size of the file. Where memory is short, std::bad_alloc is thrown: the file is not at fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/function_ref.h"

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

// Budgets of one picture.
struct ImageLimits {
  // Pixels, coefficients and copies held at a time. A JPEG of several scans holds all coefficients: 2 bytes for each
  // sample. 512 MiB are enough for 64 Mi pixels, but for a progressive file without chroma subsampling (59 Mi pixels).
  int64_t memory_max = int64_t{512} << 20;
  // Pixels times scans of a JPEG: 16 scans of 64 Mi pixels. Encoders write about ten scans.
  int64_t scan_pixels_max = int64_t{1} << 30;
  // Text that a PNG's compressed metadata may become; a larger one counts as absent. Pillow takes 1 MiB for one text.
  size_t text_max = size_t{1} << 20;
};

// Thrown by decode_image() where `stop` says so.
struct DecodeStopped : Error {
  using Error::Error;
};

struct NeverStop {
  bool operator()() const { return false; }
};
inline constexpr NeverStop kNeverStop;

// Throws Error, DecodeStopped, std::bad_alloc. `stop` is asked at the start and at least once in 2 Mi pixels of a pass
// (WebP: once in 64 KiB of the file; HEIC and AVIF: before and after); it must not throw.
Image decode_image(std::span<const std::byte> bytes, const ImageLimits& limits = {},
                   FunctionRef<bool()> stop = kNeverStop);

// The size that decode_image() would return, orientation applied, from the file's headers: no pixel is decoded. Throws
// Error where a header is damaged or claims more than the limits; pixel data that is damaged goes unnoticed.
ImageSize read_image_size(std::span<const std::byte> bytes);

}  // namespace gemma4
