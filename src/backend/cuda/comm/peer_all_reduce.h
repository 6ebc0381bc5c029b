// Peers: the sum over ranks of a few rows, by writing straight into the other GPUs' memory. A decode step has 120 such
// sums of 10 KB, where NCCL's latency counts, not its bandwidth. Used where every GPU can reach every other one's
// memory and a trial at the start was right; NCCL does the rest.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/tensor.h"
#include "distributed/control_channel.h"

namespace gemma4::cuda {

inline constexpr int kResidualDimMax = 5376;  // most columns of the residual stream in the decode megakernel

// Where the all-reduces inside the decode megakernel exchange values (megakernel/rank_all_reduce.cuh): every rank
// writes its input into every rank's receive buffer, as flagged float32 values, and the norm that follows waits for the
// values themselves. A model on one GPU has a receive buffer too, because waiting for values is faster than waiting for
// all CTAs.
struct RankBuffers {
  static constexpr int kRanksMax = 8;
  uint32_t* receive[kRanksMax] = {};      // by rank: [2, world, kResidualDimMax], zero at first; all-reduces alternate
                                          // between the halves
  uint32_t* epoch = nullptr;              // [1], of the last all-reduce of the step before
  const volatile int* aborted = nullptr;  // not 0 once the group has ended; null: a group of one
  int rank = 0, world = 1;
};

constexpr int kPeersMost = RankBuffers::kRanksMax;
constexpr int64_t kPeerWords = 16 * 5376 / 2;  // pairs of bf16 that one sum takes: 16 rows of 31B

// What a rank's kernel needs; pointers of all GPUs are valid on each. A word in an inbox is a pair of bf16 and, above
// it, the number of the sum it belongs to: it is there when its number is, so no other signal is needed (as in NCCL's
// LL protocol). Sums alternate between two halves of an inbox: a rank begins sum n only after all others have sent
// theirs of n - 1, so have read those of n - 2.
struct PeerView {
  uint64_t* inbox[kPeersMost];  // by rank: [2, world, kPeerWords]
  uint32_t* state;              // the number of the next sum, blocks that are through with it
  const volatile int* left;     // in pinned host memory: not 0 once the group has ended
  int rank, world;
};

// x = the sum over the ranks, rounded once, in the order of the ranks; x BF16 [words pairs]. `patience`: how often a
// thread looks for a word before it gives up (0: for ever, or until `left`).
void sum_over_peers(cudaStream_t stream, const PeerView& view, void* x, int64_t words, uint64_t patience);

class Peers {
 public:
  // For GPUs 0 .. count-1. Null where one cannot reach another, where a trial gives wrong sums, or where the variable
  // GEMMA4_PEERS is 0; the second says so on stderr.
  static std::shared_ptr<Peers> connect(int count);
  // The same for GPU `device` of this process as the rank of `channel`, whose processes all call it and all get one
  // answer: where they are on one host and see each other's GPUs, each opens the others' inboxes (CUDA IPC).
  static std::shared_ptr<Peers> connect(ControlChannel& channel, int device);
  ~Peers();

  bool takes(const Tensor& x) const;
  void all_reduce(int rank, Tensor x, cudaStream_t stream) const;
  RankBuffers rank_buffers(int rank) const { return rank_buffers_[static_cast<size_t>(rank)]; }
  void abort() { *left_ = 1; }

 private:
  struct Inbox {  // of one GPU, one piece of memory
    void* memory = nullptr;
    uint64_t* sums(int) const { return static_cast<uint64_t*>(memory); }
    uint32_t* steps(int world) const { return reinterpret_cast<uint32_t*>(sums(world) + 2 * world * kPeerWords); }
    static size_t bytes(int world);
  };

  explicit Peers(int world);
  bool reach();
  bool reach(ControlChannel& channel, int device);
  void add_rank(int rank, int device);
  void address(int to, const Inbox& inbox);
  bool trial(int rank) const;

  int world_;
  std::vector<int> ranks_, devices_;  // of this process
  std::vector<PeerView> views_;       // by rank; those of other processes are empty
  std::vector<RankBuffers> rank_buffers_;
  std::vector<Inbox> inboxes_;  // of this process's ranks
  std::vector<void*> opened_;   // of other processes
  int* left_ = nullptr;
};

}  // namespace gemma4::cuda
