// GIF with giflib, where the build has it; the first frame, on the canvas, as Pillow shows it. What is not covered by
// the frame has the transparent colour, or colour 0. Container: CompuServe's GIF89a specification.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#if GEMMA4_GIF
#include <gif_lib.h>
#endif

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {

#if !GEMMA4_GIF

ImageHeader read_gif_header(std::span<const std::byte>) {
  throw Error("the image is a GIF, which this program was built without (giflib was not there)");
}
Decoded decode_gif(std::span<const std::byte> bytes, const DecodeBudget&) {
  read_gif_header(bytes);
  return {};
}

#else

namespace {

using Bytes = std::span<const std::byte>;

// The parts of the container up to the first frame's pixels.
struct GifFrame {
  int x = 0, y = 0, width = 0, height = 0;
  int canvas_width = 0, canvas_height = 0;  // the screen, or more where the frame is outside of it
  int transparent = -1;
};

class GifReader {
 public:
  explicit GifReader(Bytes bytes) : bytes_(bytes) {}

  GifFrame read() {
    GifFrame frame;
    at_ = 6;
    const int screen_width = pair(), screen_height = pair(), flags = next();
    skip(2);
    if ((flags & 0x80) != 0) skip(size_t{3} << ((flags & 7) + 1));
    while (true) {
      const int kind = next();
      if (kind == 0x2c) break;
      if (kind == 0x3b) throw Error("the GIF image holds no frame");
      if (kind != 0x21) throw Error("the GIF image is damaged");
      read_extension(frame);
    }
    frame.x = pair();
    frame.y = pair();
    frame.width = pair();
    frame.height = pair();
    if (frame.width == 0 || frame.height == 0) check_image_size(frame.width, frame.height);
    frame.canvas_width = std::max(screen_width, frame.x + frame.width);
    frame.canvas_height = std::max(screen_height, frame.y + frame.height);
    check_image_size(frame.canvas_width, frame.canvas_height);
    return frame;
  }

 private:
  void need(size_t count) const {
    if (bytes_.size() - at_ < count) throw Error("the GIF image is cut short");
  }
  int next() {
    need(1);
    return std::to_integer<int>(bytes_[at_++]);
  }
  int pair() {
    const int low = next();
    return low | next() << 8;
  }
  void skip(size_t count) {
    need(count);
    at_ += count;
  }

  // Blocks of at most 255 bytes, then an empty one.
  void read_extension(GifFrame& frame) {
    const int label = next();
    bool first = true;
    for (int size = next(); size != 0; size = next(), first = false) {
      need(static_cast<size_t>(size));
      if (label == 0xf9 && first && size >= 4) {
        const int flags = std::to_integer<int>(bytes_[at_]);
        frame.transparent = (flags & 1) != 0 ? std::to_integer<int>(bytes_[at_ + 3]) : -1;
      }
      skip(static_cast<size_t>(size));
    }
  }

  Bytes bytes_;
  size_t at_ = 0;
};

struct GifSource {
  Bytes bytes;
  size_t at = 0;
};

int read_gif_bytes(GifFileType* file, GifByteType* to, int count) {
  auto& source = *static_cast<GifSource*>(file->UserData);
  const size_t size = std::min(static_cast<size_t>(std::max(count, 0)), source.bytes.size() - source.at);
  if (size > 0) std::memcpy(to, source.bytes.data() + source.at, size);
  source.at += size;
  return static_cast<int>(size);
}

struct CloseGif {
  void operator()(GifFileType* file) const { DGifCloseFile(file, nullptr); }
};

[[noreturn]] void throw_gif(int code) {
  if (code == D_GIF_ERR_NOT_ENOUGH_MEM) throw std::bad_alloc();
  if (code == D_GIF_ERR_READ_FAILED || code == D_GIF_ERR_EOF_TOO_SOON) throw Error("the GIF image is cut short");
  throw Error("the GIF image is damaged");
}

void check_gif(int status, const GifFileType& file) {
  if (status != GIF_OK) throw_gif(file.Error);
}

// Goes to the pixels of the first frame.
void find_frame(GifFileType& file) {
  while (true) {
    GifRecordType kind;
    check_gif(DGifGetRecordType(&file, &kind), file);
    if (kind == IMAGE_DESC_RECORD_TYPE) return check_gif(DGifGetImageDesc(&file), file);
    if (kind != EXTENSION_RECORD_TYPE) throw Error("the GIF image holds no frame");
    int label;
    GifByteType* block;
    check_gif(DGifGetExtension(&file, &label, &block), file);
    while (block != nullptr) check_gif(DGifGetExtensionNext(&file, &block), file);
  }
}

using GifPalette = std::array<std::array<uint8_t, 3>, 256>;

GifPalette gif_palette(const GifFileType& file) {
  const ColorMapObject* map = file.Image.ColorMap != nullptr ? file.Image.ColorMap : file.SColorMap;
  GifPalette palette = {};
  for (int i = 0; i < 256; ++i) {
    if (map == nullptr) {
      palette[i].fill(static_cast<uint8_t>(i));  // no palette at all: gray
    } else if (i < map->ColorCount) {
      palette[i] = {map->Colors[i].Red, map->Colors[i].Green, map->Colors[i].Blue};
    }
  }
  return palette;
}

void read_rows(GifFileType& file, const GifFrame& frame, const GifPalette& palette, Image& image,
               const DecodeBudget& budget) {
  constexpr std::pair<int, int> kPasses[] = {{0, 8}, {4, 8}, {2, 4}, {1, 2}}, kOnce[] = {{0, 1}};
  const auto passes = file.Image.Interlace ? std::span(kPasses) : std::span<const std::pair<int, int> >(kOnce);
  std::vector<GifPixelType> line(static_cast<size_t>(frame.width));
  int64_t since = 0;
  for (const auto& [first, step] : passes) {
    for (int y = first; y < frame.height; y += step, since += frame.width) {
      if (since >= DecodeBudget::kStopPixels) {
        budget.check_stop();
        since = 0;
      }
      check_gif(DGifGetLine(&file, line.data(), frame.width), file);
      uint8_t* to = image.rgb.data() + 3 * (int64_t{frame.y + y} * image.width + frame.x);
      for (const GifPixelType index : line) {
        std::memcpy(to, palette[index].data(), 3);
        to += 3;
      }
    }
  }
}

}  // namespace

ImageHeader read_gif_header(Bytes bytes) {
  const GifFrame frame = GifReader(bytes).read();
  return {{frame.canvas_width, frame.canvas_height}, 1};
}

Decoded decode_gif(Bytes bytes, const DecodeBudget& budget) {
  const GifFrame frame = GifReader(bytes).read();
  const uint64_t pixels = uint64_t{1} * frame.canvas_width * frame.canvas_height;
  budget.check_memory(3 * pixels);
  GifSource source{bytes};
  int code = 0;
  const std::unique_ptr<GifFileType, CloseGif> file(DGifOpen(&source, read_gif_bytes, &code));
  if (file == nullptr) throw_gif(code);
  find_frame(*file);
  const GifImageDesc& found = file->Image;
  if (found.Left != frame.x || found.Top != frame.y || found.Width != frame.width || found.Height != frame.height) {
    throw Error("the GIF image is damaged");
  }
  const GifPalette palette = gif_palette(*file);
  Decoded out;
  out.image.width = frame.canvas_width;
  out.image.height = frame.canvas_height;
  out.image.rgb.resize(3 * pixels);
  const auto& empty = palette[frame.transparent >= 0 ? frame.transparent : 0];
  const bool covered = frame.width == frame.canvas_width && frame.height == frame.canvas_height;
  for (size_t i = 0; !covered && i < out.image.rgb.size(); i += 3) std::memcpy(&out.image.rgb[i], empty.data(), 3);
  read_rows(*file, frame, palette, out.image, budget);
  return out;
}

#endif

}  // namespace gemma4
