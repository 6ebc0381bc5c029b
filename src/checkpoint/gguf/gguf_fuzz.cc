// Fuzz target: the GGUF reader with everything it makes of a file, down to the first and last row of every weight.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "base/mapped_file.h"
#include "base/mutate_testing.h"
#include "checkpoint/gguf/gguf_checkpoint.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

std::string golden(const char* name) { return read_file(fs::path(SOURCE_DIR) / "tests/golden/gguf" / name); }

// A folder of this process, so that no mmproj file of somebody else lies beside the model.
fs::path folder() {
  static const struct Folder {
    fs::path path = fs::temp_directory_path() / ("gemma4_gguf_fuzz_" + std::to_string(getpid()));
    Folder() { fs::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } folder;
  return folder.path;
}

void touch_weights(const Checkpoint& checkpoint) {
  std::vector<float> row;
  for (const auto& [name, weight] : checkpoint.weights) {
    if (weight.matrix.cols > 1 << 20) continue;
    row.resize(static_cast<size_t>(weight.matrix.cols));
    unpack_row(weight.matrix, 0, row.data());
    unpack_row(weight.matrix, weight.matrix.rows - 1, row.data());
  }
}

// Without write_file()'s flush to disk, which would be nearly all of the time.
fs::path put(const char* name, const std::string& bytes) {
  const fs::path path = folder() / name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::vector<std::string> text_seeds() { return {golden("tiny2.gguf")}; }

void run_text(const std::string& input) {
  touch_weights(
      open_checkpoint(put("model.gguf", input), fs::path(SOURCE_DIR) / "tests/golden/gguf/mmproj-tiny2.gguf"));
}

std::vector<std::string> vision_seeds() { return {golden("mmproj-tiny2.gguf")}; }

void run_vision(const std::string& input) {
  touch_weights(open_checkpoint(fs::path(SOURCE_DIR) / "tests/golden/gguf/tiny2.gguf", put("vision.gguf", input)));
}

const std::vector<std::string> kWords = {"gemma4.block_count",  "general.alignment", "split.count",
                                         "blk.0.attn_v.weight", "token_embd.weight", "rope_freqs.weight"};
const RegisterFuzz kText({"gguf", text_seeds, run_text, kWords});
const RegisterFuzz kVision({"mmproj", vision_seeds, run_vision, kWords});

}  // namespace
}  // namespace gemma4
