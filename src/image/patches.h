// Patches: the input of the vision tower for one picture, without padding. The layout is that of Hugging Face's
// Gemma4ImageProcessor: patches in row order, the pixels of a patch in row order, colour last; values u8 * (1/255) in
// float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "image/decode.h"

namespace gemma4 {

struct Patches {
  std::vector<float> values;  // [grid_h * grid_w, 3 * patch * patch] in [0, 1]
  std::vector<int32_t> xy;    // [grid_h * grid_w, 2] column, row
  int grid_w = 0, grid_h = 0;
  int soft_tokens = 0;  // grid_w * grid_h / pool^2
};

// Soft tokens of a picture of this size, which must be whole cells of patch * pool pixels (resize.h makes it so).
int soft_tokens(ImageSize resized, int patch, int pool);

// `image` must be whole cells of patch * pool pixels.
Patches make_patches(const Image& image, int patch, int pool);

// Resizes to `budget` soft tokens (one of kImageBudgets, else Error) and cuts.
Patches preprocess_image(const Image& image, int budget, int patch, int pool);

}  // namespace gemma4
