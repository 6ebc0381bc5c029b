#include "engine/drafts/forced.h"

#include <bit>

namespace gemma4 {

int32_t forced_token(std::span<const uint32_t> mask) {
  int32_t found = -1;
  for (size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == 0) continue;
    if (found >= 0 || !std::has_single_bit(mask[word])) return -1;
    found = static_cast<int32_t>(word * 32) + std::countr_zero(mask[word]);
  }
  return found;
}

}  // namespace gemma4
