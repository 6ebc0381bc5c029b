// HEIC and AVIF with libheif, where the build has it. libheif applies the orientation that the file's boxes say;
// EXIF's, which repeats it, does not count.
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#if GEMMA4_HEIF
#include <libheif/heif.h>
#endif

#include "base/check.h"
#include "image/codecs.h"
#include "image/heif_boxes.h"

namespace gemma4 {

#if !GEMMA4_HEIF

ImageHeader read_heif_header(std::span<const std::byte>) {
  throw Error("the image is HEIC or AVIF, which this program was built without (libheif was not there)");
}
Decoded decode_heif(std::span<const std::byte> bytes, const DecodeBudget&) {
  read_heif_header(bytes);
  return {};
}

#else

namespace {

using Bytes = std::span<const std::byte>;

[[noreturn]] void throw_libheif(const heif_error& error) {
  // libheif says the same of a file that asks for more than its limits allow: the file is at fault, because what an
  // undamaged one takes was bounded before.
  if (error.code == heif_error_Memory_allocation_error) {
    throw Error("the HEIC or AVIF image is damaged, or takes more memory than there is");
  }
  if (error.code == heif_error_Unsupported_feature || error.code == heif_error_Unsupported_filetype) {
    throw Error("the HEIC or AVIF image is of a kind that is not supported");
  }
  throw Error("the HEIC or AVIF image is damaged or cut short");
}

void check_libheif(const heif_error& error) {
  if (error.code != heif_error_Ok) throw_libheif(error);
}

// An opened file and the picture that it shows.
class HeifPicture {
 public:
  explicit HeifPicture(Bytes bytes) {
    static std::once_flag once;
    std::call_once(once, [] { heif_init(nullptr); });
    context_.reset(heif_context_alloc());
    if (context_ == nullptr) throw std::bad_alloc();
    heif_context_set_max_decoding_threads(context_.get(), 0);
    check_libheif(heif_context_read_from_memory_without_copy(context_.get(), bytes.data(), bytes.size(), nullptr));
    heif_image_handle* handle = nullptr;
    check_libheif(heif_context_get_primary_image_handle(context_.get(), &handle));
    handle_.reset(handle);
  }

  ImageSize size() const {
    const int width = heif_image_handle_get_width(handle_.get()), height = heif_image_handle_get_height(handle_.get());
    if (width < 0 || height < 0) check_image_size(0, 0);
    check_image_size(static_cast<uint64_t>(width), static_cast<uint64_t>(height));
    return {width, height};
  }

  void decode(Image& image) const {
    heif_image* decoded = nullptr;
    check_libheif(
        heif_decode_image(handle_.get(), &decoded, heif_colorspace_RGB, heif_chroma_interleaved_RGB, nullptr));
    const std::unique_ptr<heif_image, void (*)(const heif_image*)> held(decoded, heif_image_release);
    int stride = 0;
    const uint8_t* rows = heif_image_get_plane_readonly(decoded, heif_channel_interleaved, &stride);
    if (rows == nullptr || heif_image_get_primary_width(decoded) != image.width ||
        heif_image_get_primary_height(decoded) != image.height) {
      throw Error("the HEIC or AVIF image is damaged: its picture has another size than its header says");
    }
    image.rgb.resize(size_t{3} * image.width * image.height);
    for (int y = 0; y < image.height; ++y) {
      std::memcpy(image.rgb.data() + size_t{3} * y * image.width, rows + static_cast<ptrdiff_t>(y) * stride,
                  size_t{3} * image.width);
    }
  }

 private:
  std::unique_ptr<heif_context, void (*)(heif_context*)> context_{nullptr, heif_context_free};
  std::unique_ptr<heif_image_handle, void (*)(const heif_image_handle*)> handle_{nullptr, heif_image_handle_release};
};

}  // namespace

ImageHeader read_heif_header(Bytes bytes) {
  read_heif_boxes(bytes);
  return {HeifPicture(bytes).size(), 1};
}

Decoded decode_heif(Bytes bytes, const DecodeBudget& budget) {
  const HeifWork work = read_heif_boxes(bytes);
  const HeifPicture picture(bytes);
  const ImageSize size = picture.size();
  const uint64_t shown = uint64_t{1} * size.width * size.height;
  // The decoder's planes and libheif's of one part, those of the whole, two copies as RGB. Samples of 8 bits at 4:2:0
  // take half of what is counted for planes, those of 10 bits at 4:4:4 twice that.
  budget.check_memory(6 * work.largest + 9 * shown);
  budget.check_stop();
  Decoded out;
  out.image.width = size.width;
  out.image.height = size.height;
  picture.decode(out.image);
  return out;
}

#endif

}  // namespace gemma4
