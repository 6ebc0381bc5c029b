#include "checkpoint/packed_weights.h"

#include <set>

#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/gptq.h"
#include "checkpoint/names.h"
#include "checkpoint/recognise.h"

namespace gemma4 {
namespace {

using nlohmann::json;

// config_groups: each names the weights' arithmetic; only whole numbers of 4 or 8 bits without quantised inputs are
// read.
void check_compressed_tensors(const json& config, const std::string& what) {
  const json format = config.value("format", json());
  if (format != "pack-quantized") {
    throw Error(what + ": compressed-tensors format " + printable(format.dump()) + "; pack-quantized is read. " +
                "llama.cpp's convert_hf_to_gguf.py makes a GGUF file of it, which is read");
  }
  const json groups = config.value("config_groups", json());
  if (!groups.is_object() || groups.empty()) throw Error(what + ": quantization_config has no config_groups");
  for (const auto& [name, group] : groups.items()) {
    const json weights = group.is_object() ? group.value("weights", json()) : json();
    const json bits = weights.is_object() ? weights.value("num_bits", json()) : json();
    if ((bits != 4 && bits != 8) || weights.value("type", json()) != "int") {
      throw Error(what + ": " + printable(name) + " of config_groups is not of 4- or 8-bit integers, which are read");
    }
    const json own = group.value("format", json());
    if (!own.is_null() && own != "pack-quantized") {
      throw Error(what + ": " + printable(name) + " of config_groups has the format " + printable(own.dump()) +
                  "; pack-quantized is read");
    }
    if (!group.value("input_activations", json()).is_null() || !group.value("output_activations", json()).is_null()) {
      throw Error(what + ": " + printable(name) + " of config_groups quantises activations; that is not read");
    }
  }
  if (!config.value("kv_cache_scheme", json()).is_null()) {
    throw Error(what + ": a quantised cache (kv_cache_scheme) is not read");
  }
  // Rotated weights (SpinQuant, QuIP) and sparse ones stand for other values than their codes say.
  const json transforms = config.value("transform_config", json()), sparsity = config.value("sparsity_config", json());
  if (!transforms.is_null() && !transforms.empty()) throw Error(what + ": a transform_config is not read");
  if (sparsity.is_object() && sparsity.value("format", json("dense")) != "dense") {
    throw Error(what + ": a sparsity_config is not read");
  }
}

}  // namespace

PackedWeights::PackedWeights(const std::string& config, const std::function<std::string()>& beside, std::string what)
    : what_(std::move(what)) {
  if (config.empty()) return;
  const json values = parse_strict_json(config, what_ + ": config.json");
  if (!values.is_object()) return;
  // MLX writes its settings under both keys; the other one then has no quant_method.
  const json mlx = values.value("quantization", json());
  json other = values.value("quantization_config", json());
  const json text = values.value("text_config", json());
  if (!other.is_object() && text.is_object()) other = text.value("quantization_config", json());
  if (mlx.is_object()) {
    scheme_ = Scheme::kMlx;
    check_mlx(mlx, what_);
  } else if (other.is_object()) {
    read_quantization_config(other);
  } else if (const std::string own = beside(); !own.empty()) {
    beside_ = true;
    read_quantization_config(parse_strict_json(own, what_ + ": its quantisation"));
  }
}

void PackedWeights::read_quantization_config(const json& config) {
  const json method = config.value("quant_method", json());
  if (method == "torchao") return;  // its file says what its tensors are (checkpoint/torchao.h)
  const std::string name = method.is_string() ? method.get<std::string>() : "";
  if (is_gptq_method(name)) {
    scheme_ = Scheme::kGptq;
    gptq_ = std::make_shared<const GptqSettings>(gptq_settings(config, what_));
  } else if (name == "compressed-tensors") {
    scheme_ = Scheme::kCompressedTensors;
    check_compressed_tensors(config, what_);
  } else {
    throw Error(what_ + " is quantised by " + printable(method.dump()) + ", which is not read: " + way_around(name));
  }
}

const char* PackedWeights::kind() const {
  if (gptq_) return beside_ && tensors_.empty() ? "" : gptq_->kind;
  return scheme_ == Scheme::kMlx ? "mlx" : scheme_ == Scheme::kCompressedTensors ? "compressed-tensors" : "";
}

bool PackedWeights::take(const SafetensorsEntry& entry, const Safetensors& file) {
  const std::string& name = entry.name;
  const auto ends = [&](std::initializer_list<const char*> tails) {
    for (const char* tail : tails) {
      if (name.ends_with(tail)) return true;
    }
    return false;
  };
  bool packed = false;
  if (scheme_ == Scheme::kCompressedTensors) {
    packed = ends({".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx"});
  } else if (scheme_ == Scheme::kMlx) {
    packed = entry.dtype == DType::kU32 || ends({".scales", ".biases"});
  } else if (scheme_ == Scheme::kGptq) {
    packed = ends({".qweight", ".qzeros", ".scales", ".g_idx"}) ||
             (name.ends_with(".bias") && !is_model_tensor(from_huggingface_name(name)));
  }
  if (!packed) return false;
  const auto bytes = file.data.subspan(entry.begin, entry.end - entry.begin);
  if (!tensors_.emplace(name, PackedTensor{entry, bytes}).second) {
    throw Error(what_ + ": tensor " + printable(name) + " appears twice");
  }
  return true;
}

void PackedWeights::add_to(Checkpoint& checkpoint) {
  if (scheme_ == Scheme::kCompressedTensors) add_compressed_tensors(checkpoint, tensors_, what_);
  if (scheme_ == Scheme::kMlx) add_mlx(checkpoint, tensors_, what_);
  if (scheme_ == Scheme::kGptq) add_gptq(checkpoint, tensors_, *gptq_, what_);
}

const PackedTensor& packed_tensor(const PackedTensors& tensors, const std::string& name, DType type,
                                  const std::vector<int64_t>& shape, const std::string& what) {
  const auto it = tensors.find(name);
  const std::string whose = what + ": tensor " + printable(name);
  if (it == tensors.end()) throw Error(whose + " is missing");
  const SafetensorsEntry& entry = it->second.entry;
  if (entry.dtype != type)
    throw Error(whose + " has the type " + dtype_name(entry.dtype) + ", not " + dtype_name(type));
  const bool fits = shape.empty() ? entry.shape.size() == 2 && entry.end > entry.begin : entry.shape == shape;
  if (!fits) throw Error(whose + " does not have the shape that its weight needs");
  return it->second;
}

void add_packed_weight(Checkpoint& checkpoint, const std::string& file_name, Weight weight, const std::string& what) {
  const std::string name = from_huggingface_name(file_name);
  const std::string whose = what + ": tensor " + printable(file_name);
  if (!is_model_tensor(name)) throw Error(whose + " is not one that Gemma 4 has (text or vision)");
  if (!checkpoint.weights.emplace(name, std::move(weight)).second) throw Error(whose + " appears twice");
  checkpoint.order.push_back(name);
}

}  // namespace gemma4
