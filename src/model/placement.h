// Placement: which layers are on which device, where a model is larger than one. A device (a backend) has a contiguous
// range of layers, its stage. The residual stream goes from stage to stage through the host.
// The first device with layers is the home of what is not a layer: the embedding, the last norm, the head and sampling.
// So the rows whose logits are wanted come back to it at the end, and that is a stage without layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace gemma4 {

constexpr int kAsManyAsFit = -1;  // a number of layers that free memory decides

struct Stage {
  size_t device = 0;
  int begin = 0, end = 0;  // layers begin .. end - 1
  bool first = true;       // embeds the tokens
  bool last = true;        // computes the logits and samples
};

// The stages of devices that have so many layers each, in order.
std::vector<Stage> stages_of(std::span<const int> layers);

// How many layers each device gets, so that its share of the model's bytes is its share of the free memory as nearly as
// whole layers allow. `home`: bytes that the first device has besides its layers, of which it gets at least one.
std::vector<int> share_layers(std::span<const int64_t> layer_bytes, int64_t home, std::span<const int64_t> free);

}  // namespace gemma4
