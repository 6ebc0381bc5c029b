// GPTQ, AWQ and AutoRound: what config.json (or quantize_config.json) says of packed int32 codes with 16-bit scales and
// packed zero points, and how they become matrices. Called by PackedWeights alone. What each becomes, and at what cost:
// docs/FORMATS.md.
//
// Sources: GPTQModel 7.7 (gptqmodel/nn_modules/qlinear/__init__.py, gptqmodel/utils/model.py,
// gptqmodel/quantization/config.py), AutoAWQ 0.2.9 (awq/utils/packing_utils.py, awq/modules/linear/gemm.py), AutoRound
// 0.16 (auto_round_extension/torch/qlinear_torch.py, qlinear_torch_zp.py, auto_round/inference/convert_model.py).
#pragma once

#include <set>
#include <string>

#include "base/json.h"
#include "checkpoint/packed_weights.h"

namespace gemma4 {

struct GptqSettings {
  // What qzeros hold: the zero points; words from which one was subtracted for each code, so that a borrow runs into
  // the next code (GPTQModel's version 1); or zero points minus one, code by code (AutoRound).
  enum class Zeros { kPlain, kWordsMinusOne, kMinusOne };

  const char* kind = "gptq";  // Checkpoint::kind: "gptq", "awq", "auto-round"
  bool awq = false;           // AWQ's order of codes, else GPTQ's
  bool act_order = false;     // desc_act: g_idx decides, and must be there
  bool own_settings = false;  // some modules have settings of their own
  Zeros zeros = Zeros::kPlain;
  int64_t group = -1;  // columns that share a scale, -1: the whole row
  std::set<int> bits;  // that modules may have
};

// Does `method`, a quant_method, name one of these? Then gptq_settings() says more.
bool is_gptq_method(const std::string& method);

// Throws Error: a layout, a width or an addition that is not read.
GptqSettings gptq_settings(const nlohmann::json& config, const std::string& what);

// Adds every weight that `tensors` hold. Throws Error.
void add_gptq(Checkpoint& checkpoint, const PackedTensors& tensors, const GptqSettings& settings,
              const std::string& what);

}  // namespace gemma4
