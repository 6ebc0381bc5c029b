// PNG with libpng: every colour type, depth and interlacing to RGB with 8 bits. Gamma and colour profiles are ignored,
// as Pillow does. libpng sees no ancillary chunk but tRNS: it would inflate each, whether or not anybody asks for it.
#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include <png.h>

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

// deflate makes at most 1032 bytes of one (RFC 1951: 258 bytes for two bits), so a file this much smaller than its
// pixels is refused before memory is taken for them.
constexpr uint64_t kMaxDeflateRatio = 1032;

struct Png {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::span<const std::byte> rest;
  size_t file_size = 0;
  char message[160] = "";
  Image* image = nullptr;
  bool gray16 = false;
  bool no_memory = false;

  ~Png() { png_destroy_read_struct(&png, &info, nullptr); }
};

void read_bytes(png_structp png, png_bytep to, size_t count) {
  auto& state = *static_cast<Png*>(png_get_io_ptr(png));
  if (count > state.rest.size()) png_error(png, "it is cut short");
  std::memcpy(to, state.rest.data(), count);
  state.rest = state.rest.subspan(count);
}

[[noreturn]] void fail(png_structp png, png_const_charp message) {
  auto& state = *static_cast<Png*>(png_get_error_ptr(png));
  std::strncpy(state.message, message, sizeof(state.message) - 1);
  png_longjmp(png, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

png_voidp allocate(png_structp png, png_alloc_size_t size) {
  void* memory = std::malloc(size);
  if (memory == nullptr) static_cast<Png*>(png_get_mem_ptr(png))->no_memory = true;
  return memory;
}

void release(png_structp, png_voidp memory) { std::free(memory); }

// Returns the number of passes. Converts rows to RGB with 8 bits, except 16-bit gray without alpha: clip_gray16()
// converts that as Pillow does.
int ask_for_rgb8(Png& state, int colour, int depth) {
  png_structp png = state.png;
  state.gray16 = colour == PNG_COLOR_TYPE_GRAY && depth == 16;
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (colour == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
  if (!state.gray16) {
    png_set_strip_16(png);
    if (!(colour & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
  }
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, state.info);
  return passes;
}

// Pillow converts 16-bit gray by clipping it to 255, not by scaling. Works in place, from the end.
void clip_gray16(uint8_t* row, int width) {
  for (int x = width - 1; x >= 0; --x) std::memset(row + 3 * x, row[2 * x] ? 255 : row[2 * x + 1], 3);
}

// As png_read_image(), which cannot be stopped.
void read_pixels(Png& state, uint32_t width, uint32_t height, int passes, const DecodeBudget& budget) {
  Image& image = *state.image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.rgb.resize(size_t{3} * width * height);
  CHECK(png_get_rowbytes(state.png, state.info) == (state.gray16 ? size_t{2} : size_t{3}) * width);
  const auto stop_rows = static_cast<uint32_t>(std::max<int64_t>(1, DecodeBudget::kStopPixels / width));
  const auto row = [&](uint32_t y) { return image.rgb.data() + size_t{3} * width * y; };
  for (int pass = 0; pass < passes; ++pass) {
    for (uint32_t y = 0; y < height; ++y) {
      if (y % stop_rows == 0) budget.check_stop();
      png_read_row(state.png, row(y), nullptr);
    }
  }
  for (uint32_t y = 0; state.gray16 && y < height; ++y) clip_gray16(row(y), image.width);
}

void read_header(Png& state) {
  png_set_read_fn(state.png, &state, read_bytes);
  png_set_user_limits(state.png, kMaxImageSide, kMaxImageSide);
  png_set_keep_unknown_chunks(state.png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);  // also the known ones, but for tRNS
  png_set_benign_errors(state.png, 1);
  png_read_info(state.png, state.info);
  check_image_size(png_get_image_width(state.png, state.info), png_get_image_height(state.png, state.info));
}

// The functions below keep their state in `state`, which the caller owns, so that a jump skips no destructor.
bool try_read_header(Png& state) {
  if (setjmp(png_jmpbuf(state.png))) return false;
  read_header(state);
  return true;
}

bool decode(Png& state, const DecodeBudget& budget) {
  if (setjmp(png_jmpbuf(state.png))) return false;
  read_header(state);
  const uint32_t width = png_get_image_width(state.png, state.info);
  const uint32_t height = png_get_image_height(state.png, state.info);
  if (png_get_rowbytes(state.png, state.info) * height / kMaxDeflateRatio > state.file_size) {
    png_error(state.png, "it is too short to hold the pixels it claims");
  }
  budget.check_memory(uint64_t{3} * width * height);
  const int passes =
      ask_for_rgb8(state, png_get_color_type(state.png, state.info), png_get_bit_depth(state.png, state.info));
  read_pixels(state, width, height, passes, budget);
  png_read_end(state.png, nullptr);
  return true;
}

void open(Png& state, std::span<const std::byte> bytes) {
  state.rest = bytes;
  state.file_size = bytes.size();
  state.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &state, fail, ignore_warning, &state, allocate, release);
  if (state.png) state.info = png_create_info_struct(state.png);
  if (!state.info) throw std::bad_alloc();
}

[[noreturn]] void throw_failure(const Png& state) {
  if (state.no_memory) throw std::bad_alloc();
  throw Error(std::string("the PNG image is damaged: ") + state.message);
}

}  // namespace

Decoded decode_png(std::span<const std::byte> bytes, const DecodeBudget& budget) {
  Decoded out;
  Png state;
  state.image = &out.image;
  open(state, bytes);
  if (!decode(state, budget)) throw_failure(state);
  out.orientation = png_orientation(bytes, budget.limits().text_max);
  return out;
}

ImageHeader read_png_header(std::span<const std::byte> bytes) {
  Png state;
  open(state, bytes);
  if (!try_read_header(state)) throw_failure(state);
  const ImageSize size = {static_cast<int>(png_get_image_width(state.png, state.info)),
                          static_cast<int>(png_get_image_height(state.png, state.info))};
  return {size, png_orientation(bytes, ImageLimits().text_max)};
}

}  // namespace gemma4
