// PNG with libpng: every colour type, depth and interlacing to RGB with 8 bits. Gamma and colour profiles are ignored,
// as Pillow does.
#include <csetjmp>
#include <cstring>
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
  png_infop end = nullptr;
  std::span<const std::byte> rest;
  size_t file_size = 0;
  char message[160] = "";
  Image* image = nullptr;
  std::vector<uint8_t*> rows;
  bool gray16 = false;
  int exif = 0, xmp = 0;

  ~Png() { png_destroy_read_struct(&png, &info, &end); }
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

void read_orientation(Png& state, png_infop info) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(state.png, info, &size, &exif) && state.exif == 0) {
    state.exif = exif_orientation(std::as_bytes(std::span(exif, size)));
  }
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(state.png, info, &texts, &count);
  for (int i = 0; i < count; ++i) {
    const size_t length = texts[i].text_length ? texts[i].text_length : texts[i].itxt_length;
    const std::string_view key(texts[i].key), text(texts[i].text ? texts[i].text : "", texts[i].text ? length : 0);
    if (key == "Raw profile type exif" && state.exif == 0) state.exif = raw_profile_orientation(text);
    if (key == "XML:com.adobe.xmp" && state.xmp == 0) state.xmp = xmp_orientation(text);
  }
}

// Converts rows to RGB with 8 bits, except 16-bit gray without alpha: clip_gray16() converts that as Pillow does.
void ask_for_rgb8(Png& state, int colour, int depth) {
  png_structp png = state.png;
  state.gray16 = colour == PNG_COLOR_TYPE_GRAY && depth == 16;
  if (colour == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
  if (colour == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
  if (!state.gray16) {
    png_set_strip_16(png);
    if (!(colour & PNG_COLOR_MASK_COLOR)) png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, state.info);
}

// Pillow converts 16-bit gray by clipping it to 255, not by scaling. Works in place, from the end.
void clip_gray16(uint8_t* row, int width) {
  for (int x = width - 1; x >= 0; --x) std::memset(row + 3 * x, row[2 * x] ? 255 : row[2 * x + 1], 3);
}

void read_pixels(Png& state, uint32_t width, uint32_t height) {
  Image& image = *state.image;
  image.width = static_cast<int>(width);
  image.height = static_cast<int>(height);
  image.rgb.resize(size_t{3} * width * height);
  CHECK(png_get_rowbytes(state.png, state.info) == (state.gray16 ? size_t{2} : size_t{3}) * width);
  state.rows.resize(height);
  for (uint32_t y = 0; y < height; ++y) state.rows[y] = image.rgb.data() + size_t{3} * width * y;
  png_read_image(state.png, state.rows.data());
  if (state.gray16) {
    for (uint8_t* row : state.rows) clip_gray16(row, image.width);
  }
}

void read_header(Png& state) {
  png_set_read_fn(state.png, &state, read_bytes);
  png_set_user_limits(state.png, kMaxImageSide, kMaxImageSide);
  png_set_chunk_malloc_max(state.png, 16 << 20);
  png_set_chunk_cache_max(state.png, 256);
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

bool decode(Png& state) {
  if (setjmp(png_jmpbuf(state.png))) return false;
  read_header(state);
  const uint32_t width = png_get_image_width(state.png, state.info);
  const uint32_t height = png_get_image_height(state.png, state.info);
  if (png_get_rowbytes(state.png, state.info) * height / kMaxDeflateRatio > state.file_size) {
    png_error(state.png, "it is too short to hold the pixels it claims");
  }
  ask_for_rgb8(state, png_get_color_type(state.png, state.info), png_get_bit_depth(state.png, state.info));
  read_pixels(state, width, height);
  png_read_end(state.png, state.end);
  return true;
}

void open(Png& state, std::span<const std::byte> bytes) {
  state.rest = bytes;
  state.file_size = bytes.size();
  state.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state, fail, ignore_warning);
  if (state.png) state.info = png_create_info_struct(state.png);
  if (state.info) state.end = png_create_info_struct(state.png);
  if (!state.end) throw Error("no memory to decode a PNG image");
}

[[noreturn]] void throw_failure(const Png& state) {
  throw Error(std::string("the PNG image is damaged: ") + state.message);
}

// A PNG without pixels that has, between its header and an empty IDAT, the chunks that follow the pixels of `bytes`.
std::string chunks_after_pixels(std::span<const std::byte> bytes) {
  const std::string_view file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::string out(file.substr(0, 8));
  bool after = false;
  for (size_t at = 8; at + 12 <= file.size();) {
    uint32_t length = 0;
    for (int i = 0; i < 4; ++i) length = length << 8 | static_cast<uint8_t>(file[at + i]);
    if (length > file.size() - at - 12) break;
    const std::string_view name = file.substr(at + 4, 4), chunk = file.substr(at, size_t{12} + length);
    if (name == "IEND") break;
    after = after || name == "IDAT";
    if (name == "IHDR" || name == "PLTE" || (after && name != "IDAT")) out += chunk;
    at += chunk.size();
  }
  return out + std::string("\0\0\0\0IDAT\x35\xaf\x06\x1e", 12);
}

int orientation(Png& state) {
  read_orientation(state, state.info);
  read_orientation(state, state.end);
  return state.exif ? state.exif : state.xmp;
}

}  // namespace

Decoded decode_png(std::span<const std::byte> bytes) {
  Decoded out;
  Png state;
  state.image = &out.image;
  open(state, bytes);
  if (!decode(state)) throw_failure(state);
  out.orientation = orientation(state);
  return out;
}

ImageHeader read_png_header(std::span<const std::byte> bytes) {
  Png state;
  open(state, bytes);
  if (!try_read_header(state)) throw_failure(state);
  const ImageSize size = {static_cast<int>(png_get_image_width(state.png, state.info)),
                          static_cast<int>(png_get_image_height(state.png, state.info))};
  read_orientation(state, state.info);
  // The orientation may be behind the pixels. Damage there is for decode_png() to report.
  const std::string rest = chunks_after_pixels(bytes);
  Png after;
  open(after, std::as_bytes(std::span(rest)));
  after.exif = state.exif, after.xmp = state.xmp;
  return {size, try_read_header(after) ? orientation(after) : state.exif ? state.exif : state.xmp};
}

}  // namespace gemma4
