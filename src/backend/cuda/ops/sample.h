// Sampling on the device, as backend/sample.h defines it. The kernels sort the 64 largest logits of each row. That is
// enough for greedy sampling, top_k up to 64, and nearly every draw without top_k. The other rows (a larger top_k, a
// nucleus or a draw beyond the 64 largest) are sampled on the host, which costs one synchronization.
#pragma once

#include <cuda_runtime_api.h>

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/runtime/memory.h"
#include "backend/sample.h"

namespace gemma4::cuda {

// One row's sampling parameters as the kernels read them; top_k is 0 where it is not less than the vocabulary.
struct SampleRow : SamplingParams {
  double uniform = 0;  // in [0, 1)
  int greedy = 0;
  int sum_all = 0;  // the total over all logits is needed (no top_k)
  int edited = -1;  // row of the edit buffer; -1: the logits are used unchanged
  int bias_begin = 0, bias_end = 0, counts_begin = 0, counts_end = 0;  // pairs in the edit words
  int allowed_begin = 0, allowed_words = 0;                            // words; 0: all ids allowed
};

inline constexpr int kSampleBlock = 4096;  // logits a block sorts
inline constexpr int kSampleKept = 64;     // of which it keeps the best

struct SampleCall {
  int32_t* ids;        // [rows]
  const void* logits;  // [rows, vocab], BF16 or F32
  bool bf16;
  int64_t stride;
  int rows, vocab;
  const SampleRow* params;  // [rows]
  const uint32_t* words;    // biases, counts and masks
  float* edited;            // [edited rows, vocab]
  uint64_t* best;           // [rows, blocks, kSampleKept]
  double* totals;           // [rows, blocks]
  int* undecided;           // [rows]: 1 if the row must be sampled on the host
};

void launch_sample(cudaStream_t stream, const SampleCall& call, bool edits);

class DeviceSampler {
 public:
  explicit DeviceSampler(Memory* memory) : memory_(memory) {}
  void sample(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling, Staging& staging,
              cudaStream_t stream);

 private:
  void* grow(int which, int64_t bytes);
  void choose_on_host(Tensor ids, Tensor logits, std::span<const SamplingInput> sampling, const std::vector<int>& rows,
                      Staging& staging, cudaStream_t stream);

  Memory* memory_;
  void* buffers_[6] = {};  // device: params, words, edited, best, totals, undecided
  int64_t sizes_[6] = {};
  std::vector<SampleRow> params_;
  std::vector<uint32_t> words_;
  std::vector<float> row_;
  std::vector<uint16_t> raw_;
  std::vector<int32_t> candidates_;
};

}  // namespace gemma4::cuda
