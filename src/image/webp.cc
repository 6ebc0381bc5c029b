// WebP with libwebp; of an animation the first frame, as Pillow shows it. Container: RFC 9649.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include <webp/decode.h>

#include "base/bytes.h"
#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

using Bytes = std::span<const std::byte>;

const uint8_t* data(Bytes bytes) { return reinterpret_cast<const uint8_t*>(bytes.data()); }

// The metadata in the container.
struct Container {
  int exif = 0, xmp = 0;
  Bytes frame;  // the first ANMF chunk, where there is one
};

Container read_container(Bytes bytes) {
  Container found;
  bytes = bytes.subspan(12);  // "RIFF", size, "WEBP"
  while (bytes.size() >= 8) {
    const std::string_view name(reinterpret_cast<const char*>(bytes.data()), 4);
    uint32_t size;
    std::memcpy(&size, bytes.data() + 4, 4);
    if (size > bytes.size() - 8) break;
    const Bytes chunk = bytes.subspan(8, size);
    if (name == "EXIF" && found.exif == 0) found.exif = exif_orientation(chunk);
    if (name == "XMP " && found.xmp == 0) {
      found.xmp = xmp_orientation({reinterpret_cast<const char*>(chunk.data()), chunk.size()});
    }
    if (name == "ANMF" && found.frame.empty()) found.frame = chunk;
    bytes = bytes.subspan(std::min<size_t>(bytes.size(), 8 + size_t{size} + size % 2));
  }
  return found;
}

[[noreturn]] void throw_damaged(VP8StatusCode status) {
  if (status == VP8_STATUS_NOT_ENOUGH_DATA) throw Error("the WebP image is cut short");
  if (status == VP8_STATUS_OUT_OF_MEMORY) throw std::bad_alloc();
  throw Error("the WebP image is damaged");
}

WebPBitstreamFeatures features_of(Bytes bytes) {
  WebPBitstreamFeatures features;
  const VP8StatusCode status = WebPGetFeatures(data(bytes), bytes.size(), &features);
  if (status != VP8_STATUS_OK) throw_damaged(status);
  check_image_size(features.width, features.height);
  return features;
}

struct DeleteDecoder {
  void operator()(WebPIDecoder* decoder) const { WebPIDelete(decoder); }
};

// Decodes a still picture of `width` x `height` into `image` with its corner at (x, y). The file goes in bit by bit,
// and `budget` is asked in between.
void decode_into(Bytes bytes, int width, int height, int x, int y, Image& image, const DecodeBudget& budget) {
  constexpr size_t kStep = size_t{64} << 10;
  WebPDecoderConfig config;
  CHECK(WebPInitDecoderConfig(&config));
  config.output.colorspace = MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = image.rgb.data() + 3 * (int64_t{y} * image.width + x);
  config.output.u.RGBA.stride = 3 * image.width;
  config.output.u.RGBA.size = image.rgb.size() - 3 * (size_t{0} + y * size_t(image.width) + x);
  config.output.width = width;
  config.output.height = height;
  const std::unique_ptr<WebPIDecoder, DeleteDecoder> decoder(WebPIDecode(nullptr, 0, &config));
  if (decoder == nullptr) throw std::bad_alloc();
  VP8StatusCode status = VP8_STATUS_SUSPENDED;
  for (size_t end = 0; end < bytes.size() && status == VP8_STATUS_SUSPENDED;) {
    budget.check_stop();
    end = std::min(bytes.size(), end + kStep);
    status = WebPIUpdate(decoder.get(), data(bytes), end);
  }
  if (status == VP8_STATUS_SUSPENDED) status = VP8_STATUS_NOT_ENOUGH_DATA;
  if (status != VP8_STATUS_OK) throw_damaged(status);
}

// ANMF: x / 2, y / 2, width - 1, height - 1 and duration in 3 bytes each, flags, then the frame's own chunks.
void decode_first_frame(Bytes frame, Image& image, const DecodeBudget& budget) {
  constexpr size_t kHeader = 16;
  if (frame.size() <= kHeader) throw Error("the WebP image is cut short");
  const auto number = [&](size_t at) { return data(frame)[at] | data(frame)[at + 1] << 8 | data(frame)[at + 2] << 16; };
  const int64_t x = 2 * number(0), y = 2 * number(3), width = number(6) + 1, height = number(9) + 1;
  if (x + width > image.width || y + height > image.height) throw Error("the WebP image is damaged");
  const Bytes still = frame.subspan(kHeader);
  const WebPBitstreamFeatures features = features_of(still);
  if (features.width != width || features.height != height) throw Error("the WebP image is damaged");
  decode_into(still, features.width, features.height, static_cast<int>(x), static_cast<int>(y), image, budget);
}

int orientation(const Container& found) { return found.exif ? found.exif : found.xmp; }

}  // namespace

ImageHeader read_webp_header(Bytes bytes) {
  const WebPBitstreamFeatures features = features_of(bytes);
  return {{features.width, features.height}, orientation(read_container(bytes))};
}

Decoded decode_webp(Bytes bytes, const DecodeBudget& budget) {
  const WebPBitstreamFeatures features = features_of(bytes);
  uint32_t length;  // of what follows it; the decoder that takes a file bit by bit does not look at it
  std::memcpy(&length, bytes.data() + 4, 4);
  if (length > bytes.size() - 8) throw_damaged(VP8_STATUS_NOT_ENOUGH_DATA);
  const Container container = read_container(bytes);
  const uint64_t pixels = uint64_t{1} * features.width * features.height;
  budget.check_memory((3 + 4) * pixels);  // RGB, and a lossless picture's ARGB
  Decoded out;
  out.image.width = features.width;
  out.image.height = features.height;
  out.image.rgb.resize(3 * pixels);
  if (features.has_animation) {
    decode_first_frame(container.frame, out.image, budget);
  } else {
    decode_into(bytes, features.width, features.height, 0, 0, out.image, budget);
  }
  out.orientation = orientation(container);
  return out;
}

}  // namespace gemma4
