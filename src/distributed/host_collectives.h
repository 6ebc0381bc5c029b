// Collectives for tensors in host memory between processes: they go through rank 0, over a ControlChannel. The results
// are equal to the bit to those of ProcessGroup within one process: float64 sums in the order of the ranks, rounded
// once.
#pragma once

#include <cstdint>
#include <span>

#include "base/tensor.h"
#include "distributed/control_channel.h"

namespace gemma4 {

// As the ops of the same names in backend.h.
void all_reduce(ControlChannel& channel, Tensor x);  // F32
void broadcast(ControlChannel& channel, Tensor x);
void gather_columns(ControlChannel& channel, Tensor x, std::span<const int64_t> begins);

}  // namespace gemma4
