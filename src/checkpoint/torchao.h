// torchao's layer on top of safetensors: one logical weight is several physical tensors and a line of metadata. Layout:
// docs/FORMATS.md, and torchao 0.17's prototype/safetensors (flatten_tensor_state_dict).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {

constexpr const char* kTensorNames = "tensor_names";  // metadata key: JSON list of all logical names

bool is_torchao(const Safetensors& file);

// Adds every logical weight of `files` to `checkpoint` (weights, order): one file, or all shards of a directory, each
// of which has the metadata of all. Throws Error: a physical tensor that is missing or not used, an unknown tensor type
// or name, shapes that disagree, a zero point on int8, shards of different models.
void add_torchao(Checkpoint& checkpoint, std::span<const Safetensors> files, const std::string& what);

// The physical tensor that holds a field of a weight: ("layers.0.mlp.up_proj.weight", "qdata") ->
// "layers.0.mlp.up_proj._weight_qdata".
std::string torchao_tensor(const std::string& name, const std::string& field);

// Lines of metadata, written as Python's json.dumps writes them.
std::string torchao_plain_metadata();
std::string torchao_int4_metadata(int64_t rows, int64_t cols, int64_t group);
std::string torchao_int8_metadata(int64_t group);
std::string torchao_names_metadata(const std::vector<std::string>& names);

// The position table's two physical names.
inline constexpr const char* kPositionTable = "vision_tower.patch_embedder.position_embedding_table";
inline constexpr const char* kPositionCodes = "vision_tower.patch_embedder._pet_int8";
inline constexpr const char* kPositionScale = "vision_tower.patch_embedder._pet_scale";

}  // namespace gemma4
