#include "backend/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gemma4 {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void edit(float* logits, int64_t vocab, const SamplingInput& s) {
  for (const auto& [id, value] : s.bias) {
    if (id >= 0 && id < vocab) logits[id] += value;
  }
  for (const auto& [id, count] : s.counts) {
    if (id < 0 || id >= vocab) continue;
    float& logit = logits[id];
    logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;  // CTRL, Keskar et al. 2019
    if (count > 0) logit -= s.presence_penalty + s.frequency_penalty * static_cast<float>(count);
  }
  if (s.allowed.empty()) return;
  for (int64_t id = 0; id < vocab; ++id) {
    const size_t word = static_cast<size_t>(id / 32);
    if (word >= s.allowed.size() || !(s.allowed[word] >> (id % 32) & 1)) logits[id] = kForbidden;
  }
}

int32_t largest(const float* logits, int64_t vocab) {
  int64_t best = 0;
  for (int64_t id = 1; id < vocab; ++id) {
    if (logits[id] > logits[best]) best = id;
  }
  return static_cast<int32_t>(best);
}

// The allowed ids in descending order of their logits, ties by ascending id; only the first top_k if that is not 0. The
// order is total, so dropping ids below the top_k-th of those seen so far does not change the result.
void order_candidates(const float* logits, int64_t vocab, int top_k, std::vector<int32_t>& candidates) {
  const auto before = [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  const auto most = static_cast<size_t>(top_k > 0 ? std::min<int64_t>(top_k, vocab) : vocab);
  const auto keep_most = [&] {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<int64_t>(most) - 1, candidates.end(), before);
    candidates.resize(most);
  };
  constexpr size_t kFew = 1024;  // ids that are sorted out at a time
  float least = kForbidden;
  candidates.clear();
  for (int64_t id = 0; id < vocab; ++id) {
    if (!(logits[id] > least)) continue;  // of equals the lowest ids are there already
    candidates.push_back(static_cast<int32_t>(id));
    if (candidates.size() < most + kFew) continue;
    keep_most();
    least = logits[candidates.back()];
  }
  if (candidates.size() > most) keep_most();
  std::sort(candidates.begin(), candidates.end(), before);
}

// Draws from `candidates`, which are in descending order. p(id) = exp((logit - top) / temperature), normalized. top_p
// keeps the shortest prefix whose sum reaches it; min_p keeps tokens of at least min_p times the likeliest one's
// probability. Both are applied to the distribution after top_k.
int32_t draw(const float* logits, const std::vector<int32_t>& candidates, const SamplingInput& s) {
  const float top = logits[candidates[0]];
  const auto weight = [&](int32_t id) { return std::exp(static_cast<double>((logits[id] - top) / s.temperature)); };
  double total = 0;
  for (int32_t id : candidates) total += weight(id);
  double kept = 0;
  size_t count = 0;
  for (; count < candidates.size(); ++count) {
    const double w = weight(candidates[count]);
    if (count > 0 && (kept >= static_cast<double>(s.top_p) * total || w < s.min_p)) break;
    kept += w;
  }
  double target = static_cast<double>(uniform_draw(s.seed, s.step)) * kept;
  for (size_t i = 0; i < count; ++i) {
    target -= weight(candidates[i]);
    if (target < 0) return candidates[i];
  }
  return candidates[count - 1];
}

}  // namespace

bool edits(const SamplingInput& s) { return !s.bias.empty() || !s.counts.empty() || !s.allowed.empty(); }

float uniform_draw(uint64_t seed, uint64_t step) { return static_cast<float>(mix(mix(seed) + step) >> 40) * 0x1p-24f; }

int32_t sample_row(float* logits, int64_t vocab, const SamplingInput& s, std::vector<int32_t>& candidates) {
  edit(logits, vocab, s);
  if (s.temperature <= 0) return largest(logits, vocab);
  order_candidates(logits, vocab, s.top_k, candidates);
  if (candidates.empty()) return largest(logits, vocab);
  return draw(logits, candidates, s);
}

}  // namespace gemma4
