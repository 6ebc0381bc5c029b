// How the network is sharded, and the decoder over N ranks against the decoder on one: the same logits, for all weight
// formats. Hugging Face's outputs over N ranks are in tests/golden_test.cc, answers in engine/ranks_test.
#include "model/tensor_parallel.h"
#include "base/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "backend/ranks.h"
#include "base/file.h"
#include "base/models_testing.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/quantize_checkpoint.h"
#include "engine/watched_backend_testing.h"
#include "model/difference_testing.h"
#include "model/model.h"
#include "quant/blocks.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

constexpr int kRow = -1;  // a group as wide as its row

// A checkpoint of 31B's shapes without values, every matrix in one format.
Checkpoint shapes_of_31b(Format format, int group) {
  const std::string folder = SOURCE_DIR "/tests/golden/config_31b/";
  Checkpoint c;
  c.config = read_file(folder + "config.json");
  const Config config = parse_config(c.config);
  for (int i = 0; i < config.layers; ++i) {
    const AttentionConfig& a = config.attention[config.kinds[i]];
    const auto put = [&](const char* name, int64_t rows, int64_t cols) {
      Weight w;
      w.matrix.format = format, w.matrix.group = group == kRow ? static_cast<int>(cols) : group, w.matrix.rows = rows,
      w.matrix.cols = cols;
      c.weights["layers." + std::to_string(i) + "." + name] = w;
    };
    put("self_attn.o_proj.weight", config.hidden, int64_t{a.heads} * a.head_dim);
    put("mlp.down_proj.weight", config.hidden, config.intermediate);
  }
  return c;
}

TEST(TensorParallel, Of31bCoversEverythingOnceInWholeBlocks) {
  struct Case {
    Format format;
    int group, block;
  };
  for (const Case& c :
       {Case{Format::kBF16, 0, 1}, {Format::kInt4, 32, 32}, {Format::kQ4_K, 0, 256}, {Format::kInt8, kRow, 1}}) {
    const Checkpoint checkpoint = shapes_of_31b(c.format, c.group);
    const Config config = parse_config(checkpoint.config);
    for (const int world : {1, 2, 4, 8, 16}) {
      int64_t columns = 0;
      for (int rank = 0; rank < world; ++rank) {
        const TensorParallel s = shard_model(checkpoint, config, rank, world);
        EXPECT_EQ(s.mlp.begin, columns);
        columns += s.mlp.count;
        EXPECT_EQ(s.mlp.begin % c.block, 0);
        EXPECT_EQ(s.vocab.back(), config.vocab);
        for (const AttentionKind kind : {kSliding, kFull}) {
          const AttentionConfig& a = config.attention[kind];
          const int64_t repeat = a.heads / a.kv_heads, local = s.heads[kind].count / s.kv_heads[kind].count;
          for (int64_t h = 0; h < s.heads[kind].count; ++h) {  // as attend() pairs them
            EXPECT_EQ((s.heads[kind].begin + h) / repeat, s.kv_heads[kind].begin + h / local) << "head " << h;
          }
        }
      }
      EXPECT_EQ(columns, config.intermediate);
    }
    const TensorParallel eighth = shard_model(checkpoint, config, 7, 8);
    EXPECT_EQ(eighth.kv_heads[kFull].begin, 3);  // of 4: ranks 6 and 7 hold the same
    EXPECT_EQ(eighth.kv_heads[kFull].count, 1);
    EXPECT_EQ(eighth.kv_heads[kSliding].count, 2);
  }
}

std::string refusal(const Checkpoint& checkpoint, int world) {
  try {
    shard_model(checkpoint, parse_config(checkpoint.config), 0, world);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(TensorParallel, SaysWhatCannotBeSharded) {
  const Checkpoint q4k = shapes_of_31b(Format::kQ4_K, 0);
  EXPECT_EQ(refusal(q4k, 3), "cannot split the model over 3 devices: its 32 query heads do not divide");
  EXPECT_EQ(refusal(q4k, 64), "cannot split the model over 64 devices: its 32 query heads do not divide");
  EXPECT_EQ(refusal(shapes_of_31b(Format::kInt4, 512), 32),
            "cannot split the model over 32 devices: layers.0.self_attn.o_proj.weight is stored in int4 groups of 512 "
            "columns, and a device's query heads take 256");
  Checkpoint narrow = shapes_of_31b(Format::kBF16, 0);
  auto json = read_json<nlohmann::json>(narrow.config);
  json["text_config"]["num_attention_heads"] = 96;
  json["text_config"]["num_key_value_heads"] = 16;
  narrow.config = json.dump();
  EXPECT_EQ(refusal(narrow, 6),
            "cannot split the model over 6 devices: its 16 key-value heads neither divide nor repeat evenly");
  EXPECT_EQ(cuts(768, 256, 2, "columns"), (std::vector<int64_t>{0, 256, 768}));
  EXPECT_THROW(cuts(768, 256, 4, "columns"), Error);
}

// Logits of `count` tokens, `chunk` at a time.
std::vector<float> logits(const Checkpoint& checkpoint, const Ranks& ranks, int count, int chunk) {
  const Config config = parse_config(checkpoint.config);
  ModelOptions options = options_for(config, count, chunk, 1);
  options.logits_max = chunk, options.vision = false;
  Model model(checkpoint, config, ranks, options);
  for (const AttentionKind kind : {kSliding, kFull}) {
    std::vector<int32_t> pages(options.pages_per_seq[kind]);
    std::iota(pages.rbegin(), pages.rend(), 0);  // backwards: a page's number is not its place
    model.set_pages(kind, 0, pages);
  }
  std::vector<float> all(static_cast<size_t>(count) * config.vocab);
  for (int begin = 0; begin < count; begin += chunk) {
    Batch batch;
    for (int i = begin; i < std::min(begin + chunk, count); ++i) {
      append_row(batch, config, 100 + (i * 7919 + i * i * 31) % (config.vocab - 100), 0, i, -1);
      batch.logit_rows.push_back(i - begin);
    }
    model.forward(batch);
    model.read_logits(all.data() + static_cast<size_t>(begin) * config.vocab);
  }
  return all;
}

// Partial sums are rounded to float32 before they are added: a few units in the last place of a block's output, which
// grow through 7 layers. Logits lie within ±30.
constexpr double kTolerance = 1e-4;

// Over 4-bit codes cpu rounds x to 16 bits (docs/NUMERICS.md): a last place that differs is 2^-16 of a block's largest.
constexpr double kRounded = 2e-3;

void expect_equal(const Checkpoint& checkpoint, const std::string& backend, const std::vector<int>& worlds,
                  bool four_bits = false) {
  constexpr int kTokens = 70;  // past the tiny model's window of 24
  const std::vector<float> want = logits(checkpoint, make_ranks(backend, 2, 1), kTokens, kTokens);
  for (const int world : worlds) {
    const double difference = max_difference(want, logits(checkpoint, make_ranks(backend, 2, world), kTokens, 32));
    EXPECT_LE(difference, four_bits && backend == "cpu" ? kRounded : kTolerance) << world << " ranks on " << backend;
    EXPECT_GT(difference, 0) << "bits that equal by chance in every sum: were the ranks asked at all?";
  }
}

// The twin that must fail: ranks that keep their partial sums to themselves.
TEST(TensorParallel, WithoutAllReduceTheLogitsAreOthers) {
  struct Deaf final : WatchedBackend {
    Deaf() : WatchedBackend(make_ref(), std::make_shared<Watch>()) {}
    void all_reduce(Tensor) override {}
  };
  std::vector<std::unique_ptr<Backend>> backends;
  for (int i = 0; i < 2; ++i) backends.push_back(std::make_unique<Deaf>());
  join_ranks(backends);
  const Checkpoint checkpoint = open_checkpoint(kTiny);
  const auto want = logits(checkpoint, make_ref(), 30, 30);
  EXPECT_GT(max_difference(want, logits(checkpoint, Ranks(std::move(backends)), 30, 30)), 1000 * kTolerance);
}

class TensorParallelOn : public testing::TestWithParam<const char*> {};

TEST_P(TensorParallelOn, TinyEqualsOneRank) { expect_equal(open_checkpoint(kTiny), GetParam(), {2, 4}); }
TEST_P(TensorParallelOn, DemoEqualsOneRank) { expect_equal(open_checkpoint(kDemo), GetParam(), {2, 4}); }

TEST_P(TensorParallelOn, Int4EqualsOneRank) {
  const testing_files::Folder folder;
  const Checkpoint source = open_checkpoint(kDemo);
  RecipeModel model;
  const Config config = parse_config(source.config);
  model.layers = config.layers;
  for (const char* recipe : {"default", "balanced"}) {
    quantize_checkpoint(source, load_recipe(recipe, model), folder.path / recipe, {});
    expect_equal(open_checkpoint(folder.path / recipe), GetParam(), {2, 4}, true);
  }
}

// Matrices whose names end in `suffix` become `format` blocks; formats that are not packed here get random codes.
Checkpoint with_blocks(const std::string& path, Format format, const std::string& suffix) {
  Checkpoint c = open_checkpoint(path);
  std::mt19937 random(5);
  for (auto& [name, weight] : c.weights) {
    if (!name.starts_with("layers.") || !name.ends_with(suffix)) continue;
    Matrix& m = weight.matrix;
    const int64_t bytes = m.cols / info(format).block_cols * info(format).block_bytes;
    auto blocks = std::make_shared<std::vector<uint8_t>>(m.rows * bytes);
    std::vector<float> row(m.cols);
    for (int64_t r = 0; r < m.rows; ++r) {
      unpack_row(m, r, row.data());
      if (can_pack_blocks(format)) {
        pack_blocks(format, row.data(), m.cols, blocks->data() + r * bytes);
        continue;
      }
      for (int64_t b = 0; b < bytes; ++b) {  // Q4_K: scales of 2^-12 (0x0c00), zero minimums
        const int64_t at = b % info(format).block_bytes;
        (*blocks)[r * bytes + b] = at == 1 ? 0x0c : at < 4 ? 0 : static_cast<uint8_t>(random());
      }
    }
    m.format = format;
    m.codes = Tensor(blocks->data(), DType::kU8, {m.rows, bytes});
    c.owned.push_back(blocks);
  }
  return c;
}

TEST_P(TensorParallelOn, BlocksEqualOneRank) {
  expect_equal(with_blocks(kDemo, Format::kQ4_0, "_proj.weight"), GetParam(), {2, 4}, true);
  expect_equal(with_blocks(kTiny, Format::kQ8_0, "_proj.weight"), GetParam(), {2});  // 160 columns: 64 and 96
}

TEST_P(TensorParallelOn, WideBlocksAreCutUnevenly) {
  const Checkpoint c = with_blocks(kDemo, Format::kQ4_K, "mlp.down_proj.weight");  // 768 columns: 256 and 512
  expect_equal(c, GetParam(), {2}, true);
  EXPECT_EQ(refusal(c, 4),
            "cannot split the model over 4 devices: 768 columns of the MLP are 3 pieces of 256, the least one device "
            "can take");
}

INSTANTIATE_TEST_SUITE_P(Backends, TensorParallelOn, testing::Values("ref", "cpu"));

}  // namespace
}  // namespace gemma4
