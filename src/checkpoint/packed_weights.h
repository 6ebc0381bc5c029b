// Packed weights: Hugging Face directories whose matrices another program quantised, so that one logical weight is
// several tensors. config.json says which program:
//   compressed-tensors  "quantization_config": pack-quantized, 4 bits (weight_packed, weight_scale, weight_zero_point)
//   MLX                 "quantization": affine, 2 to 8 bits (weight, scales, biases)
// Which formats they become, and at what cost: docs/FORMATS.md.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {

struct PackedTensor {
  SafetensorsEntry entry;
  std::span<const std::byte> bytes;
};
using PackedTensors = std::map<std::string, PackedTensor>;  // by the name of the tensor in the file

class PackedWeights {
 public:
  // `config`: the text of config.json, which may be empty. Throws Error where it names a quantisation we do not read.
  PackedWeights(const std::string& config, std::string what);

  // Does this tensor belong to a packed weight? Then it is kept for add_to().
  bool take(const SafetensorsEntry& entry, const Safetensors& file);

  // Adds the weights whose tensors have been taken. Throws Error: a part missing, left over or of the wrong shape.
  void add_to(Checkpoint& checkpoint);

  const char* kind() const;  // "compressed-tensors", "mlx", or "" where config.json names no quantisation

 private:
  enum class Scheme { kNone, kCompressedTensors, kMlx } scheme_ = Scheme::kNone;
  std::string what_;
  PackedTensors tensors_;
};

// One function for each scheme: adds every weight that `tensors` hold.
void add_compressed_tensors(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what);
void add_mlx(Checkpoint& checkpoint, const PackedTensors& tensors, const std::string& what);

// For these functions: the tensor `name`, its type and shape checked ({} as shape: any with two dimensions).
const PackedTensor& packed_tensor(const PackedTensors& tensors, const std::string& name, DType type,
                                  const std::vector<int64_t>& shape, const std::string& what);
void add_packed_weight(Checkpoint& checkpoint, const std::string& file_name, Weight weight, const std::string& what);

}  // namespace gemma4
