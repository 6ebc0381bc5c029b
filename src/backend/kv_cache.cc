#include "backend/kv_cache.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "base/check.h"

namespace gemma4 {
namespace {

template <typename Oldest>
int64_t longest_span(std::span<const Row> rows, Oldest oldest) {
  struct Span {
    int32_t begin = std::numeric_limits<int32_t>::max(), end = -1;
  };
  std::vector<Span> spans;  // by sequence
  int64_t longest = 0;
  for (const Row& row : rows) {
    CHECK(row.seq >= 0);
    if (static_cast<size_t>(row.seq) >= spans.size()) spans.resize(static_cast<size_t>(row.seq) + 1);
    Span& span = spans[static_cast<size_t>(row.seq)];
    span = {std::min(span.begin, oldest(row)), std::max(span.end, row.pos)};
    longest = std::max(longest, int64_t{span.end} - span.begin + 1);
  }
  return longest;
}

}  // namespace

int64_t positions_written(std::span<const Row> rows) {
  return longest_span(rows, [](const Row& row) { return row.pos; });
}

int64_t positions_held(std::span<const Row> rows) {
  return longest_span(rows, [](const Row& row) { return std::min(row.first, row.pos); });
}

}  // namespace gemma4
