#include "engine/drafts/ngram.h"

#include <algorithm>
#include <bit>

namespace gemma4 {

NgramIndex::NgramIndex(int tokens)
    : last_(std::bit_ceil(static_cast<size_t>(std::clamp(tokens, 16, kBucketsMax))), -1) {}

size_t NgramIndex::bucket(int32_t first, int32_t second) const {
  const uint64_t pair = uint64_t{static_cast<uint32_t>(first)} << 32 | static_cast<uint32_t>(second);
  return static_cast<size_t>(pair * 0x9e3779b97f4a7c15 >> 20) & (last_.size() - 1);
}

void NgramIndex::extend(std::span<const int32_t> ids) {
  // The pair at the very end is left out: nothing has followed it yet.
  for (size_t position = before_.size(); position < ids.size(); ++position) {
    before_.push_back(-1);
    if (position < kPair) continue;
    int32_t& last = last_[bucket(ids[position - 2], ids[position - 1])];
    before_[position] = last;
    last = static_cast<int32_t>(position);
  }
}

std::vector<int32_t> NgramIndex::draft(std::span<const int32_t> ids, int count) {
  extend(ids);
  const size_t end = ids.size();
  if (end < kPair || count <= 0) return {};
  // The place that shares most tokens with the end; of several the latest.
  size_t longest = kPair - 1, from = 0;
  int32_t place = last_[bucket(ids[end - 2], ids[end - 1])];
  for (int i = 0; i < kCandidates && place >= 0; ++i, place = before_[static_cast<size_t>(place)]) {
    const auto at = static_cast<size_t>(place);
    size_t same = 0;
    while (same < kLongest && same < at && ids[at - 1 - same] == ids[end - 1 - same]) ++same;
    if (same > longest) longest = same, from = at;
  }
  if (from == 0) return {};
  std::vector<int32_t> drafts;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    drafts.push_back(from + i < end ? ids[from + i] : drafts[from + i - end]);  // what repeats goes on repeating
  }
  return drafts;
}

}  // namespace gemma4
