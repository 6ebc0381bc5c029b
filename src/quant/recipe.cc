#include "quant/recipe.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"
#include "base/file.h"
#include "base/json_text.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr size_t kPatternMax = 1000;  // bytes; the compiler of regular expressions recurses with the brackets

// The index in the first "layers.N." of `name`, or -1.
int layer_in(const std::string& name) {
  constexpr std::string_view kLayers = "layers.";
  for (size_t at = name.find(kLayers); at != std::string::npos; at = name.find(kLayers, at + 1)) {
    const char* begin = name.data() + at + kLayers.size();
    const char* end = name.data() + name.size();
    int layer = -1;
    const auto [last, error] = std::from_chars(begin, end, layer);
    if (error == std::errc() && *begin != '-' && last != end && *last == '.') return layer;
  }
  return -1;
}

constexpr QuantConfig kRowInt8{8, 0, true, Method::kMinMax};

// Rules that every built-in recipe begins with: the embedding is looked up, not multiplied, and nearly lossless with
// one scale a row; the vision side is small; norms are vectors.
std::vector<Rule> head() {
  return {{R"(embed_tokens\.weight)", kRowInt8, {}},
          {R"(vision_tower\..*)", {}, {}},
          {R"(embed_vision\..*)", {}, {}},
          {R"(.*norm\.weight)", {}, {}}};
}

Recipe sensitive(const RecipeModel& model, int64_t int4_group, int64_t int8_group, bool protect_full_k) {
  const QuantConfig int8{8, int8_group, true, Method::kMinMax};
  const std::set<int> edge = edge_layers(model.layers);
  std::vector<Rule> rules = head();
  rules.push_back({R"(.*\.(v_proj|down_proj)\.weight)", int8, edge});
  if (protect_full_k) {
    std::set<int> layers;
    std::set_intersection(edge.begin(), edge.end(), model.full.begin(), model.full.end(),
                          std::inserter(layers, layers.end()));
    rules.push_back({R"(.*\.k_proj\.weight)", int8, layers});
  }
  rules.push_back({R"(.*\.weight)", QuantConfig{4, int4_group, false, Method::kHqq}, {}});
  return Recipe(std::move(rules));
}

Recipe builtin(const std::string& name, const RecipeModel& model) {
  if (name == "sensitive") return sensitive(model, 32, 32, false);
  if (name == "sensitive_gs64") return sensitive(model, 64, 32, false);
  if (name == "sensitive_allgs64") return sensitive(model, 64, 64, false);
  if (name == "balanced") return sensitive(model, 32, 32, true);
  CHECK(name == "default");
  std::vector<Rule> rules = head();
  rules.push_back({R"(.*\.weight)", QuantConfig{4, 32, false, Method::kMinMax}, {}});
  return Recipe(std::move(rules));
}

void only_keys(const json& value, std::initializer_list<const char*> keys, const std::string& what) {
  for (const auto& [key, unused] : value.items()) {
    const std::string& name = key;
    if (std::none_of(keys.begin(), keys.end(), [&](const char* known) { return name == known; })) {
      throw Error(what + ": there is no setting \"" + printable(name) + "\" in a rule");
    }
  }
}

int64_t integer(const json& value, int64_t low, int64_t high, const std::string& what) {
  if (!value.is_number_integer() || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    throw Error(what + " is not a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return value.get<int64_t>();
}

std::set<int> parse_layers(const json& value, const RecipeModel& model, const std::string& what) {
  if (value == "edge") return edge_layers(model.layers);
  if (value == "full") return model.full;
  if (!value.is_array()) throw Error(what + ": layers is neither a list of indices nor \"edge\" nor \"full\"");
  std::set<int> layers;
  for (const json& layer : value) layers.insert(static_cast<int>(integer(layer, 0, 100'000, what + ": a layer")));
  return layers;
}

std::optional<QuantConfig> parse_config(const json& rule, const std::string& what) {
  if (!rule.contains("bits") || rule["bits"].is_null()) {
    if (rule.contains("group") || rule.contains("symmetric") || rule.contains("method")) {
      throw Error(what + ": says how to quantise but not to how many bits");
    }
    return std::nullopt;
  }
  QuantConfig config;
  config.bits = static_cast<int>(integer(rule["bits"], 0, 64, what + ": bits"));
  const json& group = rule.value("group", json(32));
  config.group = group == "row" ? 0 : integer(group, 1, INT32_MAX, what + ": group (or \"row\")");
  const json symmetric = rule.value("symmetric", json(config.bits == 8));
  if (!symmetric.is_boolean()) throw Error(what + ": symmetric is neither true nor false");
  config.symmetric = symmetric.get<bool>();
  const json method = rule.value("method", json("min_max"));
  if (method != "min_max" && method != "hqq") {
    throw Error(what + ": Unknown quantization method: " + printable(method.dump()) +
                "; min_max and hqq are supported");
  }
  config.method = method == "hqq" ? Method::kHqq : Method::kMinMax;
  if (config.bits != 4 && config.bits != 8) {
    throw Error(what + ": Unsupported bits=" + std::to_string(config.bits) + "; 4 and 8 are supported");
  }
  if (config.bits == 8 && !config.symmetric) {
    throw Error(what + ": 8-bit weights must be symmetric: no kernel here reads an 8-bit zero point");
  }
  return config;
}

Rule parse_rule(const json& value, const RecipeModel& model, const std::string& what) {
  if (!value.is_object()) throw Error(what + " is not an object");
  only_keys(value, {"pattern", "bits", "group", "symmetric", "method", "layers"}, what);
  if (!value.contains("pattern") || !value["pattern"].is_string()) throw Error(what + " has no pattern");
  Rule rule{value["pattern"].get<std::string>(), parse_config(value, what), {}};
  if (value.contains("layers") && !value["layers"].is_null()) {
    rule.layers = parse_layers(value["layers"], model, what);
  }
  return rule;
}

}  // namespace

Recipe::Recipe(std::vector<Rule> rules) : rules_(std::move(rules)) {
  for (const Rule& rule : rules_) {
    const std::string whose = "the recipe's pattern \"" + printable(rule.pattern) + "\"";
    if (rule.pattern.size() > kPatternMax) throw Error(whose + " is longer than " + std::to_string(kPatternMax));
    patterns_.emplace_back(rule.pattern, whose);
  }
}

std::optional<QuantConfig> Recipe::find(const std::string& name) const {
  const int layer = layer_in(name);
  for (size_t i = 0; i < rules_.size(); ++i) {
    if (rules_[i].layers && !rules_[i].layers->contains(layer)) continue;
    if (patterns_[i].matches(name)) return rules_[i].config;
  }
  return std::nullopt;
}

std::set<int> edge_layers(int layers) {
  std::set<int> edge;
  for (int i = 0; i < layers / 4; ++i) edge.insert({i, layers - 1 - i});
  return edge;
}

const std::vector<std::string>& builtin_recipe_names() {
  static const std::vector<std::string> names = {"default", "sensitive", "sensitive_gs64", "sensitive_allgs64",
                                                 "balanced"};
  return names;
}

Recipe load_recipe(const std::string& name_or_file, const RecipeModel& model) {
  const auto& names = builtin_recipe_names();
  if (std::find(names.begin(), names.end(), name_or_file) != names.end()) return builtin(name_or_file, model);
  std::error_code ignored;
  if (!std::filesystem::exists(name_or_file, ignored)) {
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    throw Error("there is no recipe '" + name_or_file + "': neither a file nor one of " + known);
  }
  return parse_recipe(read_file(name_or_file), model, name_or_file);
}

Recipe parse_recipe(std::string_view text, const RecipeModel& model, const std::string& what) {
  const json value = parse_strict_json(text, what);
  const json rules = value.is_object() && value.size() == 1 && value.contains("rules") ? value["rules"] : value;
  if (!rules.is_array()) throw Error(what + " is neither a list of rules nor {\"rules\": [...]}");
  std::vector<Rule> parsed;
  for (size_t i = 0; i < rules.size(); ++i) {
    parsed.push_back(parse_rule(rules[i], model, what + ": rule " + std::to_string(i + 1)));
  }
  return Recipe(std::move(parsed));
}

}  // namespace gemma4
