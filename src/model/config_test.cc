#include "model/config.h"
#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"
#include "base/file.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const std::string k31b = SOURCE_DIR "/tests/golden/config_31b/";

json config_31b() { return read_json<json>(read_file(k31b + "config.json")); }

std::string refusal(const json& config) {
  try {
    parse_config(config.dump());
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Config, Reads31B) {
  const Config c = parse_config(config_31b().dump());
  EXPECT_EQ(c.layers, 60);
  EXPECT_EQ(std::count(c.kinds.begin(), c.kinds.end(), kFull), 10);
  EXPECT_EQ(c.kinds[5], kFull);
  EXPECT_EQ(c.embed_scale, 73.5f);
  EXPECT_EQ(c.attention[kSliding].head_dim, 256);
  EXPECT_EQ(c.attention[kFull].head_dim, 512);
  EXPECT_EQ(c.attention[kFull].kv_heads, 4);
  EXPECT_EQ(c.attention[kFull].rotated_pairs, 64);
  EXPECT_TRUE(c.attention[kFull].k_is_v);
  EXPECT_TRUE(c.image_blocks);
  EXPECT_EQ(c.softcap, 30);
  EXPECT_EQ(c.vision.layers, 27);
  EXPECT_EQ(c.vision.head_dim, 72);
  EXPECT_EQ(c.image_id, 258880);
  EXPECT_THAT(c.eos_ids, testing::ElementsAre(1, 106));
}

// needed_tensors() lists exactly the tensors of a real 31B checkpoint.
TEST(Weights, Of31BAreTheOnesItsCheckpointHolds) {
  const Config c = parse_config(config_31b().dump());
  const json listed = read_json<json>(read_file(k31b + "tensors.json"));
  EXPECT_EQ(needed_tensors(c, true).size() - 1, listed.size());  // without the tied lm_head
  int64_t numbers = 0, counted = 0;
  for (const TensorNeed& need : needed_tensors(c, true)) {
    if (need.optional) continue;
    int64_t size = 1;
    for (int64_t d : need.shape) size *= d;
    numbers += size;
  }
  for (const auto& [name, entry] : listed.items()) {
    int64_t size = 1;
    for (int64_t d : entry.is_object() ? entry["shape"] : entry) size *= d;
    counted += size;
  }
  EXPECT_EQ(numbers, counted);
}

TEST(Config, RefusesWhatItDoesNotCompute) {
  const std::vector<std::pair<const char*, json>> text_fields = {
      {"hidden_size_per_layer_input", 256}, {"num_kv_shared_layers", 20},
      {"enable_moe_block", true},           {"num_experts", 128},
      {"use_double_wide_mlp", true},        {"attention_bias", true},
      {"hidden_activation", "silu"},        {"use_bidirectional_attention", "all"},
      {"attn_logit_softcapping", 50.0},     {"model_type", "gemma3_text"}};
  for (const auto& [key, value] : text_fields) {
    json config = config_31b();
    config["text_config"][key] = value;
    EXPECT_THAT(refusal(config), HasSubstr(key));
  }
  json config = config_31b();
  config["audio_config"] = json::object();
  EXPECT_THAT(refusal(config), HasSubstr("audio"));
  config = config_31b();
  config["vision_config"]["use_clipped_linears"] = true;
  EXPECT_THAT(refusal(config), HasSubstr("use_clipped_linears"));
}

TEST(Config, RefusesContradictions) {
  json config = config_31b();
  config["text_config"]["layer_types"].erase(0);
  EXPECT_THAT(refusal(config), HasSubstr("layer_types"));
  config = config_31b();
  config["text_config"]["num_key_value_heads"] = 5;
  EXPECT_THAT(refusal(config), HasSubstr("do not divide"));
  config = config_31b();
  config["text_config"]["hidden_size"] = -1;
  EXPECT_THAT(refusal(config), HasSubstr("hidden_size"));
  config = config_31b();
  config["text_config"]["hidden_size"] = "big";
  EXPECT_THAT(refusal(config), HasSubstr("hidden_size"));
  EXPECT_THROW(parse_config("{"), Error);
  EXPECT_THROW(parse_config("[]"), Error);
}

// What mlx-lm and Gemma4ForCausalLM save.
TEST(Config, ATextModelHasNoVisionConfig) {
  json config = config_31b();
  config["vision_config"] = nullptr;
  EXPECT_FALSE(parse_config(config.dump()).has_vision);
  config.erase("vision_config");
  EXPECT_FALSE(parse_config(config.dump()).has_vision);
  EXPECT_FALSE(parse_config(config["text_config"].dump()).has_vision);
}

TEST(Config, ReadsBothSpellingsOfFullLayers) {
  json config = config_31b();
  json& text = config["text_config"];
  for (int i = 5; i < 60; i += 6) {
    text["per_layer_config"][std::to_string(i)] = {{"head_dim", 512}, {"num_key_value_heads", 4}};
  }
  text.erase("global_head_dim");
  text.erase("num_global_key_value_heads");
  const Config c = parse_config(config.dump());
  EXPECT_EQ(c.attention[kFull].head_dim, 512);
  EXPECT_EQ(c.attention[kFull].kv_heads, 4);
  EXPECT_EQ(c.attention[kFull].rotated_pairs, 64);
  EXPECT_EQ(c.attention[kSliding].kv_heads, 16);
}

// As transformers 5.17 writes its config: what differs in a layer, and the vision tower's rotation under its new name.
TEST(Config, ReadsItsNewestSpelling) {
  json config = config_31b();
  json& text = config["text_config"];
  text.erase("global_head_dim");
  text.erase("num_global_key_value_heads");
  for (int i = 5; i < 60; i += 6) text["per_layer_config"][std::to_string(i)] = {{"head_dim", 512}};
  config["vision_config"]["rope_parameters"] = {{"rope_type", "axial"}, {"rope_theta", 31.0}};
  const Config c = parse_config(config.dump());
  EXPECT_EQ(c.attention[kFull].head_dim, 512);
  EXPECT_EQ(c.attention[kFull].kv_heads, 16);
  EXPECT_EQ(c.vision.rope_theta, 31);
  config["vision_config"]["rope_parameters"]["rope_type"] = "linear";
  EXPECT_THAT(refusal(config), HasSubstr("rope_type"));
  text["per_layer_config"]["11"]["head_dim"] = 256;
  EXPECT_THAT(refusal(config), HasSubstr("per_layer_config.11"));
  text["per_layer_config"].erase("11");  // then as the sliding layers
  EXPECT_THAT(refusal(config), HasSubstr("per_layer_config.11"));
  text["per_layer_config"]["11"] = {{"head_dim", 512}, {"sliding_window", 3}};
  EXPECT_THAT(refusal(config), HasSubstr("sliding_window"));
}

TEST(Config, FillsInRotationsAsTransformersDoes) {
  json config = config_31b();
  json& ropes = config["text_config"]["rope_parameters"];
  ropes["full_attention"].erase("partial_rotary_factor");
  EXPECT_EQ(parse_config(config.dump()).attention[kFull].rotated_pairs, 256);
  ropes["full_attention"] = {{"rope_theta", 5e5}, {"partial_rotary_factor", 0.25}, {"factor", 8.0}};  // "default"
  EXPECT_EQ(parse_config(config.dump()).attention[kFull].rotated_pairs, 256);
  EXPECT_EQ(parse_config(config.dump()).attention[kFull].rope_factor, 1);
  ropes["full_attention"]["rope_type"] = "yarn";
  EXPECT_THAT(refusal(config), HasSubstr("full_attention.rope_type"));
  ropes["full_attention"] = {{"rope_type", "proportional"}};
  EXPECT_THAT(refusal(config), HasSubstr("rope_theta"));
  ropes.erase("full_attention");
  EXPECT_THAT(refusal(config), HasSubstr("full_attention"));
  config["text_config"].erase("rope_parameters");
  EXPECT_EQ(parse_config(config.dump()).attention[kFull].rotated_pairs, 64);
  EXPECT_EQ(parse_config(config.dump()).attention[kFull].rope_theta, 1e6);
}

TEST(Config, TheLastLayerIsAlwaysAFullOne) {
  json config = config_31b();
  config["text_config"]["layer_types"][59] = "sliding_attention";
  EXPECT_EQ(parse_config(config.dump()).kinds[59], kFull);
}

TEST(ImageProcessor, IsRefusedWhereItPreparesImagesOtherwise) {
  const Config config = parse_config(config_31b().dump());
  const auto refused = [&](const char* key, const json& value) {
    json image = {{"do_resize", true}, {"do_normalize", key == std::string("image_mean")}};
    image[key] = value;
    try {
      check_image_processor(config, json{{"image_processor", image}}.dump());
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  check_image_processor(config, read_file(SOURCE_DIR "/tests/golden/tiny/processor_config.json"));
  check_image_processor(config, "");
  EXPECT_EQ(refused("max_soft_tokens", 70), "");
  for (const auto& [key, value] : std::vector<std::pair<const char*, json>>{{"do_resize", false},
                                                                            {"do_rescale", false},
                                                                            {"image_mean", {0.5, 0.5, 0.5}},
                                                                            {"resample", 2},
                                                                            {"rescale_factor", 0.00784},
                                                                            {"patch_size", 14},
                                                                            {"pooling_kernel_size", 2}}) {
    EXPECT_THAT(refused(key, value), HasSubstr(key));
  }
}

TEST(GenerationConfig, ReadsStopsAndSampling) {
  const GenerationConfig g = parse_generation_config(read_file(k31b + "generation_config.json"));
  EXPECT_THAT(g.eos_ids, testing::ElementsAre(1, 106, 50));
  EXPECT_EQ(g.top_k, 64);
  EXPECT_FLOAT_EQ(g.top_p, 0.95f);
  EXPECT_TRUE(parse_generation_config("").eos_ids.empty());
}

}  // namespace
}  // namespace gemma4
