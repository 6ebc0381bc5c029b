#include <benchmark/benchmark.h>

#include "image/patches.h"
#include "image/resize.h"

namespace gemma4 {
namespace {

Image noise(int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  uint32_t state = 1;
  for (uint8_t& v : image.rgb) v = static_cast<uint8_t>((state = state * 1664525 + 1013904223) >> 24);
  return image;
}

void resize(benchmark::State& state) {
  const Image image = noise(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  const ImageSize to = fit_size({image.width, image.height}, 9 * static_cast<int>(state.range(2)), 16, 3);
  for (auto _ : state) benchmark::DoNotOptimize(resize_image(image, to));
  state.counters["pixels/s"] = benchmark::Counter(static_cast<double>(image.width) * image.height,
                                                  benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(resize)
    ->Args({1920, 1080, 280})
    ->Args({1920, 1080, 1120})
    ->Args({4000, 3000, 280})
    ->Args({224, 224, 280})
    ->Unit(benchmark::kMillisecond);

void cut_patches(benchmark::State& state) {
  const Image image = noise(1056, 576);
  for (auto _ : state) benchmark::DoNotOptimize(make_patches(image, 16, 3));
}
BENCHMARK(cut_patches)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gemma4
