// Samples one token from one row of logits, on the host. This is the definition of the op `sample`: ref and cpu call
// it, and the other backends draw the same token from the same logits.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace gemma4 {

// A number in [0, 1) that depends on (seed, step) alone: the top 24 bits of SplitMix64's output function
// (Steele, Lea & Flood 2014) applied to both, so that a draw does not depend on what else is in the batch.
float uniform_draw(uint64_t seed, uint64_t step);

// Whether sample_row() changes the logits, or only reads them.
bool edits(const SamplingInput& sampling);

// `logits` [vocab] is changed by bias, penalties and mask. Throws nothing; some token must be allowed.
int32_t sample_row(float* logits, int64_t vocab, const SamplingInput& sampling, std::vector<int32_t>& scratch);

}  // namespace gemma4
