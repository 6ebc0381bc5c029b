// How ranks in several processes exchange tensors of the host's memory: through rank 0, over a Link. Equal to the bit
// to what Group does within one process: sums are taken in the order of the ranks, in float64, and rounded once.
#pragma once

#include <cstdint>
#include <span>

#include "distributed/control_channel.h"
#include "base/tensor.h"

namespace gemma4 {

// As the verbs of the same names in backend.h.
void all_reduce(Link& link, Tensor x);  // F32
void broadcast(Link& link, Tensor x);
void gather_columns(Link& link, Tensor x, std::span<const int64_t> begins);

}  // namespace gemma4
