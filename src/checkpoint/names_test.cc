#include "checkpoint/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/golden_testing.h"

namespace gemma4 {
namespace {

using namespace testing_files;

// Model names of the tensors that a checkpoint of 31B holds, of those that begin with `prefix`.
std::set<std::string> names_of_31b(const std::string& prefix) {
  std::set<std::string> names;
  const auto tensors = read_json<nlohmann::json>(read_file(golden("config_31b/tensors.json")));
  for (const auto& [name, entry] : tensors.items()) {
    const std::string model = from_huggingface_name(name);
    if (model.starts_with(prefix)) names.insert(model);
  }
  return names;
}

// Layer 59 is the last of 31B and attends to all keys, so it has no V projection.
TEST(GgufNames, TheLastLayerOf31B) {
  const std::map<std::string, std::string> last = {
      {"layers.59.self_attn.q_proj.weight", "blk.59.attn_q.weight"},
      {"layers.59.self_attn.k_proj.weight", "blk.59.attn_k.weight"},
      {"layers.59.self_attn.o_proj.weight", "blk.59.attn_output.weight"},
      {"layers.59.self_attn.q_norm.weight", "blk.59.attn_q_norm.weight"},
      {"layers.59.self_attn.k_norm.weight", "blk.59.attn_k_norm.weight"},
      {"layers.59.mlp.gate_proj.weight", "blk.59.ffn_gate.weight"},
      {"layers.59.mlp.up_proj.weight", "blk.59.ffn_up.weight"},
      {"layers.59.mlp.down_proj.weight", "blk.59.ffn_down.weight"},
      {"layers.59.input_layernorm.weight", "blk.59.attn_norm.weight"},
      {"layers.59.post_attention_layernorm.weight", "blk.59.post_attention_norm.weight"},
      {"layers.59.pre_feedforward_layernorm.weight", "blk.59.ffn_norm.weight"},
      {"layers.59.post_feedforward_layernorm.weight", "blk.59.post_ffw_norm.weight"},
      {"layers.59.layer_scalar", "blk.59.layer_output_scale.weight"},
  };
  std::set<std::string> listed;
  for (const auto& [model, gguf] : last) {
    EXPECT_EQ(from_gguf_name(gguf), model);
    EXPECT_EQ(to_gguf_name(model), gguf);
    listed.insert(model);
  }
  EXPECT_EQ(listed, names_of_31b("layers.59."));
  EXPECT_EQ(names_of_31b("layers.58.").size(), listed.size() + 1);  // a sliding layer has a V projection
  EXPECT_EQ(from_gguf_name("blk.58.attn_v.weight"), "layers.58.self_attn.v_proj.weight");
}

TEST(GgufNames, EveryNameOf31BComesBack) {
  const std::set<std::string> names = names_of_31b("");
  EXPECT_EQ(names.size(), 1188u);
  std::set<std::string> gguf_names;
  for (const std::string& name : names) {
    const auto gguf = to_gguf_name(name);
    ASSERT_TRUE(gguf) << name;
    EXPECT_EQ(from_gguf_name(*gguf), name);
    EXPECT_TRUE(gguf_names.insert(*gguf).second) << *gguf << " names two tensors";
  }
}

TEST(GgufNames, OthersAreNone) {
  for (const char* name : {"blk.0.some_unknown.weight", "rope_freqs.weight", "blk.x.attn_q.weight",
                           "blk.#.attn_q.weight", "blk.00.attn_q.weight", "attn_q.weight", "v.blk.attn_q.weight", ""}) {
    EXPECT_EQ(from_gguf_name(name), std::nullopt) << name;
  }
  for (const char* name : {"layers.0.some_unknown.weight", "layers.x.layer_scalar", "layers.#.layer_scalar", ""}) {
    EXPECT_EQ(to_gguf_name(name), std::nullopt) << name;
  }
}

}  // namespace
}  // namespace gemma4
