#include <algorithm>
#include <cctype>

#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/gptq.h"

namespace gemma4 {
namespace {

using nlohmann::json;

json value_of(const json& config, const char* key) { return config.is_object() ? config.value(key, json()) : json(); }

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string text_of(const json& value) { return value.is_string() ? lower(value.get<std::string>()) : ""; }

// Programs call the layout "checkpoint_format" (GPTQModel, transformers), "format" (GPTQModel) or "version" (AutoAWQ).
std::string layout_of(const json& config, std::initializer_list<const char*> keys, const std::string& usual,
                      const std::string& what) {
  for (const char* key : keys) {
    const json value = value_of(config, key);
    if (value.is_null()) continue;
    if (!value.is_string()) throw Error(what + ": " + key + " of its quantization_config is not a text");
    return lower(value.get<std::string>());
  }
  return usual;
}

bool flag_of(const json& config, const char* key, const std::string& what) {
  const json value = value_of(config, key);
  if (value.is_null()) return false;
  if (!value.is_boolean()) throw Error(what + ": " + key + " of its quantization_config is neither true nor false");
  return value.get<bool>();
}

int bits_of(const json& value, const std::string& whose) {
  if (value == 4 || value == 8) return value.get<int>();
  throw Error(whose + " is quantised to " + printable(value.dump()) + " bits; 4 and 8 are read");
}

int64_t group_of(const json& config, const std::string& what) {
  for (const char* key : {"group_size", "q_group_size"}) {
    const json value = value_of(config, key);
    if (value.is_null()) continue;
    const bool whole = value.is_number_integer() || value.is_number_unsigned();
    const int64_t group = whole && value <= INT32_MAX ? value.get<int64_t>() : 0;
    if (group > 0 || group == -1) return group;
    throw Error(what + ": groups of " + printable(value.dump()) + " columns (group_size) are not read");
  }
  return 128;  // the default of all three programs
}

// Additions that make values other than the codes say, or quantise more than weights.
void refuse_additions(const json& config, const std::string& what) {
  for (const char* key : {"rotation", "rotation_config", "adapter", "activation", "super_bits", "super_group_size"}) {
    const json value = value_of(config, key);
    if (value.is_null() || value == false || (value.is_structured() && value.empty())) continue;
    throw Error(what + ": '" + key + "' of its quantization_config (" + printable(value.dump()) + ") is not read");
  }
  const json act_bits = value_of(config, "act_bits");
  if (!act_bits.is_null() && !(act_bits.is_number() && act_bits >= 16)) {
    throw Error(what + ": quantised activations (act_bits " + printable(act_bits.dump()) + ") are not read");
  }
  const json type = value_of(config, "data_type");
  if (!type.is_null() && type != "int" && type != "int_sym" && type != "int_asym") {
    throw Error(what + ": the data_type " + printable(type.dump()) + " is not read, only integers are");
  }
  const json word = value_of(config, "pack_dtype");
  if (!word.is_null() && word != "int32") {
    throw Error(what + ": codes packed into " + printable(word.dump()) + " (pack_dtype) are not read, only int32 is");
  }
}

// Settings that modules have of their own: GPTQModel's "dynamic" and AutoRound's "extra_config". Which module is meant
// follows from the tensors, so patterns need not be matched; a width that is not read is refused here, by name.
void read_own_settings(const json& config, GptqSettings& settings, const std::string& what) {
  for (const char* key : {"dynamic", "extra_config"}) {
    const json own = value_of(config, key);
    if (own.is_null()) continue;
    if (!own.is_object()) throw Error(what + ": " + key + " of its quantization_config is not an object");
    for (const auto& [name, values] : own.items()) {
      if (name.starts_with("-:") || !values.is_object()) continue;
      const std::string whose = what + ": " + printable(name) + " of " + key;
      const json bits = value_of(values, "bits");
      if (bits.is_number() && bits >= 16) continue;  // it stays as it is
      refuse_additions(values, whose);
      if (!bits.is_null()) settings.bits.insert(bits_of(bits, whose));
      settings.own_settings = true;
    }
  }
}

void read_gptq(const json& config, GptqSettings& settings, const std::string& what) {
  const std::string layout = layout_of(config, {"checkpoint_format", "format"}, "gptq", what);
  if ((layout != "gptq" && layout != "gptq_v2") || value_of(config, "is_marlin_format") == true) {
    const bool marlin = value_of(config, "is_marlin_format") == true;
    throw Error(what + ": GPTQ in the layout '" + (marlin ? "marlin" : printable(layout)) +
                "'; gptq and gptq_v2 are read");
  }
  settings.zeros = layout == "gptq" ? GptqSettings::Zeros::kWordsMinusOne : GptqSettings::Zeros::kPlain;
  settings.act_order = flag_of(config, "desc_act", what);
  flag_of(config, "sym", what);  // the zero points are in the file either way
}

void read_awq(const json& config, GptqSettings& settings, const std::string& what) {
  settings.kind = "awq";
  settings.awq = true;
  std::string layout = layout_of(config, {"version", "checkpoint_format", "format"}, "gemm", what);
  if (text_of(value_of(config, "backend")) == "llm-awq") layout = "llm-awq";
  if (layout != "gemm") throw Error(what + ": AWQ in the layout '" + printable(layout) + "'; gemm is read");
}

// "packing_format"; before AutoRound 0.4 that was called "backend". Its default and its names: convert_hf_model().
void read_auto_round(const json& config, GptqSettings& settings, const std::string& what) {
  settings.kind = "auto-round";
  std::string layout = layout_of(config, {"packing_format", "backend"}, "auto_round:auto_gptq", what);
  if (layout.starts_with("autoround")) layout.replace(0, 9, "auto_round");
  if (layout == "auto") layout = "auto_round:auto_gptq";
  std::string tail = layout == "auto_round" ? "plain" : layout.starts_with("auto_round:") ? layout.substr(11) : layout;
  for (const char* kernel : {":exllamav2", ":exllama", ":tritonv2", ":triton"}) {
    if (tail.ends_with(kernel)) tail.resize(tail.size() - std::string(kernel).size());
  }
  const auto any = [&](std::initializer_list<const char*> names) {
    return std::ranges::find(names, tail) != names.end();
  };
  if (any({"auto_awq", "awq", "awq:gemm"})) {
    settings.awq = true;
  } else if (any({"auto_gptq", "gptq"})) {
    settings.zeros = GptqSettings::Zeros::kMinusOne;
  } else if (!any({"plain", "gptqmodel", "exllamav2", "tritonv2"})) {
    throw Error(what + ": AutoRound in the layout '" + printable(layout) +
                "'; auto_round, auto_round:auto_gptq and auto_round:auto_awq are read");
  }
}

}  // namespace

bool is_gptq_method(const std::string& method) {
  return method == "gptq" || method == "awq" || method == "auto-round" || method == "auto_round" ||
         method == "intel/auto-round";
}

GptqSettings gptq_settings(const json& config, const std::string& what) {
  GptqSettings settings;
  const std::string method = text_of(value_of(config, "quant_method"));
  if (method == "awq") {
    read_awq(config, settings, what);
  } else if (method == "gptq") {
    read_gptq(config, settings, what);
  } else {
    read_auto_round(config, settings, what);
  }
  refuse_additions(config, what);
  json bits = value_of(config, "bits");
  if (bits.is_null()) bits = config.contains("w_bit") ? config["w_bit"] : json(4);
  settings.bits.insert(bits_of(bits, what));
  settings.group = group_of(config, what);
  read_own_settings(config, settings, what);
  if (settings.awq && settings.bits.contains(8)) throw Error(what + ": AWQ of 8 bits is not read, only of 4");
  return settings;
}

}  // namespace gemma4
