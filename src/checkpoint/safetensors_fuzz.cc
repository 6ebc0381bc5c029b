// Fuzz targets: the safetensors container with both readers on top of it (Hugging Face and torchao), the shard index,
// and recipe files, down to the first and last row of every weight.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/file.h"
#include "base/mutate_testing.h"
#include "checkpoint/huggingface.h"
#include "quant/pack.h"
#include "quant/recipe.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

fs::path folder() {
  static const struct Folder {
    fs::path path = fs::temp_directory_path() / ("gemma4_safetensors_fuzz_" + std::to_string(getpid()));
    Folder() { fs::create_directories(path); }
    ~Folder() {
      std::error_code ignored;
      fs::remove_all(path, ignored);
    }
  } folder;
  return folder.path;
}

// Without write_file()'s flush to disk, which would be nearly all of the time.
fs::path put(const std::string& name, const std::string& bytes) {
  const fs::path path = folder() / name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
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

std::string with_header(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + std::string(data_bytes, '\x3f');
}

std::vector<std::string> file_seeds() {
  return {
      read_file(fs::path(SOURCE_DIR) / "tests/golden/safetensors/worked_example.safetensors"),
      read_file(fs::path(SOURCE_DIR) / "tests/golden/torchao/int8/model.safetensors"),
      read_file(fs::path(SOURCE_DIR) / "tests/golden/torchao/int4/model.safetensors"),
      with_header(R"({"__metadata__":{"format":"pt"},"model.language_model.norm.weight":{"dtype":"BF16","shape":[4],)"
                  R"("data_offsets":[0,8]},"lm_head.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[8,32]},)"
                  R"("model.vision_tower.encoder.layers.0.mlp.up_proj.linear.weight":{"dtype":"F16","shape":[2,2],)"
                  R"("data_offsets":[32,40]}})",
                  40)};
}

void run_file(const std::string& input) { touch_weights(open_safetensors_file(put("one.safetensors", input))); }

fs::path torchao_shards() { return fs::path(SOURCE_DIR) / "tests/golden/torchao/int8_groups"; }

std::vector<std::string> index_seeds() {
  return {R"({"metadata":{"total_size":8},)"
          R"("weight_map":{"norm.weight":"a.safetensors","lm_head.weight":"b.safetensors"}})",
          read_file(torchao_shards() / "model.safetensors.index.json")};
}

void run_index(const std::string& input) {
  static const bool made = [] {
    put("config.json", "{}");
    put("a.safetensors", with_header(R"({"norm.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
    put("b.safetensors", with_header(R"({"lm_head.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}})", 4));
    for (const std::string number : {"1", "2", "3"}) {
      const std::string shard = "model-0000" + number + "-of-00003.safetensors";
      put(shard, read_file(torchao_shards() / shard));
    }
    return true;
  }();
  CHECK(made);
  put("model.safetensors.index.json", input);
  touch_weights(open_safetensors_directory(folder()));
}

std::vector<std::string> recipe_seeds() {
  return {R"([{"pattern": ".*norm\\.weight"}, {"pattern": "lm_.*", "bits": 4, "group": 64, "method": "hqq"},)"
          R"({"pattern": ".*\\.v_proj\\.weight", "bits": 8, "group": "row", "symmetric": true, "layers": [0, 59]}])",
          R"({"rules": [{"pattern": ".*(a|b)?[c-d]+", "bits": null, "layers": "edge"}]})"};
}

void run_recipe(const std::string& input) {
  const Recipe recipe = parse_recipe(input, {60, {5}}, "recipe");
  recipe.find("layers.5.self_attn.v_proj.weight");
  recipe.find("norm.weight");
}

const std::vector<std::string> kWords = {"\"../a.safetensors\"",
                                         "\"BF16\"",
                                         "\"I8\"",
                                         "data_offsets",
                                         "[0,0]",
                                         "18446744073709551615",
                                         "__metadata__",
                                         "tensor_names",
                                         "\"Tensor\"",
                                         "[1]",
                                         "9223372036854775807",
                                         "\"F32\"",
                                         "-1",
                                         "1e308",
                                         "null",
                                         "\\u0000",
                                         "_pet_scale",
                                         "4611686018427387904",
                                         "[1, 1]",
                                         "{}",
                                         "Int8Tensor",
                                         "zero_point",
                                         "lm_head.weight",
                                         "_weight_qdata"};
const RegisterFuzz kFile({"safetensors", file_seeds, run_file, kWords});
const RegisterFuzz kIndex({"shard_index", index_seeds, run_index, kWords});
const RegisterFuzz kRecipe({"recipe", recipe_seeds, run_recipe, kWords});

}  // namespace
}  // namespace gemma4
