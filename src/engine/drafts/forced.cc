#include "engine/drafts/forced.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace gemma4 {
namespace {

// Empty: none, or more than kForcedChoicesMax.
std::vector<int32_t> few_allowed(std::span<const uint32_t> mask) {
  std::vector<int32_t> ids;
  for (size_t word = 0; word < mask.size(); ++word) {
    for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      if (ids.size() == kForcedChoicesMax) return {};
      ids.push_back(static_cast<int32_t>(word * 32) + std::countr_zero(bits));
    }
  }
  return ids;
}

}  // namespace

int32_t forced_token(const Tokenizer& tokenizer, std::span<const uint32_t> mask) {
  const std::vector<int32_t> ids = few_allowed(mask);
  if (ids.empty()) return -1;
  if (ids.size() == 1) return ids[0];
  // A byte has a token of its own beside the one of the character: the model writes the character.
  const auto before = [&](int32_t a, int32_t b) {
    const size_t length_a = tokenizer.piece(a).size(), length_b = tokenizer.piece(b).size();
    return length_a != length_b ? length_a < length_b : tokenizer.is_byte(a) && !tokenizer.is_byte(b);
  };
  const int32_t longest = *std::ranges::max_element(ids, before);
  const std::string_view text = tokenizer.piece(longest);
  const bool one_text = std::ranges::all_of(
      ids, [&](int32_t id) { return !tokenizer.is_control(id) && text.starts_with(tokenizer.piece(id)); });
  return one_text ? longest : -1;
}

}  // namespace gemma4
