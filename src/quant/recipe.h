// Recipe: which weight is quantised how. Rules are tried in order. The first whose pattern matches the whole name
// decides; a weight that no rule matches is not quantised. Built-in recipes: docs/QUANTISATION.md; file format:
// docs/FORMATS.md.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "quant/pattern.h"
#include "quant/quantize.h"

namespace gemma4 {

struct Rule {
  std::string pattern;                  // ECMAScript regular expression, matched against the whole name
  std::optional<QuantConfig> config;    // nothing: the weight stays as it is
  std::optional<std::set<int>> layers;  // only names with "layers.N." and N among these; nothing: every name
};

// The facts about a model that the built-in recipes and the words "edge" and "full" of a recipe file depend on.
struct RecipeModel {
  int layers = 0;
  std::set<int> full;  // full-attention layers, where k_proj is V as well
};

class Recipe {
 public:
  explicit Recipe(std::vector<Rule> rules);  // throws Error for a bad pattern

  // How to quantise `name`, or nothing.
  std::optional<QuantConfig> find(const std::string& name) const;

 private:
  std::vector<Rule> rules_;
  std::vector<Pattern> patterns_;
};

// The first and the last floor(layers / 4) layers.
std::set<int> edge_layers(int layers);

const std::vector<std::string>& builtin_recipe_names();

// A built-in recipe by name, or else the file of that path. Throws Error.
Recipe load_recipe(const std::string& name_or_file, const RecipeModel& model);

// `json`: [rule, ...] or {"rules": [rule, ...]}; `what` names it in errors. Throws Error.
Recipe parse_recipe(std::string_view json, const RecipeModel& model, const std::string& what);

}  // namespace gemma4
