// Fuzz target: program.json, with the weights that it lists; what is taken is adopted by the cpu backend and each
// matrix's last row is read.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "base/mutate_testing.h"
#include "model/weights.h"
#include "program/export.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

// A program of the tiny model, whose program.json the inputs replace. Two threads: an Error must not leave work behind.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("gemma4_program_fuzz_" + std::to_string(getpid()));
  std::unique_ptr<Backend> backend = make_cpu(2);
  Folder() {
    const fs::path tiny = fs::path(SOURCE_DIR) / "tests/golden/tiny";
    export_program(open_checkpoint(tiny), {.threads = 1, .source = tiny}, path);
    fs::remove(path / "tokenizer.json");  // has a target of its own, and takes longer to read than all the rest
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

const Folder& folder() {
  static const Folder folder;
  return folder;
}

std::vector<std::string> seeds() { return {read_file(folder().path / "program.json")}; }

void touch(const Matrix& m) {
  if (!m) return;
  Backend& be = *folder().backend;
  const Tensor row = be.alloc(DType::kF32, {1, m.cols}), id = be.alloc(DType::kI32, {1, 1});
  const auto last = static_cast<int32_t>(m.rows - 1);
  be.write(id, &last);
  be.embed(row, m, id, 1);
  be.release(row);
  be.release(id);
}

void run(const std::string& input) {
  std::ofstream(folder().path / "program.json", std::ios::binary) << input;
  const Checkpoint checkpoint = open_checkpoint(folder().path);
  const Weights weights = load_weights(checkpoint, parse_config(checkpoint.config), *folder().backend, {});
  touch(weights.embed);
  touch(weights.vision.positions);
  for (const auto* layers : {&weights.layers, &weights.vision.layers}) {
    for (const LayerWeights& layer : *layers) {
      for (const FusedLinear* fused : {&layer.qkv, &layer.gate_up}) {
        for (const FusedLinear::Slice& slice : fused->slices) touch(slice.weight);
      }
      touch(layer.o);
      touch(layer.down);
    }
  }
}

const RegisterFuzz kProgram({"program",
                             seeds,
                             run,
                             {"\"offset\": 0", "\"bytes\": 64", "\"group\": 32", "\"layout\": \"\"",
                              "\"format\": \"f32\"", "int4", "int8", "q4_K", "bfloat16", "9223372036854775807",
                              "2147483647", "-1", "\"shape\": [", "\"parts\": ["}});

}  // namespace
}  // namespace gemma4
