#include "cli/recipe_flags.h"

#include "base/check.h"
#include "model/tensor_table.h"

namespace gemma4 {
namespace {

RecipeModel recipe_model(const Config& config) {
  RecipeModel model{config.layers, {}};
  for (int i = 0; i < config.layers; ++i) {
    if (config.kinds[static_cast<size_t>(i)] == kFull) model.full.insert(i);
  }
  return model;
}

std::string recipe_help() {
  std::string text = "one of";
  for (const std::string& name : builtin_recipe_names()) text += " " + name;
  return text + ", or a JSON file of rules";
}

}  // namespace

RecipeOptions add_recipe_flags(CommandLine& line, RecipeFlags& flags) {
  CommandLine::Option recipe = line.option("--quant-recipe,--recipe", flags.recipe, recipe_help());
  recipe.file().suggest(builtin_recipe_names());
  CommandLine::Option hqq =
      line.option("--hqq", flags.hqq, "arithmetic of HQQ: f32, or f16 as the original has it on a GPU");
  hqq.one_of({"f32", "f16"}).show_default();
  return {recipe, hqq};
}

HqqArithmetic hqq_of(const RecipeFlags& flags) {
  return flags.hqq == "f16" ? HqqArithmetic::kF16 : HqqArithmetic::kF32;
}

QuantizeSource open_to_quantize(const std::filesystem::path& directory, const RecipeFlags& flags) {
  if (!std::filesystem::is_directory(directory)) throw Error("there is no model directory " + directory.string());
  const auto source = std::make_shared<const Checkpoint>(open_source(directory));
  const Config config = parse_config(source->config);
  require_weights(*source, config);
  return {source, load_recipe(flags.recipe, recipe_model(config))};
}

}  // namespace gemma4
