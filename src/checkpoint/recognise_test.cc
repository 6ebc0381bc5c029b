// What is given in a checkpoint's place gets a sentence that says what it is and what to do.
#include "checkpoint/recognise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "checkpoint/names.h"

namespace gemma4 {
namespace {

using namespace testing_files;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

std::string refusal(const fs::path& path) {
  try {
    open_checkpoint(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "opened";
}

// Of a directory with this config and a file whose tensors have names that Gemma 4 does not know.
std::string refusal_of_config(const json& config) {
  const Folder folder;
  folder.put("config.json", config.dump());
  folder.put("model.safetensors",
             container(R"({"model.experts.w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", std::string(4, 0)));
  return refusal(folder.path);
}

json tiny_config() { return read_json<json>(read_file(kTiny / "config.json")); }

TEST(Recognise, OtherMembersOfTheFamilyBeforeTheirTensors) {
  json config = tiny_config();
  config["text_config"]["enable_moe_block"] = true;
  EXPECT_THAT(refusal_of_config(config), HasSubstr("a mixture of experts, as Gemma 4 26B-A4B"));
  config = tiny_config();
  config["text_config"]["hidden_size_per_layer_input"] = 256;
  config["audio_config"] = {{"hidden_size", 1024}};
  EXPECT_THAT(refusal_of_config(config), HasSubstr("per-layer embeddings, as Gemma 4 E2B and E4B"));
  config = tiny_config();
  config["audio_config"] = {{"hidden_size", 1024}};
  EXPECT_THAT(refusal_of_config(config), HasSubstr("audio_config"));
  for (const char* type : {"gemma4_unified", "gemma4_unified_text"}) {
    EXPECT_THAT(refusal_of_config({{"model_type", type}}), AllOf(HasSubstr("unified"), HasSubstr("GGUF")));
  }
  EXPECT_THAT(refusal_of_config({{"model_type", "gemma3"}}), HasSubstr("'gemma3', not Gemma 4"));
  EXPECT_THAT(refusal_of_config({{"model_type", "llama"}}), HasSubstr("'llama', not Gemma 4"));
  EXPECT_THAT(refusal_of_config({{"model_type", "gemma4_next"}}), HasSubstr("not known here"));
}

TEST(Recognise, QuantisersThatAreNotReadAndTheWayOut) {
  json config = tiny_config();
  config["quantization_config"] = {{"quant_method", "fp8"}};
  EXPECT_THAT(refusal_of_config(config), AllOf(HasSubstr("\"fp8\""), HasSubstr("convert_hf_to_gguf.py")));
  config["quantization_config"] = {{"quant_method", "bitsandbytes"}};
  EXPECT_THAT(refusal_of_config(config), AllOf(HasSubstr("\"bitsandbytes\""), HasSubstr("gemma4 quantize")));
  // Those that are read: what is refused is the tensor.
  for (const char* method : {"gptq", "awq", "auto-round", "intel/auto-round"}) {
    config["quantization_config"] = {{"quant_method", method}};
    EXPECT_THAT(refusal_of_config(config), HasSubstr("tensor model.experts.w is not one that Gemma 4 has"));
  }
}

TEST(Recognise, DirectoriesThatAreNoModel) {
  const Folder adapter;
  adapter.put("adapter_config.json", R"({"base_model_name_or_path": "google/gemma-4-31B-it"})");
  adapter.put("adapter_model.safetensors", "x");
  EXPECT_THAT(refusal(adapter.path), AllOf(HasSubstr("is an adapter"), HasSubstr("google/gemma-4-31B-it")));
  adapter.put("adapter_config.json", "broken");
  EXPECT_THAT(refusal(adapter.path), HasSubstr("merge it into its base"));
  const Folder pickled;
  pickled.put("config.json", tiny_config().dump());
  pickled.put("pytorch_model.bin", "x");
  EXPECT_THAT(refusal(pickled.path), HasSubstr("safe_serialization=True"));
  const Folder empty;
  EXPECT_THAT(refusal(empty.path), HasSubstr("holds no config.json"));
}

TEST(Recognise, PointersOfGitLfs) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 62000000000\n";
  const Folder folder;
  folder.put("config.json", tiny_config().dump());
  folder.put("model.safetensors", pointer);
  folder.put("model.gguf", pointer);
  EXPECT_THAT(refusal(folder.path), HasSubstr("git lfs pull"));
  EXPECT_THAT(refusal(folder.path / "model.gguf"), HasSubstr("git lfs pull"));
}

TEST(Recognise, ANameOnTheHubIsNoPath) {
  EXPECT_THAT(refusal("google/gemma-4-31B-it"), HasSubstr("hf download google/gemma-4-31B-it --local-dir"));
  EXPECT_EQ(refusal("/no/such"), "there is no checkpoint at /no/such");
  EXPECT_EQ(refusal("./google/x"), "there is no checkpoint at ./google/x");
}

// An index is left behind where shards were joined; a download that was cut leaves shards out.
TEST(Recognise, IndexesThatDoNotFit) {
  const Folder folder;
  fs::copy(kTiny, folder.path, fs::copy_options::recursive);
  const std::string index = R"({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})";
  folder.put("model.safetensors.index.json", index);
  EXPECT_EQ(open_checkpoint(folder.path).weights.size(), 142u);
  fs::remove(folder.path / "model.safetensors");
  EXPECT_THAT(refusal(folder.path), AllOf(HasSubstr("model-00001-of-00002"), HasSubstr("not complete")));
}

TEST(Recognise, AFolderOfGgufFiles) {
  const fs::path golden = kTiny.parent_path() / "gguf";
  const Checkpoint whole = open_checkpoint(golden);  // the model and its vision half
  EXPECT_EQ(whole.kind, "gguf");
  EXPECT_NE(whole.find("vision_tower.std_bias"), nullptr);
  const Folder folder;
  fs::copy(golden, folder.path, fs::copy_options::recursive);
  fs::copy(golden / "tiny2.gguf", folder.path / "other.gguf");
  EXPECT_THAT(refusal(folder.path), AllOf(HasSubstr("tiny2.gguf"), HasSubstr("other.gguf")));
}

// A directory's tower comes from an mmproj file or from another directory; and it can be left out.
TEST(VisionSource, ForADirectoryAndForNone) {
  const Folder text;
  fs::copy(kTiny, text.path, fs::copy_options::recursive);
  json config = tiny_config();
  config.erase("vision_config");
  text.put("config.json", config.dump());
  text.put("model.safetensors", without_tensors(read_file(kTiny / "model.safetensors"), [](const std::string& name) {
             return is_vision_tensor(from_huggingface_name(name));
           }));
  EXPECT_EQ(open_checkpoint(text.path).find("vision_tower.std_bias"), nullptr);
  for (const fs::path& source : {kTiny, kTiny.parent_path() / "gguf/mmproj-tiny2.gguf"}) {
    const Checkpoint both = open_checkpoint(text.path, source);
    EXPECT_NE(both.find("vision_tower.std_bias"), nullptr);
    EXPECT_TRUE(read_json<json>(both.config)["vision_config"].is_object());
  }
  const Checkpoint without = open_checkpoint(kTiny, {}, false);
  EXPECT_EQ(without.find("vision_tower.std_bias"), nullptr);
  EXPECT_TRUE(read_json<json>(without.config)["vision_config"].is_null());
}

}  // namespace
}  // namespace gemma4
