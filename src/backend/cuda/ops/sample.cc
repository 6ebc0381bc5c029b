#include "backend/cuda/ops/sample.h"

#include <algorithm>
#include <bit>

#include "base/bf16.h"

namespace gemma4::cuda {
namespace {

// Appends this row's bias, counts and mask to `words` and stores their offsets in `row`.
void add_edits(const SamplingInput& s, SampleRow& row, std::vector<uint32_t>& words) {
  const auto end = [&] { return static_cast<int>(words.size()); };
  row.bias_begin = end();
  for (const auto& [id, bias] : s.bias) {
    words.push_back(static_cast<uint32_t>(id));
    words.push_back(std::bit_cast<uint32_t>(bias));
  }
  row.bias_end = row.counts_begin = end();
  if (s.penalizes()) {
    for (const auto& [id, times] : s.counts) {
      words.push_back(static_cast<uint32_t>(id));
      words.push_back(static_cast<uint32_t>(times));
    }
  }
  row.counts_end = row.allowed_begin = end();
  row.allowed_words = static_cast<int>(s.allowed.size());
  words.insert(words.end(), s.allowed.begin(), s.allowed.end());
}

}  // namespace

void* DeviceSampler::grow(int which, int64_t bytes) {
  if (bytes > sizes_[which]) {
    memory_->release(buffers_[which]);
    buffers_[which] = nullptr;
    buffers_[which] = memory_->allocate(bytes);
    sizes_[which] = bytes;
  }
  return buffers_[which];
}

void DeviceSampler::sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling, Staging& staging,
                           cudaStream_t stream) {
  const int rows = static_cast<int>(logits.rows()), vocab = static_cast<int>(logits.row_size());
  CHECK(ids.dtype == DType::kI32 && ids.contiguous() && static_cast<size_t>(rows) == sampling.size());
  CHECK(ids.rows() >= rows && vocab > 0);
  const int blocks = (vocab + kSampleBlock - 1) / kSampleBlock;
  params_.clear();
  words_.clear();
  int edited = 0;
  std::vector<int> doubtful;  // rows that the kernels may not be able to decide
  bool all_on_host = blocks * kSampleKept > kSampleBlock;
  for (int i = 0; i < rows; ++i) {
    const SamplingInput& s = sampling[i];
    SampleRow row{s};
    row.uniform = uniform_draw(s.seed, s.step);
    row.top_k = s.top_k > 0 && s.top_k < vocab ? s.top_k : 0;
    row.greedy = s.temperature <= 0 || s.top_k == 1;
    row.sum_all = !row.greedy && row.top_k == 0;
    const size_t before = words_.size();
    add_edits(s, row, words_);
    row.edited = words_.size() > before ? edited++ : -1;
    if (!row.greedy && (row.top_k == 0 || row.top_k > kSampleKept)) doubtful.push_back(i);
    params_.push_back(row);
  }
  if (all_on_host) {
    doubtful.resize(rows);
    for (int i = 0; i < rows; ++i) doubtful[i] = i;
    return choose_on_host(ids, logits, sampling, doubtful, staging, stream);
  }
  SampleCall call = {};
  call.ids = ids.row<int32_t>(0);
  call.logits = logits.data;
  call.bf16 = logits.dtype == DType::kBF16;
  CHECK(call.bf16 || logits.dtype == DType::kF32);
  call.stride = logits.stride, call.rows = rows, call.vocab = vocab;
  void* params = grow(0, sizeof(SampleRow) * rows);
  void* words = grow(1, static_cast<int64_t>(4 * std::max<size_t>(words_.size(), 1)));
  staging.write(params, params_.data(), sizeof(SampleRow) * rows, stream);
  if (!words_.empty()) staging.write(words, words_.data(), static_cast<int64_t>(4 * words_.size()), stream);
  call.params = static_cast<const SampleRow*>(params);
  call.words = static_cast<const uint32_t*>(words);
  call.edited = static_cast<float*>(grow(2, 4 * std::max<int64_t>(1, int64_t{edited} * vocab)));
  call.best = static_cast<uint64_t*>(grow(3, 8 * int64_t{rows} * blocks * kSampleKept));
  call.totals = static_cast<double*>(grow(4, 8 * int64_t{rows} * blocks));
  call.undecided = static_cast<int*>(grow(5, 4 * int64_t{rows}));
  launch_sample(stream, call, edited > 0);
  if (doubtful.empty()) return;
  std::vector<int> flags(rows), left;
  staging.read(flags.data(), call.undecided, 4 * int64_t{rows}, 1, 4 * int64_t{rows}, stream);
  for (int i : doubtful) {
    if (flags[i]) left.push_back(i);
  }
  if (!left.empty()) choose_on_host(ids, logits, sampling, left, staging, stream);
}

void DeviceSampler::choose_on_host(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling,
                                   const std::vector<int>& rows, Staging& staging, cudaStream_t stream) {
  const int64_t vocab = logits.row_size();
  row_.resize(vocab);
  for (int i : rows) {
    if (logits.dtype == DType::kBF16) {
      raw_.resize(vocab);
      staging.read(raw_.data(), logits.slice(i, 1).data, 2 * vocab, 1, 2 * vocab, stream);
      for (int64_t n = 0; n < vocab; ++n) row_[n] = bf16_to_float(raw_[n]);
    } else {
      staging.read(row_.data(), logits.slice(i, 1).data, 4 * vocab, 1, 4 * vocab, stream);
    }
    const int32_t id = sample_row(row_.data(), vocab, sampling[i], candidates_);
    staging.write(ids.row<int32_t>(i), &id, sizeof(id), stream);
  }
}

}  // namespace gemma4::cuda
