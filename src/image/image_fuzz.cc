// Fuzz target: the image decoders, the size that headers claim, then resize and patches of every decoded picture.
#include <filesystem>

#include "base/file.h"
#include "base/mutate_testing.h"
#include "image/patches.h"

namespace gemma4 {
namespace {

std::vector<std::string> image_seeds() {
  std::vector<std::string> seeds;
  const std::filesystem::path folder = std::filesystem::path(SOURCE_DIR) / "tests/golden/decode";
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".ppm") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) seeds.push_back(read_file(path));
  return seeds;
}

void run_image(const std::string& input) {
  const auto bytes = std::as_bytes(std::span(input.data(), input.size()));
  const Image image = decode_image(bytes);
  if (image.rgb.size() != size_t{3} * image.width * image.height) std::abort();
  if (read_image_size(bytes) != ImageSize{image.width, image.height}) std::abort();
  if (image.rgb.size() < 4'000'000) preprocess_image(image, 70, 16, 3);
}

const RegisterFuzz kImage(
    {"image", image_seeds, run_image, {"\xff\xda", "\xff\xc0", "\xff\xc4", "IHDR", "eXIf", "VP8X", "ALPH", "ANMF"}});

}  // namespace
}  // namespace gemma4
