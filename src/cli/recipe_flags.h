// The flags of quantising, which `quantize` and `export` have: which recipe, and the arithmetic of HQQ.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "checkpoint/quantize_checkpoint.h"
#include "cli/command_line.h"

namespace gemma4 {

struct RecipeFlags {
  std::string recipe;  // built-in name or file
  std::string hqq = "f32";
};

// --quant-recipe and --hqq.
struct RecipeOptions {
  CommandLine::Option recipe, hqq;
};
RecipeOptions add_recipe_flags(CommandLine& line, RecipeFlags& flags);

HqqArithmetic hqq_of(const RecipeFlags& flags);

// What quantising begins with: a directory of all the weights that its config.json asks for, and the recipe for them.
struct QuantizeSource {
  std::shared_ptr<const Checkpoint> checkpoint;
  Recipe recipe;
};
// Throws Error: there is no such directory, it lacks a weight, there is no such recipe.
QuantizeSource open_to_quantize(const std::filesystem::path& directory, const RecipeFlags& flags);

}  // namespace gemma4
