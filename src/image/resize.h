// Resize: which size does a picture have for the vision tower, and which pixels? The size follows Hugging Face's
// Gemma4ImageProcessor; the pixels equal torchvision's resize(BICUBIC, antialias=True) on 8-bit tensors, bit for bit.
#pragma once

#include "image/decode.h"

namespace gemma4 {

inline constexpr int kImageBudgets[] = {70, 140, 280, 560, 1120};  // soft tokens an image may take

void check_image_budget(int budget);  // throws Error that names the allowed ones

// The largest size, in whole cells of (patch * pool) pixels, that keeps the aspect ratio (each side rounded down by
// itself) and has at most max_patches patches. Small pictures grow. Throws Error where no such size exists.
ImageSize fit_size(ImageSize from, int max_patches, int patch, int pool);

// fit_size() for `budget` soft tokens of pool * pool patches each. Throws Error where kImageBudgets lacks the budget.
ImageSize fit_budget(ImageSize from, int budget, int patch, int pool);

Image resize_image(const Image& image, ImageSize to);

}  // namespace gemma4
