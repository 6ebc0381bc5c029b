// A checkpoint that lacks tensors is refused, and each of them is named; what is loaded of a whole one.
#include "model/weights.h"
#include "model/tensor_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "base/check.h"
#include "base/json.h"
#include "checkpoint/checkpoint_testing.h"
#include "checkpoint/golden_testing.h"
#include "model/model.h"

namespace gemma4 {
namespace {

using namespace testing_files;

using testing::HasSubstr;

using Names = std::function<bool(const std::string&)>;

bool is_of_vision(const std::string& name) {
  return name.find("vision_tower.") != name.npos || name.find("embed_vision.") != name.npos;
}

// The tiny model without the tensors whose names `drop` picks, as Hugging Face stores it or as the quantiser does.
void put_tiny(const Folder& folder, const std::string& kind, const Names& drop) {
  const auto weights = kind == "huggingface" ? testing_files::kTiny / "model.safetensors"
                                             : testing_files::kQuantised / "tiny_default/model.safetensors";
  folder.put("model.safetensors", without_tensors(read_file(weights), drop));
  folder.put("config.json", read_file(testing_files::kTiny / "config.json"));
}

std::string loading_error(const Folder& folder) {
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  const auto backend = make_ref();
  try {
    load_weights(checkpoint, parse_config(checkpoint.config), *backend, {});
  } catch (const Error& error) {
    return error.what();
  }
  return "loaded";
}

class WeightsOf : public testing::TestWithParam<const char*> {};

// A buffer of the vision tower, a scalar and a matrix of the text tower: what a loader that fills gaps would set to 0.
TEST_P(WeightsOf, AMissingTensorIsNamed) {
  for (const std::string name : {"vision_tower.std_bias", "layers.2.layer_scalar", "layers.0.mlp.up_proj.weight"}) {
    const Folder folder;
    const std::string stem = name.substr(0, name.rfind(".weight"));
    put_tiny(folder, GetParam(), [&](const std::string& tensor) {
      return tensor.find(stem) != tensor.npos && tensor.find("encoder") == tensor.npos;
    });
    const Checkpoint checkpoint = open_checkpoint(folder.path);
    EXPECT_EQ(checkpoint.kind, GetParam());
    ASSERT_THAT(check_weights(checkpoint, parse_config(checkpoint.config)),
                testing::ElementsAre("tensor " + name + " is missing"));
    EXPECT_EQ(loading_error(folder), folder.path.string() + ": tensor " + name + " is missing");
  }
  const Folder several;
  put_tiny(several, GetParam(), [](const std::string& tensor) { return tensor.ends_with(".layer_scalar"); });
  const Checkpoint checkpoint = open_checkpoint(several.path);
  const Config config = parse_config(checkpoint.config);
  std::vector<std::string> want;
  for (int i = 0; i < config.layers; ++i)
    want.push_back("tensor layers." + std::to_string(i) + ".layer_scalar is missing");
  EXPECT_EQ(check_weights(checkpoint, config), want);
}

// config.json promises a vision tower that the file does not hold.
TEST_P(WeightsOf, AMissingVisionTowerIsNamed) {
  const Folder folder;
  put_tiny(folder, GetParam(), is_of_vision);
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  const Config config = parse_config(checkpoint.config);
  std::vector<std::string> want;
  for (const TensorNeed& need : needed_tensors(config, true)) {
    if (is_of_vision(need.name)) want.push_back("tensor " + need.name + " is missing");
  }
  EXPECT_EQ(want.size(), 5u + 13 * static_cast<size_t>(config.vision.layers));
  ASSERT_EQ(check_weights(checkpoint, config), want);
  EXPECT_THAT(loading_error(folder), HasSubstr(want[0] + " (and " + std::to_string(want.size() - 1) + " more)"));
}

// "vision_config": null says that there is no tower. The text model is the same one.
TEST_P(WeightsOf, ATextModelNeedsNoVisionTower) {
  const Folder whole, text;
  put_tiny(whole, GetParam(), [](const std::string&) { return false; });
  put_tiny(text, GetParam(), is_of_vision);
  text.put("config.json", without_vision(read_file(testing_files::kTiny / "config.json")));
  const auto logits = [](const Folder& folder) {
    const Checkpoint checkpoint = open_checkpoint(folder.path);
    const Config config = parse_config(checkpoint.config);
    const auto backend = make_ref();
    const ModelOptions options = options_for(config, 64, 64, 1);
    Model model(checkpoint, config, *backend, options);
    for (const AttentionKind kind : {kSliding, kFull}) {
      std::vector<int32_t> pages(static_cast<size_t>(options.pages_per_seq[kind]));
      std::iota(pages.begin(), pages.end(), 0);
      model.set_pages(kind, 0, pages);
    }
    Batch batch;
    for (int i = 0; i < 12; ++i) append_row(batch, config, 40 + 7 * i, 0, i, -1);
    batch.logit_rows = {11};
    model.forward(batch);
    std::vector<float> out(static_cast<size_t>(config.vocab));
    model.read_logits(out.data());
    return out;
  };
  EXPECT_EQ(logits(text), logits(whole));
}

// A backend that rounds keeps more of what becomes queries, keys and values, in both towers, and of nothing else.
TEST_P(WeightsOf, WhatFeedsAttentionIsMarked) {
  const Folder folder;
  put_tiny(folder, GetParam(), [](const std::string&) { return false; });
  const Checkpoint checkpoint = open_checkpoint(folder.path);
  const auto backend = make_ref();
  const Weights weights = load_weights(checkpoint, parse_config(checkpoint.config), *backend, {});
  for (const auto* layers : {&weights.layers, &weights.vision.layers}) {
    ASSERT_FALSE(layers->empty());
    for (const LayerWeights& layer : *layers) {
      for (const FusedLinear::Slice& slice : layer.qkv.slices) EXPECT_TRUE(slice.weight.feeds_attention);
      for (const FusedLinear::Slice& slice : layer.gate_up.slices) EXPECT_FALSE(slice.weight.feeds_attention);
      EXPECT_FALSE(layer.o.feeds_attention || layer.down.feeds_attention);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Containers, WeightsOf, testing::Values("huggingface", "torchao"));

}  // namespace
}  // namespace gemma4
