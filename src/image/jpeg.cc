// JPEG with libjpeg's defaults (slow integer DCT, smooth chroma upsampling), as Pillow uses it.
#include <cstdio>  // jpeglib.h needs FILE and size_t declared

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <new>
#include <string>

#include <jerror.h>
#include <jpeglib.h>

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

// A progressive file of few bytes can ask for any number of passes over all pixels; real ones have about ten. How many
// a large picture may have is ImageLimits::scan_pixels_max.
constexpr int kMaxScans = 64;

struct Jpeg {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX] = "";
  bool cut_short = false;
  bool too_many_scans = false;
  bool stopped = false;
  int64_t since_asked = 0;  // pixels done since `budget` was asked whether to stop, at most
  const DecodeBudget* budget = nullptr;
  Image* image = nullptr;
  std::vector<uint8_t> row;  // CMYK or gray

  int64_t pixels() const { return int64_t{info.image_width} * info.image_height; }
  // Scans that the budget allows.
  int64_t scans_max() const { return std::min<int64_t>(kMaxScans, budget->limits().scan_pixels_max / pixels()); }

  ~Jpeg() { jpeg_destroy_decompress(&info); }
};

Jpeg& owner(j_common_ptr info) { return *static_cast<Jpeg*>(info->client_data); }

[[noreturn]] void fail(j_common_ptr info) {
  info->err->format_message(info, owner(info).message);
  std::longjmp(owner(info).on_error, 1);
}

// Where a file is cut short, libjpeg fills in the missing part and warns; we refuse the file. Other warnings (extra
// bytes between markers) are ignored, as in Pillow.
void on_message(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) {
    owner(info).cut_short = true;
    fail(info);
  }
}

// Called once for each row of blocks of a scan and for each row of the output.
void on_progress(j_common_ptr info) {
  constexpr int kBlockRow = 16;  // rows of pixels, at most
  Jpeg& jpeg = owner(info);
  jpeg.too_many_scans = jpeg.info.input_scan_number > jpeg.scans_max();
  jpeg.since_asked += int64_t{kBlockRow} * jpeg.info.image_width;
  if (jpeg.since_asked >= DecodeBudget::kStopPixels) {
    jpeg.since_asked = 0;
    jpeg.stopped = jpeg.budget->stopped();
  }
  if (jpeg.too_many_scans || jpeg.stopped) fail(info);
}

// Adobe's files hold inverted CMYK. Pillow's conversion: c' = k - c * k / 255, rounded.
void cmyk_to_rgb(const uint8_t* cmyk, int width, uint8_t* rgb) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int k = cmyk[3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * k + 128;
      const int value = k - ((product + (product >> 8)) >> 8);
      rgb[c] = static_cast<uint8_t>(value < 0 ? 0 : value);
    }
  }
}

void read_rows(Jpeg& jpeg) {
  auto& info = jpeg.info;
  Image& image = *jpeg.image;
  while (info.output_scanline < info.output_height) {
    uint8_t* to = image.rgb.data() + int64_t{3} * image.width * info.output_scanline;
    if (info.out_color_space == JCS_RGB) {
      jpeg_read_scanlines(&info, &to, 1);
      continue;
    }
    uint8_t* row = jpeg.row.data();
    jpeg_read_scanlines(&info, &row, 1);
    if (info.out_color_space == JCS_CMYK) {
      cmyk_to_rgb(row, image.width, to);
    } else {
      for (int x = 0; x < image.width; ++x) std::memset(to + 3 * x, row[x], 3);
    }
  }
}

void read_header(Jpeg& jpeg, std::span<const std::byte> bytes) {
  auto& info = jpeg.info;
  jpeg_create_decompress(&info);
  info.client_data = &jpeg;
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_read_header(&info, TRUE);
  check_image_size(info.image_width, info.image_height);
}

// read_header() and decode() keep their state in `jpeg`, which the caller owns, so that a jump skips no destructor.
bool try_read_header(Jpeg& jpeg, std::span<const std::byte> bytes) {
  if (setjmp(jpeg.on_error)) return false;
  read_header(jpeg, bytes);
  return true;
}

// Bytes that decoding takes: the pixels, and where the file has several scans all coefficients.
uint64_t memory_needed(Jpeg& jpeg) {
  uint64_t bytes = 3 * static_cast<uint64_t>(jpeg.pixels());
  if (!jpeg_has_multiple_scans(&jpeg.info)) return bytes;
  for (int i = 0; i < jpeg.info.num_components; ++i) {
    const jpeg_component_info& component = jpeg.info.comp_info[i];
    bytes += uint64_t{component.width_in_blocks} * component.height_in_blocks * sizeof(JBLOCK);
  }
  return bytes;
}

bool decode(Jpeg& jpeg, std::span<const std::byte> bytes) {
  auto& info = jpeg.info;
  if (setjmp(jpeg.on_error)) return false;
  read_header(jpeg, bytes);
  jpeg.budget->check_memory(memory_needed(jpeg));
  info.progress = &jpeg.progress;
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_start_decompress(&info);
  jpeg.image->width = static_cast<int>(info.output_width);
  jpeg.image->height = static_cast<int>(info.output_height);
  jpeg.image->rgb.resize(size_t{3} * info.output_width * info.output_height);
  jpeg.row.resize(size_t{4} * info.output_width);
  read_rows(jpeg);
  jpeg_finish_decompress(&info);
  return true;
}

void set_handlers(Jpeg& jpeg) {
  jpeg.info.err = jpeg_std_error(&jpeg.errors);
  jpeg.info.client_data = &jpeg;
  jpeg.errors.error_exit = fail;
  jpeg.errors.emit_message = on_message;
  jpeg.progress.progress_monitor = on_progress;
}

[[noreturn]] void throw_failure(const Jpeg& jpeg) {
  if (jpeg.stopped) DecodeBudget::throw_stopped();
  if (jpeg.errors.msg_code == JERR_OUT_OF_MEMORY) throw std::bad_alloc();
  if (jpeg.cut_short) throw Error("the JPEG image is cut short");
  if (jpeg.too_many_scans) {
    throw Error("the JPEG image has more than the " + std::to_string(jpeg.scans_max()) +
                " scans that one of its size may have");
  }
  throw Error(std::string("the JPEG image is damaged: ") + jpeg.message);
}

}  // namespace

Decoded decode_jpeg(std::span<const std::byte> bytes, const DecodeBudget& budget) {
  Decoded out;
  Jpeg jpeg;
  jpeg.image = &out.image;
  jpeg.budget = &budget;
  set_handlers(jpeg);
  if (!decode(jpeg, bytes)) throw_failure(jpeg);
  out.orientation = jpeg_orientation(bytes);
  return out;
}

ImageHeader read_jpeg_header(std::span<const std::byte> bytes) {
  Jpeg jpeg;
  set_handlers(jpeg);
  if (!try_read_header(jpeg, bytes)) throw_failure(jpeg);
  const ImageSize size = {static_cast<int>(jpeg.info.image_width), static_cast<int>(jpeg.info.image_height)};
  return {size, jpeg_orientation(bytes)};
}

}  // namespace gemma4
