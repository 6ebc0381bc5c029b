#include "checkpoint/checkpoint.h"
#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bf16.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torchao.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using namespace testing_files;

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

// Opens a directory with `header` and `data`; returns the message of the Error, or "opened".
std::string refusal(const std::string& file) {
  const Folder folder;
  folder.put("config.json", "{}");
  folder.put("model.safetensors", file);
  try {
    open_checkpoint(folder.path);
  } catch (const Error& error) {
    return error.what();
  }
  return "opened";
}

std::string refusal(const std::string& header, const std::string& data) { return refusal(container(header, data)); }

TEST(OpenCheckpoint, HuggingFaceDirectoryWithEveryName) {
  for (const fs::path& directory : {kTiny, kRoot / "models/demo"}) {
    const Checkpoint checkpoint = open_checkpoint(directory);
    EXPECT_EQ(checkpoint.kind, "huggingface");
    EXPECT_EQ(checkpoint.weights.size(), 142u);
    EXPECT_EQ(checkpoint.order.size(), 142u);
    EXPECT_FALSE(checkpoint.config.empty());
    EXPECT_FALSE(checkpoint.generation_config.empty());
    EXPECT_FALSE(checkpoint.processor_config.empty());
    EXPECT_FALSE(checkpoint.tokenizer.json.empty());
    EXPECT_EQ(checkpoint.find("lm_head.weight"), nullptr);
  }
  const Checkpoint tiny = open_checkpoint(kTiny);
  const Matrix& q = tiny.find("layers.3.self_attn.q_proj.weight")->matrix;
  EXPECT_EQ(q.format, Format::kBF16);
  EXPECT_EQ(q.rows, 64);
  EXPECT_EQ(q.cols, 96);
  const Weight* norm = tiny.find("vision_tower.encoder.layers.0.self_attn.q_norm.weight");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->matrix.rows, 1);
  EXPECT_EQ(norm->shape, std::vector<int64_t>{12});
  const Weight* table = tiny.find(kPositionTable);
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->matrix.rows, 256);
  EXPECT_EQ(table->shape, (std::vector<int64_t>{2, 128, 48}));
}

TEST(OpenCheckpoint, EveryNameOf31B) {
  const json tensors = read_json<json>(read_file(kRoot / "tests/golden/config_31b/tensors.json"));
  EXPECT_GT(tensors.size(), 1000u);
  for (const auto& [name, shape] : tensors.items()) {
    EXPECT_TRUE(is_model_tensor(from_huggingface_name(name))) << name;
    EXPECT_EQ(to_huggingface_name(from_huggingface_name(name)), name);
  }
}

TEST(OpenCheckpoint, QuantisedByTheOriginal) {
  const Checkpoint source = open_checkpoint(kTiny);
  for (const char* recipe : {"tiny_default", "tiny_sensitive"}) {
    const Folder folder;
    fs::copy_file(kQuantised / recipe / "model.safetensors", folder.path / "model.safetensors");
    fs::copy_file(kTiny / "config.json", folder.path / "config.json");
    const Checkpoint checkpoint = open_checkpoint(folder.path);
    EXPECT_EQ(checkpoint.kind, "torchao");
    EXPECT_EQ(checkpoint.weights.size(), 143u);  // with the untied head
    EXPECT_TRUE(checkpoint.generation_config.empty());
    for (const auto& [name, weight] : checkpoint.weights) {
      const Weight* original = source.find(name == "lm_head.weight" ? "embed_tokens.weight" : name);
      ASSERT_NE(original, nullptr) << name;
      ASSERT_EQ(weight.matrix.rows, original->matrix.rows) << name;
      ASSERT_EQ(weight.shape, original->shape) << name;
      double error = 0, size = 1e-30;
      std::vector<float> a(static_cast<size_t>(weight.matrix.cols)), b = a;
      for (int64_t row = 0; row < weight.matrix.rows; ++row) {
        unpack_row(weight.matrix, row, a.data());
        unpack_row(original->matrix, row, b.data());
        for (size_t i = 0; i < a.size(); ++i) error += std::fabs(a[i] - b[i]), size += std::fabs(b[i]);
      }
      const double allowed = weight.matrix.format == Format::kInt4   ? 0.15
                             : weight.matrix.format == Format::kInt8 ? 0.02
                                                                     : 0;
      EXPECT_LE(error / size, allowed) << name;
    }
    EXPECT_EQ(checkpoint.find(kPositionTable)->matrix.format, Format::kInt8);
    EXPECT_EQ(checkpoint.find("embed_tokens.weight")->matrix.group, 96);
    EXPECT_EQ(checkpoint.find("layers.0.mlp.down_proj.weight")->matrix.format,
              recipe == std::string("tiny_default") ? Format::kInt4 : Format::kInt8);
  }
}

TEST(OpenCheckpoint, ShardsAndOtherTypes) {
  const Folder folder;
  folder.put("config.json", "{}");
  const float head[2] = {1.5f, -2};
  const uint16_t norm[2] = {float_to_f16(0.5f), float_to_f16(3)};
  folder.put("a.safetensors", container(R"({"lm_head.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})",
                                        std::string(reinterpret_cast<const char*>(head), 8)));
  folder.put("b.safetensors", container(R"({"model.norm.weight":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})",
                                        std::string(reinterpret_cast<const char*>(norm), 4)));
  const auto index = [&](const std::string& map) { folder.put("model.safetensors.index.json", map); };
  index(R"({"weight_map":{"lm_head.weight":"a.safetensors","model.norm.weight":"b.safetensors"}})");
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  EXPECT_EQ(row_of(checkpoint, "lm_head.weight", 0), (std::vector<float>{1.5f, -2}));
  EXPECT_EQ(row_of(checkpoint, "norm.weight", 0), (std::vector<float>{0.5f, 3}));

  const auto message = [&] {
    try {
      open_checkpoint(folder.path);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("opened");
  };
  index(R"({"weight_map":{"lm_head.weight":"a.safetensors"}})");
  EXPECT_EQ(message(), "opened");
  index(R"({"weight_map":{"lm_head.weight":"a.safetensors","model.norm.weight":"c.safetensors"}})");
  EXPECT_THAT(message(), HasSubstr("c.safetensors"));
  index(R"({"weight_map":{"lm_head.weight":"a.safetensors","model.norm.weight":"a.safetensors"}})");
  EXPECT_THAT(message(), HasSubstr("lacks the tensor model.norm.weight"));
  index(R"({"weight_map":{"lm_head.weight":"../a.safetensors"}})");
  EXPECT_THAT(message(), HasSubstr("not a file of this directory"));
  index(R"({"weight_map":{"lm_head.weight":7}})");
  EXPECT_THAT(message(), HasSubstr("not a file of this directory"));
  index("{}");
  EXPECT_THAT(message(), HasSubstr("no weight_map"));
}

TEST(OpenCheckpoint, UnalignedTensorIsCopied) {
  const Folder folder;
  folder.put("config.json", "{}");
  const std::string header = R"({"norm.weight":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}, )"
                             R"("lm_head.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[2,6]}})";
  folder.put("model.safetensors",
             container(header + (header.size() % 2 ? "" : " "), std::string("\x80\x3f\0\0\0\x40", 6)));
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  EXPECT_EQ(row_of(checkpoint, "norm.weight", 0)[0], 1.0f);
  EXPECT_EQ(row_of(checkpoint, "lm_head.weight", 0)[0], 2.0f);
}

TEST(OpenCheckpoint, MissingFilesAreNamed) {
  EXPECT_THROW(open_checkpoint("/nonexistent/model"), Error);
  const Folder folder;
  try {
    open_checkpoint(folder.path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("config.json"));
  }
  folder.put("config.json", "{}");
  try {
    open_checkpoint(folder.path);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("model.safetensors"));
  }
}

TEST(Safetensors, RefusesLyingHeaders) {
  const auto entry = [](const std::string& name, const std::string& type, const std::string& shape, int begin,
                        int end) {
    return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
           std::to_string(begin) + "," + std::to_string(end) + "]}";
  };
  const std::string good = entry("norm.weight", "F32", "[2]", 0, 8);
  EXPECT_EQ(refusal("{" + good + "}", std::string(8, 0)), "opened");
  EXPECT_THAT(refusal(""), HasSubstr("cut short"));
  EXPECT_THAT(refusal(std::string(7, 0)), HasSubstr("cut short"));
  EXPECT_THAT(refusal("{" + good + "}", std::string(7, 0)), HasSubstr("cut short"));
  EXPECT_THAT(refusal("{" + good + "}", std::string(9, 0)), HasSubstr("cut short or damaged"));
  const uint64_t huge = kSafetensorsHeaderMax + 1, absurd = ~uint64_t{0}, longer = 1000;
  EXPECT_THAT(refusal(std::string(reinterpret_cast<const char*>(&huge), 8)), HasSubstr("limit"));
  EXPECT_THAT(refusal(std::string(reinterpret_cast<const char*>(&absurd), 8)), HasSubstr("limit"));
  EXPECT_THAT(refusal(std::string(reinterpret_cast<const char*>(&longer), 8) + "{}"), HasSubstr("cut short"));
  EXPECT_THAT(refusal("{" + good, ""), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("[]", ""), HasSubstr("not a JSON object"));
  EXPECT_THAT(refusal("{" + good + "," + good + "}", std::string(8, 0)), HasSubstr("norm.weight twice"));
  EXPECT_THAT(refusal("{" + good + "," + entry("lm_head.weight", "F32", "[2]", 4, 12) + "}", std::string(12, 0)),
              HasSubstr("overlap or leave a gap"));
  EXPECT_THAT(refusal("{" + good + "," + entry("lm_head.weight", "F32", "[1]", 12, 16) + "}", std::string(16, 0)),
              HasSubstr("overlap or leave a gap"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[3]", 0, 8) + "}", std::string(8, 0)),
              HasSubstr("needs 12 bytes"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[4611686018427387904,4]", 0, 0) + "}", ""),
              HasSubstr("overflows"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[18446744073709551615]", 0, 8) + "}", std::string(8, 0)),
              HasSubstr("63 bits"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[-2]", 0, 8) + "}", std::string(8, 0)), HasSubstr("63 bits"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[2.0]", 0, 8) + "}", std::string(8, 0)), HasSubstr("63 bits"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "2", 0, 8) + "}", std::string(8, 0)), HasSubstr("shape"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F8_E4M3", "[8]", 0, 8) + "}", std::string(8, 0)),
              HasSubstr("F8_E4M3"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "F32", "[0]", 0, 0) + "}", ""), HasSubstr("no elements"));
  EXPECT_THAT(refusal("{" + entry("norm.weight", "I32", "[2]", 0, 8) + "}", std::string(8, 0)), HasSubstr("I32"));
  EXPECT_THAT(refusal("{\"norm.weight\":{\"dtype\":\"F32\",\"shape\":[2]}}", std::string(8, 0)),
              HasSubstr("data_offsets"));
  EXPECT_THAT(refusal("{\"__metadata__\":{\"a\":1}," + good + "}", std::string(8, 0)), HasSubstr("not a string"));
  EXPECT_THAT(refusal(std::string(200, '['), ""), HasSubstr("nested too deeply"));
  EXPECT_THAT(refusal("{" + entry("layers.x.layer_scalar", "F32", "[2]", 0, 8) + "}", std::string(8, 0)),
              HasSubstr("layers.x.layer_scalar is not one that Gemma 4 has"));
  EXPECT_THAT(refusal("{" + entry("model.audio_tower.w", "F32", "[2]", 0, 8) + "}", std::string(8, 0)),
              HasSubstr("model.audio_tower.w"));
  EXPECT_THAT(refusal("{" + good + "," + entry("model.norm.weight", "F32", "[1]", 8, 12) + "}", std::string(12, 0)),
              HasSubstr("appears twice"));
}

TEST(Safetensors, TruncatedAnywhereIsAnError) {
  const std::string whole = read_file(kQuantised / "tiny_default/model.safetensors");
  for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 97) {
    EXPECT_NE(refusal(whole.substr(0, size)), "opened") << size;
  }
}

}  // namespace
}  // namespace gemma4
