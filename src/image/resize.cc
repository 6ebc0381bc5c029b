#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/check.h"

namespace gemma4 {
namespace {

// One axis of the filter: output i is the sum over k < count[i] of input[first[i] + k] * weights[i * stride + k],
// in units of 2^-precision.
struct Axis {
  std::vector<int> first, count;
  std::vector<int16_t> weights;
  int stride = 0;
  int precision = 0;
};

// Keys' cubic convolution with a = -1/2, as Pillow's and torch's antialiasing filters use it.
double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// Weights in double, normalised, then rounded to as many bits as let the largest fit in 16 (torch,
// aten/src/ATen/native/cpu/UpSampleKernel.cpp, "Weights computation for uint8_t and multiplication trick").
Axis make_axis(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  const double support = scale >= 1 ? 2 * scale : 2;
  const double inverse = scale >= 1 ? 1 / scale : 1;
  Axis axis;
  axis.stride = static_cast<int>(std::ceil(support)) * 2 + 1;
  axis.first.resize(to);
  axis.count.resize(to);
  std::vector<double> weights(static_cast<size_t>(to) * axis.stride);
  double largest = 0;
  for (int i = 0; i < to; ++i) {
    const double center = scale * (i + 0.5);
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int last = std::min(static_cast<int>(center + support + 0.5), from);
    const int count = std::clamp(last - first, 0, axis.stride);
    double* w = &weights[static_cast<size_t>(i) * axis.stride];
    double total = 0;
    for (int k = 0; k < count; ++k) total += w[k] = cubic((k + first - center + 0.5) * inverse);
    for (int k = 0; k < count && total != 0; ++k) largest = std::max(largest, w[k] /= total);
    axis.first[i] = first;
    axis.count[i] = count;
  }
  while (axis.precision < 22 && static_cast<int>(0.5 + largest * (2 << axis.precision)) < 1 << 15) ++axis.precision;
  axis.weights.resize(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const double w = weights[i] * (1 << axis.precision);
    axis.weights[i] = static_cast<int16_t>(w < 0 ? w - 0.5 : w + 0.5);
  }
  return axis;
}

uint8_t rounded(int32_t sum, int precision) { return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255)); }

// The loops run over a fixed number of values, so that the compiler vectorizes them.
constexpr int kTileRows = 8;
constexpr int kLanes = 3 * kTileRows;  // a column of a tile: 3 colours of kTileRows rows
constexpr int kBlock = 32;             // values of a row in the vertical pass

// Filters kTileRows rows at a time horizontally. The tile is transposed first, so that one weight multiplies kLanes
// adjacent values.
class Horizontal {
 public:
  Horizontal(const Image& image, int to)
      : image_(image), axis_(make_axis(image.width, to)), tile_(static_cast<size_t>(image.width) * kLanes) {}

  // Rows y .. y+n-1 (n <= kTileRows) of the input, filtered, to out[0 .. n-1].
  void rows(int y, int n, uint8_t* const* out) {
    load(y, n);
    const int to = static_cast<int>(axis_.first.size());
    for (int x = 0; x < to; ++x) {
      int32_t sum[kLanes];
      std::fill_n(sum, kLanes, (1 << axis_.precision) >> 1);
      const int16_t* w = &axis_.weights[static_cast<size_t>(x) * axis_.stride];
      const int16_t* column = &tile_[static_cast<size_t>(axis_.first[x]) * kLanes];
      for (int k = 0; k < axis_.count[x]; ++k, column += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) sum[lane] += w[k] * column[lane];
      }
      for (int row = 0; row < n; ++row) {
        for (int c = 0; c < 3; ++c) out[row][3 * x + c] = rounded(sum[c * kTileRows + row], axis_.precision);
      }
    }
  }

 private:
  void load(int y, int n) {
    const int64_t width = image_.width;
    for (int row = 0; row < kTileRows; ++row) {
      const uint8_t* from = image_.rgb.data() + 3 * width * (y + std::min(row, n - 1));
      int16_t* to = tile_.data() + row;
      for (int64_t x = 0; x < width; ++x, from += 3, to += kLanes) {
        for (int c = 0; c < 3; ++c) to[c * kTileRows] = from[c];
      }
    }
  }

  const Image& image_;
  Axis axis_;
  std::vector<int16_t> tile_;  // [width, 3, kTileRows]
};

// Rows of the horizontally filtered picture, computed on demand. Only the rows that one output row needs are kept.
class RowWindow {
 public:
  RowWindow(const Image& image, int to, int rows)
      : image_(image), horizontal_(image, to), same_width_(image.width == to) {
    stride_ = (3 * to + kBlock - 1) / kBlock * kBlock;
    held_ = (rows + kTileRows + kTileRows - 1) / kTileRows * kTileRows;
    buffer_.resize(static_cast<size_t>(held_) * stride_);
  }

  void make_until(int end) {
    while (made_ < end) {
      const int n = std::min(kTileRows, image_.height - made_);
      uint8_t* out[kTileRows];
      for (int i = 0; i < n; ++i) out[i] = slot(made_ + i);
      if (same_width_) {
        const size_t bytes = size_t{3} * image_.width;
        for (int i = 0; i < n; ++i) std::copy_n(&image_.rgb[(made_ + i) * bytes], bytes, out[i]);
      } else {
        horizontal_.rows(made_, n, out);
      }
      made_ += n;
    }
  }

  const uint8_t* row(int y) { return slot(y); }
  int stride() const { return stride_; }

 private:
  uint8_t* slot(int y) { return &buffer_[static_cast<size_t>(y % held_) * stride_]; }

  const Image& image_;
  Horizontal horizontal_;
  bool same_width_;
  int stride_ = 0, held_ = 0, made_ = 0;
  std::vector<uint8_t> buffer_;
};

// out[0 .. stride-1] = the weighted sum of `count` rows.
void filter_down(const uint8_t* const* rows, const int16_t* w, int count, int precision, int stride, uint8_t* out) {
  for (int x = 0; x < stride; x += kBlock) {
    int32_t sum[kBlock];
    std::fill_n(sum, kBlock, (1 << precision) >> 1);
    for (int k = 0; k < count; ++k) {
      const uint8_t* from = rows[k] + x;
      for (int i = 0; i < kBlock; ++i) sum[i] += w[k] * from[i];
    }
    for (int i = 0; i < kBlock; ++i) out[x + i] = rounded(sum[i], precision);
  }
}

}  // namespace

void check_image_budget(int budget) {
  std::string allowed;
  for (const int b : kImageBudgets) {
    if (b == budget) return;
    allowed += (allowed.empty() ? "" : ", ") + std::to_string(b);
  }
  throw Error("an image may take one of " + allowed + " soft tokens, not " + std::to_string(budget));
}

ImageSize fit_size(ImageSize from, int max_patches, int patch, int pool) {
  CHECK(from.width > 0 && from.height > 0 && max_patches > 0 && patch > 0 && pool > 0);
  const int64_t cell = int64_t{patch} * pool;
  const double pixels = static_cast<double>(max_patches) * patch * patch;
  const double factor = std::sqrt(pixels / (static_cast<double>(from.height) * from.width));
  int64_t height = static_cast<int64_t>(std::floor(factor * from.height / cell)) * cell;
  int64_t width = static_cast<int64_t>(std::floor(factor * from.width / cell)) * cell;
  const int64_t longest = max_patches / (int64_t{pool} * pool) * cell;
  const std::string shape = std::to_string(from.width) + " x " + std::to_string(from.height);
  if (width == 0 && height == 0) {
    throw Error("an image of " + shape + " does not fit " + std::to_string(max_patches) + " patches");
  }
  if (height == 0) {
    height = cell;
    width = std::min<int64_t>(from.width / from.height * cell, longest);
  } else if (width == 0) {
    width = cell;
    height = std::min<int64_t>(from.height / from.width * cell, longest);
  }
  if (height * width > pixels) {
    throw Error("an image of " + shape + " does not fit " + std::to_string(max_patches) + " patches");
  }
  return {static_cast<int>(width), static_cast<int>(height)};
}

ImageSize fit_budget(ImageSize from, int budget, int patch, int pool) {
  check_image_budget(budget);
  return fit_size(from, budget * pool * pool, patch, pool);
}

Image resize_image(const Image& image, ImageSize to) {
  if (to == ImageSize{image.width, image.height}) return image;
  CHECK(to.width > 0 && to.height > 0 && image.width > 0 && image.height > 0);
  Image out;
  out.width = to.width;
  out.height = to.height;
  const bool same_height = image.height == to.height;
  const Axis vertical = make_axis(image.height, to.height);
  RowWindow window(image, to.width, same_height ? 1 : vertical.stride);
  const size_t row_bytes = size_t{3} * to.width;
  out.rgb.resize(row_bytes * to.height);
  std::vector<uint8_t> line(window.stride());
  std::vector<const uint8_t*> rows(vertical.stride);
  for (int y = 0; y < to.height; ++y) {
    uint8_t* dest = &out.rgb[y * row_bytes];
    if (same_height) {
      window.make_until(y + 1);
      std::copy_n(window.row(y), row_bytes, dest);
      continue;
    }
    const int first = vertical.first[y], count = vertical.count[y];
    window.make_until(first + count);
    for (int k = 0; k < count; ++k) rows[k] = window.row(first + k);
    filter_down(rows.data(), &vertical.weights[static_cast<size_t>(y) * vertical.stride], count, vertical.precision,
                window.stride(), line.data());
    std::copy_n(line.data(), row_bytes, dest);
  }
  return out;
}

}  // namespace gemma4
