#include "image/decode.h"

#include <array>
#include <cstring>
#include <string>

#include "base/check.h"
#include "image/codecs.h"
#include "image/heif_boxes.h"

namespace gemma4 {
namespace {

bool starts_with(std::span<const std::byte> bytes, std::string_view magic, size_t at = 0) {
  return bytes.size() >= at + magic.size() && std::memcmp(bytes.data() + at, magic.data(), magic.size()) == 0;
}

struct Codec {
  Decoded (*decode)(std::span<const std::byte> bytes, const DecodeBudget& budget);
  ImageHeader (*read_header)(std::span<const std::byte> bytes);
};

Codec codec_for(std::span<const std::byte> bytes) {
  if (bytes.empty()) throw Error("the image is empty");
  if (starts_with(bytes, "\xff\xd8\xff")) return {decode_jpeg, read_jpeg_header};
  if (starts_with(bytes, "\x89PNG\r\n\x1a\n")) return {decode_png, read_png_header};
  if (starts_with(bytes, "RIFF") && starts_with(bytes, "WEBP", 8)) return {decode_webp, read_webp_header};
  if (starts_with(bytes, "GIF87a") || starts_with(bytes, "GIF89a")) return {decode_gif, read_gif_header};
  if (starts_with(bytes, "BM")) return {decode_bmp, read_bmp_header};
  if (is_heif(bytes)) return {decode_heif, read_heif_header};
  throw Error("the image is neither JPEG, PNG, WebP, GIF, BMP, HEIC nor AVIF");
}

bool swaps_sides(int orientation) { return orientation >= 5 && orientation <= 8; }

// Source pixel (x, y) of output pixel (0, 0), and the steps in the source for one step right and one step down.
struct Walk {
  int64_t start, right, down;
};

Walk walk_for(int orientation, int64_t w, int64_t h) {
  switch (orientation) {
    case 2:  // mirrored left to right
      return {w - 1, -1, w};
    case 3:  // upside down
      return {w * h - 1, -1, -w};
    case 4:  // mirrored top to bottom
      return {(h - 1) * w, 1, -w};
    case 5:  // transposed
      return {0, w, 1};
    case 6:  // to be turned clockwise
      return {(h - 1) * w, -w, 1};
    case 7:  // transposed across the other diagonal
      return {w * h - 1, -w, -1};
    default:  // 8: to be turned counter-clockwise
      return {w - 1, w, -1};
  }
}

Image oriented(Image image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const Walk walk = walk_for(orientation, image.width, image.height);
  Image out;
  out.width = swaps_sides(orientation) ? image.height : image.width;
  out.height = swaps_sides(orientation) ? image.width : image.height;
  out.rgb.resize(image.rgb.size());
  uint8_t* to = out.rgb.data();
  for (int y = 0; y < out.height; ++y) {
    const uint8_t* from = image.rgb.data() + 3 * (walk.start + y * walk.down);
    for (int x = 0; x < out.width; ++x, from += 3 * walk.right, to += 3) std::memcpy(to, from, 3);
  }
  return out;
}

}  // namespace

void check_image_size(uint64_t width, uint64_t height) {
  const std::string size = std::to_string(width) + " x " + std::to_string(height);
  if (width == 0 || height == 0) throw Error("the image has no pixels: its header says " + size);
  if (width > kMaxImageSide || height > kMaxImageSide || width * height > static_cast<uint64_t>(kMaxImagePixels)) {
    throw Error("the image is too large: " + size + " is more than " + std::to_string(kMaxImagePixels) +
                " pixels or has a side of more than " + std::to_string(kMaxImageSide));
  }
}

int exif_orientation(std::span<const std::byte> block) {
  if (starts_with(block, std::string_view("Exif\0\0", 6))) block = block.subspan(6);
  if (block.size() < 8) return 0;
  const bool big = starts_with(block, std::string_view("MM\0*", 4));
  if (!big && !starts_with(block, std::string_view("II*\0", 4))) return 0;
  const auto number = [&](size_t at, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) {
      value = value << 8 | std::to_integer<uint32_t>(block[at + (big ? i : bytes - 1 - i)]);
    }
    return value;
  };
  const size_t directory = number(4, 4);  // TIFF 6.0: count, then entries of tag, type, count, value
  if (directory > block.size() - 2) return 0;
  const size_t entries = number(directory, 2);
  for (size_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + 12 * i;
    if (block.size() < 12 || entry > block.size() - 12) return 0;
    if (number(entry, 2) != 0x0112) continue;
    const uint32_t type = number(entry + 2, 2);
    const uint32_t value = type == 3 ? number(entry + 8, 2) : type == 4 ? number(entry + 8, 4) : 0;
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 0;
}

int xmp_orientation(std::string_view packet) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = packet.find(kName); at != packet.npos; at = packet.find(kName, at + 1)) {
    std::string_view rest = packet.substr(at + kName.size());
    if (rest.starts_with("=\"")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with(">")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return 0;
}

void DecodeBudget::throw_stopped() { throw DecodeStopped("decoding the image was stopped"); }

void DecodeBudget::check_memory(uint64_t bytes) const {
  if (bytes <= static_cast<uint64_t>(limits_.memory_max)) return;
  throw Error("the image needs " + std::to_string(bytes >> 20) + " MiB to be decoded, more than the " +
              std::to_string(limits_.memory_max >> 20) + " MiB that one image may take");
}

Image decode_image(std::span<const std::byte> bytes, const ImageLimits& limits, FunctionRef<bool()> stop) {
  const DecodeBudget budget(limits, stop);
  const Codec codec = codec_for(bytes);
  budget.check_stop();
  Decoded decoded = codec.decode(bytes, budget);
  if (decoded.orientation >= 2) budget.check_memory(2 * decoded.image.rgb.size());
  budget.check_stop();
  return oriented(std::move(decoded.image), decoded.orientation);
}

ImageSize read_image_size(std::span<const std::byte> bytes) {
  const ImageHeader header = codec_for(bytes).read_header(bytes);
  if (swaps_sides(header.orientation)) return {header.size.height, header.size.width};
  return header.size;
}

}  // namespace gemma4
