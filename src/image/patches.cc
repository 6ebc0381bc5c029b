#include "image/patches.h"

#include <array>

#include "base/check.h"
#include "image/resize.h"

namespace gemma4 {
namespace {

std::array<float, 256> make_levels() {
  std::array<float, 256> levels;
  for (int i = 0; i < 256; ++i) levels[i] = static_cast<float>(i) * (1 / 255.f);
  return levels;
}

}  // namespace

int soft_tokens(ImageSize resized, int patch, int pool) {
  return (resized.width / patch) * (resized.height / patch) / (pool * pool);
}

Patches make_patches(const Image& image, int patch, int pool) {
  CHECK(image.width % (patch * pool) == 0 && image.height % (patch * pool) == 0);
  static const std::array<float, 256> levels = make_levels();
  Patches out;
  out.grid_w = image.width / patch;
  out.grid_h = image.height / patch;
  out.soft_tokens = soft_tokens({image.width, image.height}, patch, pool);
  out.values.resize(size_t{3} * image.width * image.height);
  out.xy.reserve(size_t{2} * out.grid_w * out.grid_h);
  float* to = out.values.data();
  for (int row = 0; row < out.grid_h; ++row) {
    for (int column = 0; column < out.grid_w; ++column) {
      out.xy.push_back(column);
      out.xy.push_back(row);
      for (int dy = 0; dy < patch; ++dy) {
        const int64_t pixel = int64_t{row * patch + dy} * image.width + column * patch;
        const uint8_t* from = image.rgb.data() + 3 * pixel;
        for (int i = 0; i < 3 * patch; ++i) *to++ = levels[from[i]];
      }
    }
  }
  return out;
}

Patches preprocess_image(const Image& image, int budget, int patch, int pool) {
  const ImageSize size = fit_budget({image.width, image.height}, budget, patch, pool);
  return make_patches(resize_image(image, size), patch, pool);
}

}  // namespace gemma4
