#include "cli/commands/synth_gguf.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "base/bf16.h"
#include "checkpoint/gguf/gguf_export.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

constexpr float kGgufDeviation = 0.02f;  // of weights
constexpr size_t kTile = 4096;           // random blocks; a matrix repeats them

// A random block whose weights have about the standard deviation kGgufDeviation.
void random_block(Format format, std::minstd_rand& random, uint8_t* block) {
  const size_t bytes = static_cast<size_t>(info(format).block_bytes);
  for (size_t i = 0; i < bytes; ++i) block[i] = static_cast<uint8_t>(random() >> 11);
  const auto half = [&](size_t at, float value) {
    const uint16_t bits = float_to_f16(value * (0.7f + static_cast<float>(random() % 1000) * 6e-4f));
    std::memcpy(block + at, &bits, 2);
  };
  if (format == Format::kQ4_0) return half(0, kGgufDeviation / 4.6f);  // the nibbles are uniform in -8 .. 7
  CHECK(format == Format::kQ6_K);
  constexpr size_t kScales = 192, kStep = 208;  // after 128 + 64 bytes of codes, uniform in -32 .. 31
  for (size_t i = 0; i < 16; ++i) block[kScales + i] = static_cast<uint8_t>(40 + random() % 40);
  half(kStep, kGgufDeviation / (18.5f * 60));
}

// The bytes that all matrices of a format share, as many as the largest needs.
class Blocks {
 public:
  void need(Format format, int64_t bytes) {
    auto& values = bytes_[format];
    if (static_cast<int64_t>(values.size()) < bytes) values.resize(static_cast<size_t>(bytes));
  }
  void fill() {
    std::minstd_rand random(1);
    for (auto& [format, values] : bytes_) {
      const size_t block = static_cast<size_t>(info(format).block_bytes);
      const size_t tile = std::min(kTile * block, values.size());
      for (size_t at = 0; at < tile; at += block) random_block(format, random, &values[at]);
      for (size_t at = tile; at < values.size(); at += tile) {
        std::memcpy(&values[at], values.data(), std::min(tile, values.size() - at));
      }
    }
  }
  uint8_t* data(Format format) { return bytes_.at(format).data(); }

 private:
  std::map<Format, std::vector<uint8_t>> bytes_;
};

Format block_format(const TensorNeed& need) {
  const int64_t cols = need.shape[1];
  return need.name == "embed_tokens.weight" && cols % 256 == 0 ? Format::kQ6_K : Format::kQ4_0;
}

TokenizerData numbered_tokens(int64_t vocab) {
  constexpr int32_t kNormal = 1, kControl = 3;
  TokenizerData data;
  for (const char* token : {"<pad>", "<eos>", "<bos>", "<unk>"}) data.tokens.push_back(token);
  data.types.assign(data.tokens.size(), kControl);
  for (int64_t i = 4; i < vocab; ++i) data.tokens.push_back("t" + std::to_string(i));
  data.types.resize(data.tokens.size(), kNormal);
  return data;
}

}  // namespace

uint64_t synth_gguf(const std::string& config_json, const Config& config, const std::string& generation_config,
                    const std::filesystem::path& output, Overwrite overwrite, ThreadPool& threads) {
  std::vector<TensorNeed> needs = needed_tensors(config, false);
  std::erase_if(needs, [](const TensorNeed& need) { return need.optional; });
  Blocks blocks;
  int64_t longest = 1;
  const auto row_bytes = [](Format format, int64_t cols) {
    if (cols % info(format).block_cols != 0) {
      throw Error("a matrix of " + std::to_string(cols) + " columns cannot be cut into blocks of " +
                  std::to_string(info(format).block_cols));
    }
    return cols / info(format).block_cols * info(format).block_bytes;
  };
  for (const TensorNeed& need : needs) {
    if (need.shape.size() != 2) {
      longest = std::max(longest, need.shape[0]);
      continue;
    }
    const Format format = block_format(need);
    blocks.need(format, need.shape[0] * row_bytes(format, need.shape[1]));
  }
  blocks.fill();
  std::vector<uint16_t> ones(static_cast<size_t>(longest), float_to_bf16(1.0f));
  Checkpoint checkpoint;
  checkpoint.path = output;
  checkpoint.config = config_json;
  checkpoint.generation_config = generation_config;
  for (const TensorNeed& need : needs) {
    Weight weight;
    weight.shape = need.shape;
    Matrix& m = weight.matrix;
    const bool matrix = need.shape.size() == 2;
    m.format = matrix ? block_format(need) : Format::kBF16;
    m.rows = matrix ? need.shape[0] : 1;
    m.cols = need.shape.back();
    m.codes = matrix ? Tensor(blocks.data(m.format), DType::kU8, {m.rows, row_bytes(m.format, m.cols)})
                     : Tensor(ones.data(), DType::kBF16, {1, m.cols});
    checkpoint.order.push_back(need.name);
    checkpoint.weights[need.name] = std::move(weight);
  }
  GgufExport options;
  options.type = Format::kQ4_0;
  options.name = "random weights";
  options.overwrite = overwrite;
  export_gguf_text(checkpoint, numbered_tokens(config.vocab), options, output, threads);
  return std::filesystem::file_size(output);
}

}  // namespace gemma4
