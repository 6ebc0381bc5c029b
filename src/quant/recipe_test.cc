#include "quant/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/check.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;

const QuantConfig kFour{4, 32, false, Method::kMinMax};
const QuantConfig kEight{8, 32, true, Method::kMinMax};

RecipeModel model31() {
  RecipeModel model{60, {}};
  for (int i = 5; i < 60; i += 6) model.full.insert(i);
  return model;
}

int bits(const Recipe& recipe, const std::string& name) {
  const auto config = recipe.find(name);
  return config ? config->bits : 0;
}

// The cases of ExecuTorch's quant/tests/test_recipe.py.
TEST(Recipe, FirstMatchWins) {
  const Recipe recipe({{R"(.*v_proj\.weight)", kEight, {}}, {R"(.*\.weight)", kFour, {}}});
  EXPECT_EQ(bits(recipe, "layers.0.self_attn.v_proj.weight"), 8);
  EXPECT_EQ(bits(recipe, "layers.0.self_attn.q_proj.weight"), 4);
}

TEST(Recipe, NoneUnmatchedAndEmpty) {
  const Recipe recipe({{R"(.*norm\.weight)", {}, {}}, {R"(.*\.weight)", kFour, {}}});
  EXPECT_EQ(recipe.find("layers.0.input_layernorm.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("layers.0.layer_scalar"), std::nullopt);
  EXPECT_EQ(Recipe({}).find("anything.weight"), std::nullopt);
}

TEST(Recipe, MatchesTheWholeName) {
  const Recipe recipe({{R"(embed_tokens\.weight)", kFour, {}}});
  EXPECT_EQ(recipe.find("model.embed_tokens.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("embed_tokens.weight.x"), std::nullopt);
  EXPECT_EQ(bits(recipe, "embed_tokens.weight"), 4);
}

TEST(Recipe, LayerFilter) {
  const std::set<int> edge = {0, 1, 2, 3, 4, 55, 56, 57, 58, 59};
  const Recipe recipe({{R"(.*\.v_proj\.weight)", kEight, edge}, {R"(.*\.weight)", kFour, {}}});
  EXPECT_EQ(bits(recipe, "layers.0.self_attn.v_proj.weight"), 8);
  EXPECT_EQ(bits(recipe, "layers.58.self_attn.v_proj.weight"), 8);
  EXPECT_EQ(bits(recipe, "layers.30.self_attn.v_proj.weight"), 4);
  EXPECT_EQ(bits(recipe, "layers.0.self_attn.q_proj.weight"), 4);
  EXPECT_EQ(bits(recipe, "lm_head.weight"), 4);
  // The first "layers.N." decides, wherever it stands: the vision tower's layers count too.
  EXPECT_EQ(bits(recipe, "vision_tower.encoder.layers.1.self_attn.v_proj.weight"), 8);
}

TEST(Recipe, LayerFilterWithoutConfigKeeps) {
  const Recipe recipe({{R"(.*\.weight)", {}, std::set<int>{0}}, {R"(.*\.weight)", kFour, {}}});
  EXPECT_EQ(recipe.find("layers.0.mlp.up_proj.weight"), std::nullopt);
  EXPECT_EQ(bits(recipe, "layers.1.mlp.up_proj.weight"), 4);
}

TEST(Recipe, Default) {
  const Recipe recipe = load_recipe("default", model31());
  EXPECT_EQ(recipe.find("layers.3.self_attn.q_norm.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("norm.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("vision_tower.encoder.layers.0.mlp.up_proj.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("embed_vision.embedding_projection.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("embed_tokens.weight"), (QuantConfig{8, 0, true, Method::kMinMax}));
  for (const char* name : {"layers.0.self_attn.q_proj.weight", "layers.0.self_attn.v_proj.weight",
                           "layers.59.mlp.gate_proj.weight", "layers.0.mlp.down_proj.weight", "lm_head.weight"}) {
    EXPECT_EQ(recipe.find(name), kFour) << name;
  }
}

TEST(Recipe, Sensitive) {
  const Recipe recipe = load_recipe("sensitive", model31());
  const QuantConfig hqq{4, 32, false, Method::kHqq};
  for (const char* layer : {"0", "14", "45", "58", "59"}) {
    EXPECT_EQ(recipe.find(std::string("layers.") + layer + ".self_attn.v_proj.weight"), kEight) << layer;
    EXPECT_EQ(recipe.find(std::string("layers.") + layer + ".mlp.down_proj.weight"), kEight) << layer;
    EXPECT_EQ(recipe.find(std::string("layers.") + layer + ".self_attn.q_proj.weight"), hqq) << layer;
  }
  for (const char* layer : {"15", "30", "44"}) {
    EXPECT_EQ(recipe.find(std::string("layers.") + layer + ".self_attn.v_proj.weight"), hqq) << layer;
    EXPECT_EQ(recipe.find(std::string("layers.") + layer + ".mlp.down_proj.weight"), hqq) << layer;
  }
  EXPECT_EQ(recipe.find("lm_head.weight"), hqq);
  EXPECT_EQ(load_recipe("sensitive_gs64", model31()).find("lm_head.weight")->group, 64);
  EXPECT_EQ(load_recipe("sensitive_gs64", model31()).find("layers.0.mlp.down_proj.weight")->group, 32);
  EXPECT_EQ(load_recipe("sensitive_allgs64", model31()).find("layers.0.mlp.down_proj.weight")->group, 64);
}

TEST(Recipe, BalancedProtectsKWhereItIsAlsoV) {
  const Recipe recipe = load_recipe("balanced", model31());
  EXPECT_EQ(bits(recipe, "layers.5.self_attn.k_proj.weight"), 8);   // full, edge
  EXPECT_EQ(bits(recipe, "layers.59.self_attn.k_proj.weight"), 8);  // full, edge
  EXPECT_EQ(bits(recipe, "layers.4.self_attn.k_proj.weight"), 4);   // sliding, edge
  EXPECT_EQ(bits(recipe, "layers.29.self_attn.k_proj.weight"), 4);  // full, middle: as v_proj there
  EXPECT_EQ(bits(recipe, "layers.4.self_attn.v_proj.weight"), 8);
}

TEST(Recipe, EdgeLayersFollowTheModel) {
  EXPECT_EQ(edge_layers(7), (std::set<int>{0, 6}));  // quantised/tiny_*/recipe.json of the reference
  EXPECT_EQ(edge_layers(6), (std::set<int>{0, 5}));  // quantised/demo_*/recipe.json
  EXPECT_EQ(edge_layers(60).size(), 30u);
  EXPECT_TRUE(edge_layers(3).empty());
}

TEST(Recipe, FromAFile) {
  const Recipe recipe = parse_recipe(
      R"({"rules": [{"pattern": ".*norm\\.weight"},
                    {"pattern": ".*v_proj.*", "bits": 8, "group": "row", "layers": "edge"},
                    {"pattern": ".*k_proj.*", "bits": 8, "group": 64, "layers": "full"},
                    {"pattern": ".*o_proj.*", "bits": 4, "symmetric": true, "method": "hqq", "layers": [1, 2]},
                    {"pattern": ".*\\.weight", "bits": 4}]})",
      model31(), "r.json");
  EXPECT_EQ(recipe.find("layers.0.input_layernorm.weight"), std::nullopt);
  EXPECT_EQ(recipe.find("layers.0.self_attn.v_proj.weight"), (QuantConfig{8, 0, true, Method::kMinMax}));
  EXPECT_EQ(recipe.find("layers.30.self_attn.v_proj.weight"), kFour);
  EXPECT_EQ(recipe.find("layers.5.self_attn.k_proj.weight"), (QuantConfig{8, 64, true, Method::kMinMax}));
  EXPECT_EQ(recipe.find("layers.2.self_attn.o_proj.weight"), (QuantConfig{4, 32, true, Method::kHqq}));
  EXPECT_EQ(recipe.find("layers.3.self_attn.o_proj.weight"), kFour);
}

TEST(Recipe, BadFilesAreRefused) {
  const auto message = [](const std::string& text) {
    try {
      parse_recipe(text, model31(), "r.json");
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("read");
  };
  EXPECT_EQ(message("[]"), "read");
  EXPECT_THAT(message("[{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("{}"), HasSubstr("list of rules"));
  EXPECT_THAT(message("[7]"), HasSubstr("rule 1 is not an object"));
  EXPECT_THAT(message(R"([{"bits": 4}])"), HasSubstr("rule 1 has no pattern"));
  EXPECT_THAT(message(R"([{"pattern": "(", "bits": 4}])"), HasSubstr("no regular expression"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 3}])"), HasSubstr("bits=3"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 4, "method": "bogus"}])"), HasSubstr("bogus"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 8, "symmetric": false, "method": "hqq"}])"), HasSubstr("symmetric"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 4, "group": 0}])"), HasSubstr("group"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 4, "grupo": 32}])"), HasSubstr("grupo"));
  EXPECT_THAT(message(R"([{"pattern": "a", "group": 32}])"), HasSubstr("how many bits"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 4, "layers": "inner"}])"), HasSubstr("layers"));
  EXPECT_THAT(message(R"([{"pattern": "a", "bits": 4, "bits": 8}])"), HasSubstr("twice"));
  EXPECT_THAT(message(R"([{"pattern": "(a)\\1", "bits": 4}])"), HasSubstr("back-reference"));
  EXPECT_THROW(load_recipe("no_such_recipe", model31()), Error);
}

// Files made to bring the reader down rather than to say something.
TEST(Recipe, HostileFilesAreRefusedToo) {
  const auto refused = [](const std::string& text, const char* why) {
    try {
      parse_recipe(text, model31(), "r.json");
      ADD_FAILURE() << "read: " << text.substr(0, 60);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(why));
      EXPECT_LT(std::string(error.what()).size(), 400u);
    }
  };
  const auto deep = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  const auto rule = [](const std::string& pattern) { return R"([{"pattern": ")" + pattern + R"(", "bits": 4}])"; };
  refused(deep(1'000'000), "nested too deeply");
  refused(R"([{"pattern": "a", "bits": 4, "method": )" + deep(100'000) + "}]", "nested too deeply");
  refused(rule(std::string(100'000, '(') + std::string(100'000, ')')), "longer than");
  refused(rule("((((a{99}){99}){99}){99})"), "no regular expression");
  refused("[{\"" + std::string(100'000, 'k') + "\": 1}]", "there is no setting");
  refused(R"([{"pattern": "a", "bits": 4, "group": 9223372036854775808}])", "group");
  refused(R"([{"pattern": "a", "bits": 1e999}])", "not valid JSON");
  refused(R"([{"pattern": "a", "bits": 4, "layers": [-1]}])", "layer");
  refused("[{\"pattern\": \"\xff\"}]", "not valid JSON");
  // Would take longer than the sun has left, tried one way after the other.
  EXPECT_EQ(parse_recipe(rule("([^ ]+[^ ]+)+ "), model31(), "r.json").find(std::string(200, 'x')), std::nullopt);
}

}  // namespace
}  // namespace gemma4
