// PeerAllReduce: the all-reduce of a few rows, by writing straight into the memory of the other GPUs. A decode step has
// 120 all-reduces of 10 KB each, and there NCCL's latency counts, not its bandwidth. It is used if every GPU can reach
// the memory of every other one and if a self-check at the start gave correct sums; otherwise NCCL does all of them.
// nccl.cc makes it; RankBuffers is what the decode megakernel gets for its own all-reduces.
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

inline constexpr int kRanksMax = RankBuffers::kRanksMax;
inline constexpr int64_t kPeerPairs = 16 * 5376 / 2;  // pairs of bf16 in the largest all-reduce: 16 rows of 31B

// The view of one rank. Pointers of all GPUs are valid on each GPU. A receive buffer holds flagged values: 64 bits with
// a pair of bf16 and, in the upper half, the epoch of the all-reduce to which the pair belongs. A pair has arrived when
// its epoch has, so no other signal is needed (as in NCCL's LL protocol). Epochs alternate between the two halves of a
// receive buffer: a rank begins epoch n only after all others have sent their pairs of n - 1, and so have read those
// of n - 2.
struct PeerView {
  uint64_t* receive[kRanksMax];  // by rank: [2, world, kPeerPairs]
  uint32_t* state;               // [2]: the next epoch, and how many CTAs have finished it
  const volatile int* aborted;   // in pinned host memory: not 0 once the group has ended
  int rank, world;
};

// x = the sum over the ranks, added in rank order and rounded once; x BF16, `pairs` pairs. `polls_max`: how often a
// thread polls for a pair before it gives up (0: without end, until `aborted`).
void peer_all_reduce(cudaStream_t stream, const PeerView& view, void* x, int64_t pairs, uint64_t polls_max);

class PeerAllReduce {
 public:
  // For GPUs 0 .. count-1. Null if a GPU cannot reach another one, if the self-check gives wrong sums (it says so on
  // stderr), or if the environment variable GEMMA4_PEERS is 0.
  static std::shared_ptr<PeerAllReduce> connect(int count);
  // For GPU `device` of this process, as the rank of `channel`. All processes of the channel call it and get the same
  // answer. If they are on one host and see each other's GPUs, each opens the receive buffers of the others (CUDA IPC).
  static std::shared_ptr<PeerAllReduce> connect(ControlChannel& channel, int device);
  ~PeerAllReduce();

  bool supports(const Tensor& x) const;
  void all_reduce(int rank, Tensor x, cudaStream_t stream) const;
  RankBuffers rank_buffers(int rank) const { return rank_buffers_[static_cast<size_t>(rank)]; }
  void abort() { *aborted_ = 1; }

 private:
  // The receive buffers of one GPU, in one allocation: those of peer_all_reduce(), then those of the megakernel.
  struct ReceiveBuffer {
    void* memory = nullptr;
    uint64_t* pairs() const { return static_cast<uint64_t*>(memory); }
    uint32_t* values(int world) const { return reinterpret_cast<uint32_t*>(pairs() + 2 * world * kPeerPairs); }
    static size_t bytes(int world);
  };

  explicit PeerAllReduce(int world);
  bool open_buffers();
  bool open_buffers(ControlChannel& channel, int device);
  void add_rank(int rank, int device);
  void set_buffer(int rank, const ReceiveBuffer& buffer);
  bool self_check(int rank) const;

  int world_;
  std::vector<int> ranks_, devices_;       // of this process
  std::vector<PeerView> views_;            // by rank; those of other processes are empty
  std::vector<RankBuffers> rank_buffers_;  // likewise
  std::vector<ReceiveBuffer> buffers_;     // of this process's ranks
  std::vector<void*> opened_;              // of other processes
  int* aborted_ = nullptr;
};

}  // namespace gemma4::cuda
