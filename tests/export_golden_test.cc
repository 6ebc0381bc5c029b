// An exported model gives the same results as Hugging Face transformers with the source checkpoint. Text, pictures,
// tokenizer and config all come from the exported files.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/check.h"
#include "base/file.h"
#include "base/models_testing.h"
#include "cli/cli.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

int call(int (*command)(int, char**), std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return command(static_cast<int>(argv.size()), argv.data());
}

class ExportGolden : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  int exported(std::vector<std::string> more) {
    std::vector<std::string> words = {"export", "--format", "gguf", "--model-dir", kTiny, "--output", model_};
    words.insert(words.end(), more.begin(), more.end());
    return call(export_command, words);
  }
  int eval(std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"eval", "--model", model_, "--golden", kTiny + "/golden", "--backend", "cpu"};
    words.insert(words.end(), more.begin(), more.end());
    return call(eval_command, words);
  }

  const fs::path folder_ = fs::path(testing::TempDir()) / ("gemma4_export_golden_" + std::to_string(getpid()));
  const std::string model_ = folder_ / "model.gguf";
};

TEST_F(ExportGolden, GgufEqualsHuggingFace) {
  ASSERT_EQ(exported({"--mmproj"}), kExitOk);
  EXPECT_EQ(eval(), kExitOk);
}

TEST_F(ExportGolden, FourBitsDoNot) {
  ASSERT_EQ(exported({"--type", "Q4_0"}), kExitOk);
  EXPECT_EQ(eval({"--case", "text_short"}), kExitFailed);
}

TEST_F(ExportGolden, NothingIsWrittenOverTheSourceOrByHalves) {
  ASSERT_EQ(exported({"--type", "q8_0"}), kExitOk);
  const std::string before = read_file(model_);
  const auto from = [&](const std::string& format, const std::string& source, const std::string& to, bool vision) {
    std::vector<std::string> words = {"export", "--format", format, "--model-dir", source, "--output", to};
    if (vision) words.push_back("--mmproj");
    return call(export_command, words);
  };
  EXPECT_THROW(from("gguf", model_, model_, false), Error);
  EXPECT_EQ(read_file(model_), before);
  const fs::path other = folder_ / "other.gguf", copy = folder_ / "copy";
  EXPECT_THROW(from("gguf", model_, other, true), Error) << "there is no vision half";
  EXPECT_FALSE(fs::exists(other));
  fs::copy(kTiny, copy);
  const std::string weights = read_file(copy / "model.safetensors");
  EXPECT_THROW(from("mlx", copy, copy, false), Error);
  EXPECT_EQ(read_file(copy / "model.safetensors"), weights);
  // A model that could not run is not exported either.
  fs::remove(copy / "config.json");
  write_file(copy / "config.json", read_file(SOURCE_DIR "/models/demo/config.json"));
  EXPECT_THROW(from("gguf", copy, other, false), Error);
  EXPECT_FALSE(fs::exists(other));
}

TEST_F(ExportGolden, BadFlagsAreRefused) {
  EXPECT_THROW(exported({"--type", "q4_K"}), Error);
  EXPECT_EQ(call(export_command, {"export", "--format", "x", "--model-dir", kTiny, "--output", model_}), kExitBadInput);
  EXPECT_EQ(call(export_command, {"export", "--format", "gguf"}), kExitBadInput);
}

}  // namespace
}  // namespace gemma4
