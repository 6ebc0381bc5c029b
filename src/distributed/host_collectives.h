// How ranks in several processes exchange tensors of the host's memory: through rank 0, over a ControlChannel. Equal to
// the bit to what ProcessGroup does within one process: sums are taken in the order of the ranks, in float64, and
// rounded once.
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
