// JPEG with libjpeg's defaults (slow integer DCT, smooth chroma upsampling), as Pillow uses it.
#include <cstdio>  // jpeglib.h needs FILE and size_t declared

#include <csetjmp>
#include <cstring>
#include <string>

#include <jerror.h>
#include <jpeglib.h>

#include "base/check.h"
#include "image/codecs.h"

namespace gemma4 {
namespace {

// A progressive file of few bytes can ask for any number of passes over all pixels; real ones have about ten.
constexpr int kMaxScans = 64;

struct Jpeg {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_progress_mgr progress{};
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX] = "";
  bool cut_short = false;
  bool too_many_scans = false;
  Image* image = nullptr;
  std::vector<uint8_t> row;  // CMYK or gray
  int exif = 0, xmp = 0;

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

void on_progress(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > kMaxScans) {
    owner(info).too_many_scans = true;
    fail(info);
  }
}

void read_markers(Jpeg& jpeg) {
  constexpr std::string_view kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  for (const jpeg_marker_struct* m = jpeg.info.marker_list; m; m = m->next) {
    const std::string_view text(reinterpret_cast<const char*>(m->data), m->data_length);
    if (text.starts_with(std::string_view("Exif\0\0", 6)) && jpeg.exif == 0) {
      jpeg.exif = exif_orientation(std::as_bytes(std::span(text.data(), text.size())));
    } else if (text.starts_with(kXmp) && jpeg.xmp == 0) {
      jpeg.xmp = xmp_orientation(text.substr(kXmp.size()));
    }
  }
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
  info.progress = &jpeg.progress;
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
  jpeg_read_header(&info, TRUE);
  check_image_size(info.image_width, info.image_height);
  read_markers(jpeg);
}

// read_header() and decode() keep their state in `jpeg`, which the caller owns, so that a jump skips no destructor.
bool try_read_header(Jpeg& jpeg, std::span<const std::byte> bytes) {
  if (setjmp(jpeg.on_error)) return false;
  read_header(jpeg, bytes);
  return true;
}

bool decode(Jpeg& jpeg, std::span<const std::byte> bytes) {
  auto& info = jpeg.info;
  if (setjmp(jpeg.on_error)) return false;
  read_header(jpeg, bytes);
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
  if (jpeg.cut_short) throw Error("the JPEG image is cut short");
  if (jpeg.too_many_scans) throw Error("the JPEG image has more than " + std::to_string(kMaxScans) + " scans");
  throw Error(std::string("the JPEG image is damaged: ") + jpeg.message);
}

int orientation(const Jpeg& jpeg) { return jpeg.exif ? jpeg.exif : jpeg.xmp; }

}  // namespace

Decoded decode_jpeg(std::span<const std::byte> bytes) {
  Decoded out;
  Jpeg jpeg;
  jpeg.image = &out.image;
  set_handlers(jpeg);
  if (!decode(jpeg, bytes)) throw_failure(jpeg);
  out.orientation = orientation(jpeg);
  return out;
}

ImageHeader read_jpeg_header(std::span<const std::byte> bytes) {
  Jpeg jpeg;
  set_handlers(jpeg);
  if (!try_read_header(jpeg, bytes)) throw_failure(jpeg);
  const ImageSize size = {static_cast<int>(jpeg.info.image_width), static_cast<int>(jpeg.info.image_height)};
  return {size, orientation(jpeg)};
}

}  // namespace gemma4
