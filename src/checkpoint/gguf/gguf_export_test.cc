#include "checkpoint/gguf/gguf_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "base/bf16.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/json_text.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/golden_testing.h"
#include "model/config.h"
#include "quant/blocks.h"
#include "quant/pack.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {
namespace {

using namespace testing_files;

namespace fs = std::filesystem;

TokenizerData arrays_of(const Checkpoint& checkpoint) {
  TokenizerArrays a = Tokenizer::from_json(checkpoint.tokenizer.json).to_arrays();
  return {"", a.tokens, a.scores, a.types, a.merges};
}

class GgufExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(::testing::TempDir()) / ("gguf_export_test_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  Checkpoint exported(const GgufExport& options) {
    export_gguf_text(original_, arrays_of(original_), options, folder_ / "model.gguf", pool_);
    export_gguf_vision(original_, options, folder_ / "mmproj-model.gguf", pool_);
    return open_checkpoint(folder_ / "model.gguf");
  }

  ThreadPool pool_{2};
  fs::path folder_;
  Checkpoint original_ = open_checkpoint(golden("tiny"));
};

TEST_F(GgufExportTest, Bf16ComesBackAsItWas) {
  const Checkpoint back = exported({});
  EXPECT_EQ(back.weights.size(), original_.weights.size());
  for (const auto& [name, weight] : original_.weights) {
    const Weight* other = back.find(name);
    ASSERT_NE(other, nullptr) << name;
    EXPECT_EQ(floats_of(other->matrix), floats_of(weight.matrix)) << name;
  }
}

TEST_F(GgufExportTest, TheConfigMeansTheSame) {
  const Config back = parse_config(exported({}).config), want = parse_config(original_.config);
  EXPECT_EQ(back.vocab, want.vocab);
  EXPECT_EQ(back.hidden, want.hidden);
  EXPECT_EQ(back.intermediate, want.intermediate);
  EXPECT_EQ(back.kinds, want.kinds);
  for (int kind = 0; kind < kAttentionKinds; ++kind) {
    const AttentionConfig &a = back.attention[kind], &b = want.attention[kind];
    EXPECT_EQ(a.heads, b.heads);
    EXPECT_EQ(a.kv_heads, b.kv_heads);
    EXPECT_EQ(a.head_dim, b.head_dim);
    EXPECT_EQ(a.k_is_v, b.k_is_v);
    EXPECT_EQ(a.rope_theta, b.rope_theta);
    EXPECT_EQ(a.rotated_pairs, b.rotated_pairs);
  }
  EXPECT_EQ(back.window, want.window);
  EXPECT_EQ(back.image_blocks, want.image_blocks);
  EXPECT_EQ(back.eps, want.eps);
  EXPECT_EQ(back.softcap, want.softcap);
  EXPECT_EQ(back.embed_scale, want.embed_scale);
  EXPECT_EQ(back.max_positions, want.max_positions);
  EXPECT_EQ(back.tied, want.tied);
  EXPECT_EQ(back.image_id, want.image_id);
  EXPECT_EQ(back.boi_id, want.boi_id);
  EXPECT_EQ(back.eoi_id, want.eoi_id);
  EXPECT_EQ(back.pad_id, want.pad_id);
  EXPECT_EQ(back.bos_id, want.bos_id);
  EXPECT_EQ(back.eos_ids, want.eos_ids);
  ASSERT_TRUE(back.has_vision);
  EXPECT_EQ(back.vision.hidden, want.vision.hidden);
  EXPECT_EQ(back.vision.intermediate, want.vision.intermediate);
  EXPECT_EQ(back.vision.layers, want.vision.layers);
  EXPECT_EQ(back.vision.heads, want.vision.heads);
  EXPECT_EQ(back.vision.head_dim, want.vision.head_dim);
  EXPECT_EQ(back.vision.positions, want.vision.positions);
  EXPECT_EQ(back.vision.default_budget, want.vision.default_budget);
  EXPECT_EQ(back.vision.standardize, want.vision.standardize);
  EXPECT_EQ(back.vision.eps, want.vision.eps);
}

TEST_F(GgufExportTest, TheTokenizerMeansTheSame) {
  const Checkpoint back = exported({});
  TokenizerArrays arrays{back.tokenizer.tokens, back.tokenizer.scores, back.tokenizer.types, back.tokenizer.merges};
  const Tokenizer ours = Tokenizer::from_arrays(arrays), want = Tokenizer::from_json(original_.tokenizer.json);
  for (const char* text : {"Describe this image.", "  two  spaces\n\n\nand lines", "na\xc3\xafve \xf0\x9f\x98\x80",
                           "<|turn>user\nHi<turn|>\n<|channel>thought\n<channel|>", "<|image><|image|><image|>"}) {
    EXPECT_EQ(ours.encode(text, true), want.encode(text, true)) << text;
    EXPECT_EQ(ours.encode(text, false), want.encode(text, false)) << text;
  }
  EXPECT_EQ(ours.vocab_size(), want.vocab_size());
}

// The gguf package packed the same weights into tests/golden/gguf/tiny2.gguf.
TEST_F(GgufExportTest, PacksBlocksLikeTheGgufPackage) {
  const Checkpoint theirs = open_checkpoint(golden("gguf/tiny2.gguf"));
  std::set<Format> seen;
  for (const auto& [name, weight] : theirs.weights) {
    const Matrix& m = weight.matrix;
    if (!is_ggml_block(m.format)) continue;
    std::string original = name;
    if (original.starts_with("layers.")) original.replace(7, 1, original[7] == '0' ? "4" : "5");
    const std::vector<float> values = floats_of(original_.find(original)->matrix);
    std::vector<uint8_t> packed(static_cast<size_t>(row_bytes(m)));
    int different = 0;
    for (int64_t row = 0; row < m.rows; ++row) {
      pack_blocks(m.format, values.data() + row * m.cols, m.cols, packed.data());
      different += std::memcmp(packed.data(), m.codes.row<uint8_t>(row), packed.size()) != 0;
    }
    EXPECT_EQ(different, 0) << name << " as " << info(m.format).name << ", rows of " << m.rows;
    seen.insert(m.format);
  }
  EXPECT_EQ(seen.size(), 5u);
}

TEST_F(GgufExportTest, WritesTheTypeThatIsAskedFor) {
  GgufExport options;
  options.type = Format::kQ4_0;
  const Checkpoint q4 = exported(options);
  EXPECT_EQ(q4.find("layers.0.mlp.up_proj.weight")->matrix.format, Format::kQ4_0);
  EXPECT_EQ(q4.find("embed_tokens.weight")->matrix.format, Format::kQ8_0);
  EXPECT_EQ(q4.find("norm.weight")->matrix.format, Format::kF32);
  EXPECT_EQ(q4.find("vision_tower.encoder.layers.0.mlp.up_proj.weight")->matrix.format, Format::kBF16);
  options.type = Format::kF16;
  options.overwrite = Overwrite::kReplace;
  const Checkpoint f16 = exported(options);
  EXPECT_EQ(f16.find("embed_tokens.weight")->matrix.format, Format::kF16);
  EXPECT_EQ(f16.find("vision_tower.patch_embedder.input_proj.weight")->matrix.format, Format::kF16);
  const Matrix& patches = f16.find("vision_tower.patch_embedder.input_proj.weight")->matrix;
  std::vector<float> rounded = floats_of(original_.find("vision_tower.patch_embedder.input_proj.weight")->matrix);
  for (float& v : rounded) v = round_to_f16(v);
  EXPECT_EQ(floats_of(patches), rounded);
}

// Every quantised format as float16, bfloat16 and float32: the float32 values of unpack_row(), rounded once.
TEST_F(GgufExportTest, QuantisedMatricesAreCastToTheTypeAskedFor) {
  fs::copy_file(kTiny / "config.json", folder_ / "config.json", fs::copy_options::overwrite_existing);
  fs::copy_file(kQuantised / "tiny_sensitive/model.safetensors", folder_ / "model.safetensors",
                fs::copy_options::overwrite_existing);
  const std::map<Format, float (*)(float)> casts = {
      {Format::kF16, round_to_f16}, {Format::kBF16, round_to_bf16}, {Format::kF32, [](float x) { return x; }}};
  std::set<Format> seen;
  for (const fs::path& path : {folder_, golden("gguf/tiny2.gguf")}) {
    const Checkpoint source = open_checkpoint(path);
    const TokenizerData tokenizer = source.tokenizer.tokens.empty() ? arrays_of(original_) : source.tokenizer;
    for (const auto& [type, cast] : casts) {
      fs::remove(folder_ / "cast.gguf");
      export_gguf_text(source, tokenizer, {.type = type, .keep_blocks = false}, folder_ / "cast.gguf", pool_);
      const Checkpoint back = open_checkpoint(folder_ / "cast.gguf", golden("gguf/mmproj-tiny2.gguf"));
      for (const auto& [name, weight] : source.weights) {
        if (weight.matrix.rows == 1 || name.find("vision") != name.npos) continue;
        seen.insert(weight.matrix.format);
        std::vector<float> want = floats_of(weight.matrix);
        for (float& value : want) value = cast(value);
        EXPECT_EQ(back.find(name)->matrix.format, type) << name;
        EXPECT_EQ(floats_of(back.find(name)->matrix), want) << name << " as " << info(type).name;
      }
    }
  }
  EXPECT_TRUE(seen.contains(Format::kInt4) && seen.contains(Format::kInt8));
  EXPECT_GE(seen.size(), 7u);
}

TEST_F(GgufExportTest, BlocksOfAGgufFileStayAsTheyAre) {
  const Checkpoint source = open_checkpoint(golden("gguf/tiny2.gguf"));
  export_gguf_text(source, source.tokenizer, {}, folder_ / "again.gguf", pool_);
  const Checkpoint again = open_checkpoint(folder_ / "again.gguf", golden("gguf/mmproj-tiny2.gguf"));
  for (const auto& [name, weight] : source.weights) {
    const Matrix &a = weight.matrix, &b = again.find(name)->matrix;
    if (!is_ggml_block(a.format)) continue;
    EXPECT_EQ(a.format, b.format) << name;
    EXPECT_EQ(std::memcmp(a.codes.data, b.codes.data, static_cast<size_t>(a.codes.bytes())), 0) << name;
  }
  GgufExport options;
  options.type = Format::kBF16;
  options.keep_blocks = false;
  EXPECT_THROW(export_gguf_text(source, source.tokenizer, options, folder_ / "again.gguf", pool_), Error);
  options.overwrite = Overwrite::kReplace;
  export_gguf_text(source, source.tokenizer, options, folder_ / "again.gguf", pool_);
  const Checkpoint plain = open_checkpoint(folder_ / "again.gguf", golden("gguf/mmproj-tiny2.gguf"));
  EXPECT_EQ(plain.find("embed_tokens.weight")->matrix.format, Format::kBF16);
}

TEST_F(GgufExportTest, SaysWhatIsMissing) {
  EXPECT_THROW(export_gguf_text(original_, {}, {}, folder_ / "x.gguf", pool_), Error);
  EXPECT_FALSE(fs::exists(folder_ / "x.gguf"));
  Checkpoint text = open_checkpoint(golden("tiny"));
  nlohmann::json config = read_json<nlohmann::json>(text.config);
  config.erase("vision_config");
  text.config = config.dump();
  EXPECT_THROW(export_gguf_vision(text, {}, folder_ / "x.gguf", pool_), Error);
  config["text_config"].erase("sliding_window");
  text.config = config.dump();
  EXPECT_THROW(export_gguf_text(text, arrays_of(text), {}, folder_ / "x.gguf", pool_), Error);
}

}  // namespace
}  // namespace gemma4
