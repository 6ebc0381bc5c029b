// Packed weights: Hugging Face directories whose matrices another program quantised, so that one logical weight is
// several tensors. config.json says which program:
//   compressed-tensors  "quantization_config": pack-quantized, 4 bits (weight_packed, weight_scale, weight_zero_point)
//   MLX                 "quantization": affine, 2 to 8 bits (weight, scales, biases), mxfp4, nvfp4 and mxfp8 (weight,
//                       scales)
//   GPTQ, AWQ, AutoRound  "quantization_config", or a file beside config.json: 4 and 8 bits (qweight, qzeros, scales,
//                       g_idx; checkpoint/gptq.h)
// Which formats they become, and at what cost: docs/FORMATS.md.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {

struct PackedTensor {
  SafetensorsEntry entry;
  std::span<const std::byte> bytes;
};
using PackedTensors = std::map<std::string, PackedTensor>;  // by the name of the tensor in the file

struct GptqSettings;

class PackedWeights {
 public:
  // `config`: the text of config.json, which may be empty. `beside` reads a quantization_config that lies in a file of
  // its own (or nothing), and is called where config.json has none. Throws Error where they name a quantisation we do
  // not read.
  PackedWeights(const std::string& config, const std::function<std::string()>& beside, std::string what);

  // Does this tensor belong to a packed weight? Then it is kept for add_to().
  bool take(const SafetensorsEntry& entry, const Safetensors& file);

  // Adds the weights whose tensors have been taken. Throws Error: a part missing, left over or of the wrong shape.
  void add_to(Checkpoint& checkpoint);

  // "compressed-tensors", "mlx", "gptq", "awq", "auto-round", or "" where no quantisation is named (or, in a file
  // beside config.json, named and not used).
  const char* kind() const;

 private:
  void read_quantization_config(const nlohmann::json& config);

  enum class Scheme { kNone, kCompressedTensors, kMlx, kGptq } scheme_ = Scheme::kNone;
  std::shared_ptr<const GptqSettings> gptq_;  // of kGptq
  bool beside_ = false;                       // config.json itself names no quantisation
  std::string what_;
  PackedTensors tensors_;
};

// One function for each scheme: adds every weight that `tensors` hold.
void add_compressed_tensors(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what);
void add_mlx(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what);

// Throws Error where "quantization" of config.json names a mode that is not read.
void check_mlx(const nlohmann::json& quantization, const std::string& what);

// For these functions: the tensor `name`, its type and shape checked ({} as shape: any with two dimensions).
const PackedTensor& packed_tensor(const PackedTensors& tensors, const std::string& name, DType type,
                                  const std::vector<int64_t>& shape, const std::string& what);
void add_packed_weight(Checkpoint& checkpoint, const std::string& file_name, Weight weight, const std::string& what);

}  // namespace gemma4
