// Fuzz targets: the headers of compressed-tensors, MLX, GPTQ, AWQ and AutoRound files, and config.json's word on them.
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

std::vector<std::string> seeds() { return {seed("compressed_tensors"), seed("mlx"), seed("mlx_float")}; }

// A sample of tests/golden/gptq, whose quantization_config lies apart.
std::string gptq_seed(const std::string& name) {
  const fs::path golden = fs::path(SOURCE_DIR) / "tests/golden";
  return "{\"quantization_config\": " + read_file(golden / "gptq" / (name + ".json")) + "}" + kSeparator +
         read_file(golden / "gptq" / (name + ".safetensors"));
}

std::vector<std::string> gptq_seeds() {
  return {gptq_seed("gptq"), gptq_seed("gptq_v2"), gptq_seed("auto_round_gptq")};
}
std::vector<std::string> awq_seeds() { return {gptq_seed("awq"), gptq_seed("auto_round_awq")}; }

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
                             "U8", "null", "\"mode\"", "affine", "mxfp4", "nvfp4", "mxfp8", "[0,1]",
                             "99999999999999999", "-1"}});

const RegisterFuzz kGptq({"gptq",
                          gptq_seeds,
                          run,
                          {"\"bits\"", "\"group_size\"", "\"desc_act\"", "dynamic", ".qweight", ".qzeros", ".g_idx",
                           "I32", "gptq_v2", "auto_round:auto_gptq", "[0,1]", "99999999999999999", "-1"}});

const RegisterFuzz kAwq({"awq",
                         awq_seeds,
                         run,
                         {"\"bits\"", "\"group_size\"", "gemm", ".qweight", ".qzeros", ".scales", "F16", "F32",
                          "auto_round:auto_awq", "[0,1]", "99999999999999999", "-1"}});

}  // namespace
}  // namespace gemma4
