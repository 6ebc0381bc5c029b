// Compares with Hugging Face transformers' outputs for the tiny checkpoint, through `gemma4 eval`. Each has a twin that
// must fail: a comparison that cannot fail proves nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/models_testing.h"
#include "cli/cli.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

int eval(const std::string& model, const std::string& backend, std::vector<std::string> more = {},
         const std::string& golden = kTiny) {
  std::vector<std::string> words = {"eval", "--model", model, "--golden", golden + "/golden", "--backend", backend};
  words.insert(words.end(), more.begin(), more.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return eval_command(static_cast<int>(argv.size()), argv.data());
}

// A copy of the tiny checkpoint, which tests change.
struct Copy {
  Copy() : path(testing::TempDir() + "/gemma4_golden_copy_" + std::to_string(getpid())) {
    fs::remove_all(path);
    fs::create_directories(path);
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"}) {
      fs::copy_file(kTiny + "/" + name, path + "/" + name);
    }
  }
  ~Copy() { fs::remove_all(path); }

  void set_text(const char* key, const nlohmann::json& value) {
    auto config = read_json<nlohmann::json>(read_file(path + "/config.json"));
    config["text_config"][key] = value;
    write_file(path + "/config.json", config.dump());
  }

  std::string path;
};

TEST(Golden, RefEqualsHuggingFace) { EXPECT_EQ(eval(kTiny, "ref"), kExitOk); }
TEST(Golden, CpuEqualsHuggingFace) { EXPECT_EQ(eval(kTiny, "cpu"), kExitOk); }
TEST(Golden, CpuInChunksEqualsHuggingFace) { EXPECT_EQ(eval(kTiny, "cpu", {"--chunk", "7"}), kExitOk); }

// The KV heads are fewer than the ranks: two ranks hold copies of the only full-attention head, and with four ranks two
// hold a copy of each head of both attention kinds.
TEST(Golden, RefOverTwoAndFourRanksEqualsHuggingFace) {
  EXPECT_EQ(eval(kTiny, "ref", {"--gpus", "2"}), kExitOk);
  EXPECT_EQ(eval(kTiny, "ref", {"--gpus", "4", "--chunk", "7"}), kExitOk);
}
TEST(Golden, CpuOverTwoAndFourRanksEqualsHuggingFace) {
  EXPECT_EQ(eval(kTiny, "cpu", {"--gpus", "2", "--chunk", "7"}), kExitOk);
  EXPECT_EQ(eval(kTiny, "cpu", {"--gpus", "4"}), kExitOk);
}

TEST(Golden, LayersOverTwoAndThreeDevicesEqualHuggingFace) {
  EXPECT_EQ(eval(kTiny, "ref", {"--gpus", "2", "--split", "layers"}), kExitOk);
  EXPECT_EQ(eval(kTiny, "cpu", {"--gpus", "3", "--split", "layers", "--chunk", "7"}), kExitOk);
}

// Other shapes and config spellings than those of tiny (see tools/make_golden_variants.py), as a whole and in chunks.
class Variant : public testing::TestWithParam<const char*> {};

TEST_P(Variant, EqualsHuggingFace) {
  const std::string folder = SOURCE_DIR "/tests/golden/variants/" + std::string(GetParam());
  EXPECT_EQ(eval(folder, "ref", {}, folder), kExitOk);
  for (const char* chunk : {"0", "1", "7", "64"}) EXPECT_EQ(eval(folder, "cpu", {"--chunk", chunk}, folder), kExitOk);
}

INSTANTIATE_TEST_SUITE_P(Golden, Variant, testing::Values("full_first", "k_and_v", "saved_by_5_17", "long_image"),
                         [](const auto& info) { return info.param; });

TEST(GoldenCanary, AWindowOffByOneFails) {
  Copy copy;
  copy.set_text("sliding_window", 23);
  EXPECT_EQ(eval(copy.path, "cpu", {"--case", "text_long"}), kExitFailed);
}

TEST(GoldenCanary, CausalImagesFail) {
  Copy copy;
  copy.set_text("use_bidirectional_attention", nullptr);
  EXPECT_EQ(eval(copy.path, "cpu", {"--case", "image_one"}), kExitFailed);
}

TEST(GoldenCanary, AnotherRotationFails) {
  Copy copy;
  nlohmann::json ropes =
      read_json<nlohmann::json>(read_file(copy.path + "/config.json"))["text_config"]["rope_parameters"];
  ropes["full_attention"]["partial_rotary_factor"] = 0.5;
  copy.set_text("rope_parameters", ropes);
  EXPECT_EQ(eval(copy.path, "ref", {"--case", "text_short"}), kExitFailed);
}

TEST(GoldenCanary, OneNudgedWeightFails) {
  Copy copy;
  std::string bytes = read_file(copy.path + "/model.safetensors");
  // The end of the file has vision weights, its middle has those of the text decoder.
  for (size_t at = bytes.size() / 2 | 1, end = at + 64; at < end; at += 2) bytes[at] = '\x40';  // bfloat16 of about 3
  write_file(copy.path + "/model.safetensors", bytes);
  EXPECT_EQ(eval(copy.path, "cpu", {"--case", "text_short"}), kExitFailed);
}

TEST(Golden, DumpHoldsTheLogits) {
  const std::string file = testing::TempDir() + "/gemma4_dump_" + std::to_string(getpid()) + ".safetensors";
  EXPECT_EQ(eval(kTiny, "cpu", {"--case", "text_short", "--dump", file}), kExitOk);
  EXPECT_GT(fs::file_size(file), 22u * 2045 * 4);
  fs::remove(file);
}

}  // namespace
}  // namespace gemma4
