// Fuzz targets: the headers of compressed-tensors and MLX files, and config.json's word on them.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "base/mutate_testing.h"
#include "checkpoint/checkpoint.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr char kSeparator = '\x01';  // an input is config.json, this byte, model.safetensors

fs::path folder() {
  static const struct Folder {
    fs::path path = fs::temp_directory_path() / ("gemma4_packed_fuzz_" + std::to_string(getpid()));
    Folder() { fs::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } folder;
  return folder.path;
}

std::string seed(const char* name) {
  const fs::path golden = fs::path(SOURCE_DIR) / "tests/golden" / name;
  return read_file(golden / "config.json") + kSeparator + read_file(golden / "model.safetensors");
}

std::vector<std::string> seeds() { return {seed("compressed_tensors"), seed("mlx")}; }

void run(const std::string& input) {
  const size_t at = std::min(input.find(kSeparator), input.size());
  std::ofstream(folder() / "config.json", std::ios::binary) << input.substr(0, at);
  std::ofstream(folder() / "model.safetensors", std::ios::binary) << input.substr(std::min(at + 1, input.size()));
  const Checkpoint checkpoint = open_checkpoint(folder());
  std::vector<float> row;
  for (const auto& [name, weight] : checkpoint.weights) {
    if (weight.matrix.cols > 1 << 20) continue;
    row.resize(static_cast<size_t>(weight.matrix.cols));
    unpack_row(weight.matrix, 0, row.data());
    unpack_row(weight.matrix, weight.matrix.rows - 1, row.data());
  }
}

const RegisterFuzz kPacked({"packed",
                            seeds,
                            run,
                            {"\"bits\"", "\"group_size\"", "quantization", ".weight_packed", ".scales", "U32", "I32",
                             "[0,1]", "99999999999999999", "-1"}});

}  // namespace
}  // namespace gemma4
