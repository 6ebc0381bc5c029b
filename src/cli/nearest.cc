#include "cli/nearest.h"

#include <algorithm>

namespace gemma4 {
namespace {

// Optimal string alignment distance (Damerau and Levenshtein's, no part edited twice).
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));  // [a, b]
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replaced});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  constexpr size_t kLongest = 40;  // no name is longer
  if (word.size() > kLongest) return "";
  const size_t length = word.size() - std::min(word.size(), word.find_first_not_of("-/"));
  const size_t most = length < 5 ? 1 : 2;  // edits; more would suggest what has nothing to do with the word
  std::string best;
  size_t fewest = most + 1;
  for (const std::string& name : names) {
    // Of a name of one letter every word of one letter is near.
    const size_t letters = name.size() - std::min(name.size(), name.find_first_not_of("-/"));
    if (letters < 2) continue;
    const size_t edits = distance(word, name);
    if (edits < fewest) fewest = edits, best = name;
  }
  if (!best.empty()) return best;
  for (const std::string& name : names) {
    if (word.size() >= 3 && word.find_first_not_of("-/") != std::string::npos && name.starts_with(word)) return name;
  }
  return best;
}

}  // namespace gemma4
