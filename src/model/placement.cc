#include "model/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace gemma4 {

std::vector<Stage> stages_of(std::span<const int> layers) {
  std::vector<Stage> stages;
  int begin = 0;
  for (size_t device = 0; device < layers.size(); ++device) {
    const int end = begin + layers[device];
    if (end > begin) stages.push_back({device, begin, end, stages.empty(), false});
    begin = end;
  }
  CHECK(!stages.empty());
  if (stages.size() > 1) stages.push_back({stages.front().device, begin, begin, false, false});
  stages.back().last = true;
  return stages;
}

std::vector<int> share_layers(std::span<const int64_t> layer_bytes, int64_t home, std::span<const int64_t> free) {
  CHECK(!layer_bytes.empty() && !free.empty());
  const auto sum = [](std::span<const int64_t> values) {
    return std::accumulate(values.begin(), values.end(), 0.0,
                           [](double a, int64_t b) { return a + static_cast<double>(b); });
  };
  const double bytes = sum(layer_bytes) + static_cast<double>(home), memory = std::max(1.0, sum(free));
  std::vector<int> layers(free.size(), 0);
  size_t at = 0;
  auto placed = static_cast<double>(home);  // bytes on the devices so far
  double share = 0;                         // that these are to have
  for (size_t device = 0; device < free.size(); ++device) {
    share += bytes * static_cast<double>(free[device]) / memory;
    const bool takes_rest = device + 1 == free.size();
    while (at < layer_bytes.size()) {
      const auto layer = static_cast<double>(layer_bytes[at]);
      if (!takes_rest && at > 0 && placed + layer / 2 > share) break;
      placed += layer;
      ++at;
      ++layers[device];
    }
  }
  return layers;
}

}  // namespace gemma4
