#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "backend/cuda/comm/peer_all_reduce.h"
#include "backend/cuda/runtime/error.h"
#include "backend/cuda/runtime/launch.cuh"
#include "base/bf16.h"

namespace gemma4::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint64_t kTrialPatience = 1 << 22;  // some seconds
constexpr uint32_t kFirst = 1;                // inboxes begin as zeros, which must be nobody's number
constexpr uint32_t kAgain = 2;                // after the last number, which is odd: halves must take turns

__device__ __forceinline__ void send(uint64_t* to, uint64_t word) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}

__device__ __forceinline__ uint64_t look(const uint64_t* at) {
  uint64_t word;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
  return word;
}

__device__ uint32_t receive(const uint64_t* at, uint32_t number, const PeerView& view, uint64_t patience) {
  for (uint64_t looks = 1;; ++looks) {
    const uint64_t word = look(at);
    if (static_cast<uint32_t>(word >> 32) == number) return static_cast<uint32_t>(word);
    if (looks == patience) return 0;
    if (looks % 4096 == 0 && *view.left) return 0;  // host memory is far away: seldom
  }
}

__device__ __forceinline__ float2 pair_of(uint32_t word) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&word));
}

__global__ void sum_kernel(PeerView view, uint32_t* x, int words, uint64_t patience) {
  grid_release();
  grid_wait();
  const uint32_t number = *static_cast<volatile uint32_t*>(view.state);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t half = (number & 1) * view.world;
  if (i < words) {
    const uint32_t own = x[i];
    for (int step = 1; step < view.world; ++step) {
      const int to = (view.rank + step) % view.world;  // not all to the same one at once
      send(view.inbox[to] + (half + view.rank) * kPeerWords + i, static_cast<uint64_t>(number) << 32 | own);
    }
    float2 sum = make_float2(0, 0);
    for (int from = 0; from < view.world; ++from) {
      const uint64_t* at = view.inbox[view.rank] + (half + from) * kPeerWords + i;
      const float2 part = pair_of(from == view.rank ? own : receive(at, number, view, patience));
      sum.x += part.x, sum.y += part.y;
    }
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(sum.x, sum.y);
    x[i] = *reinterpret_cast<const uint32_t*>(&rounded);
  }
  // The last block moves on to the next number; every block has read this one by then.
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(view.state + 1, 1u) == gridDim.x - 1) {
      view.state[1] = 0;
      view.state[0] = number == 0xffffffffu ? kAgain : number + 1;
    }
  }
}

}  // namespace

void sum_over_peers(cudaStream_t stream, const PeerView& view, void* x, int64_t words, uint64_t patience) {
  const unsigned blocks = static_cast<unsigned>((words + kThreads - 1) / kThreads);
  launch(stream, dim3(blocks), dim3(kThreads), 0, sum_kernel, view, static_cast<uint32_t*>(x), static_cast<int>(words),
         patience);
}

namespace {

bool wanted(int world) {
  const char* value = std::getenv("GEMMA4_PEERS");
  return world >= 2 && world <= kPeersMost && !(value && std::strcmp(value, "0") == 0);
}

std::shared_ptr<Peers> doubted() {
  std::fprintf(stderr, "gemma4: sums written straight between the GPUs came out wrong; NCCL makes all of them\n");
  return nullptr;
}

// Does every process say so?
bool all_say(ControlChannel& channel, bool mine) {
  const auto said = std::byte{mine};
  const ControlChannel::Bytes all = channel.gather(ControlChannel::Message::kPeers, {&said, 1});
  return std::ranges::count(all, std::byte{1}) == channel.world();
}

}  // namespace

std::shared_ptr<Peers> Peers::connect(int count) {
  if (!wanted(count)) return nullptr;
  const std::shared_ptr<Peers> peers(new Peers(count));
  if (!peers->reach()) return nullptr;
  std::vector<char> good(static_cast<size_t>(count), 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) threads.emplace_back([&, rank] { good[rank] = peers->trial(rank); });
  for (std::thread& thread : threads) thread.join();
  return std::count(good.begin(), good.end(), 1) == count ? peers : doubted();
}

std::shared_ptr<Peers> Peers::connect(ControlChannel& channel, int device) {
  const bool here = wanted(channel.world()) && channel.process().local_world == channel.world();
  if (!all_say(channel, here)) return nullptr;
  const std::shared_ptr<Peers> peers(new Peers(channel.world()));
  if (!all_say(channel, peers->reach(channel, device))) return nullptr;
  return all_say(channel, peers->trial(channel.rank())) ? peers : doubted();
}

Peers::Peers(int world) : world_(world), views_(static_cast<size_t>(world)), rank_buffers_(static_cast<size_t>(world)) {
  CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&left_), sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
  *left_ = 0;
}

// What another process opens is whole allocations; the driver makes small ones out of pieces of 2 MiB.
size_t Peers::Inbox::bytes(int world) {
  constexpr size_t kPiece = size_t{2} << 20;
  const size_t sums = static_cast<size_t>(2 * world * kPeerWords) * sizeof(uint64_t);
  const size_t steps = static_cast<size_t>(2 * world * kResidualDimMax) * sizeof(uint32_t);
  return (sums + steps + kPiece - 1) / kPiece * kPiece;
}

// A rank of this process, on GPU `device`: its inbox, and the numbers of its sums.
void Peers::add_rank(int rank, int device) {
  CUDA_CHECK(cudaSetDevice(device));
  Inbox inbox;
  CUDA_CHECK(cudaMalloc(&inbox.memory, Inbox::bytes(world_)));
  inboxes_.push_back(inbox);
  CUDA_CHECK(cudaMemset(inbox.memory, 0, Inbox::bytes(world_)));
  PeerView& view = views_[static_cast<size_t>(rank)];
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&view.state), 2 * sizeof(uint32_t)));
  const uint32_t state[2] = {kFirst, 0};
  CUDA_CHECK(cudaMemcpy(view.state, state, sizeof(state), cudaMemcpyHostToDevice));
  RankBuffers& buffers = rank_buffers_[static_cast<size_t>(rank)];
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&buffers.epoch), sizeof(uint32_t)));
  CUDA_CHECK(cudaMemset(buffers.epoch, 0, sizeof(uint32_t)));
  CUDA_CHECK(cudaDeviceSynchronize());
  view.left = buffers.aborted = left_, view.rank = buffers.rank = rank, view.world = buffers.world = world_;
  ranks_.push_back(rank), devices_.push_back(device);
}

// Tells this process's ranks where rank `to` reads.
void Peers::address(int to, const Inbox& inbox) {
  for (const int rank : ranks_) {
    views_[static_cast<size_t>(rank)].inbox[to] = inbox.sums(world_);
    rank_buffers_[static_cast<size_t>(rank)].receive[to] = inbox.steps(world_);
  }
}

// Makes every GPU's inbox, and lets every GPU write to every other one.
bool Peers::reach() {
  for (int from = 0; from < world_; ++from) {
    for (int to = 0; to < world_; ++to) {
      int can = 0;
      if (from != to && (cudaDeviceCanAccessPeer(&can, from, to) != cudaSuccess || !can)) return false;
    }
  }
  for (int device = 0; device < world_; ++device) {
    add_rank(device, device);
    for (int peer = 0; peer < world_; ++peer) {
      if (peer == device) continue;
      const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
      if (error != cudaErrorPeerAccessAlreadyEnabled) CUDA_CHECK(error);
      cudaGetLastError();
    }
  }
  for (int rank = 0; rank < world_; ++rank) address(rank, inboxes_[static_cast<size_t>(rank)]);
  return true;
}

// Makes this process's inbox and opens those of the others.
bool Peers::reach(ControlChannel& channel, int device) {
  add_rank(channel.rank(), device);
  struct Offer {
    cudaIpcMemHandle_t handle;
    bool good;
  } mine = {};
  mine.good = cudaIpcGetMemHandle(&mine.handle, inboxes_[0].memory) == cudaSuccess;
  const ControlChannel::Bytes all = channel.gather(ControlChannel::Message::kPeers, std::as_bytes(std::span(&mine, 1)));
  bool good = true;
  for (int rank = 0; rank < world_ && good; ++rank) {
    Offer offer;
    std::memcpy(&offer, all.data() + static_cast<size_t>(rank) * sizeof offer, sizeof offer);
    Inbox inbox = inboxes_[0];
    if (rank != channel.rank()) {
      good = offer.good &&
             cudaIpcOpenMemHandle(&inbox.memory, offer.handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
      if (good) opened_.push_back(inbox.memory);
    }
    if (good) address(rank, inbox);
  }
  cudaGetLastError();
  return good;
}

Peers::~Peers() {
  for (void* memory : opened_) cudaIpcCloseMemHandle(memory);
  for (const int rank : ranks_) {
    cudaFree(rank_buffers_[static_cast<size_t>(rank)].epoch);
    cudaFree(views_[static_cast<size_t>(rank)].state);
  }
  for (const Inbox& inbox : inboxes_) cudaFree(inbox.memory);
  if (left_) cudaFreeHost(left_);
}

// Three sums of whole numbers, by all ranks at once.
bool Peers::trial(int rank) const {
  const int device = devices_[static_cast<size_t>(std::ranges::find(ranks_, rank) - ranks_.begin())];
  uint16_t* x = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<uint16_t> values(static_cast<size_t>(2 * kPeerWords));
  bool right = cudaSetDevice(device) == cudaSuccess &&
               cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
               cudaMalloc(reinterpret_cast<void**>(&x), values.size() * 2) == cudaSuccess;
  for (int round = 1; right && round <= 3; ++round) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_bf16(static_cast<float>((i % 7 + round) << rank));
    right = cudaMemcpy(x, values.data(), values.size() * 2, cudaMemcpyHostToDevice) == cudaSuccess;
    if (right) sum_over_peers(stream, views_[static_cast<size_t>(rank)], x, kPeerWords, kTrialPatience);
    right = right && cudaStreamSynchronize(stream) == cudaSuccess &&
            cudaMemcpy(values.data(), x, values.size() * 2, cudaMemcpyDeviceToHost) == cudaSuccess;
    for (size_t i = 0; right && i < values.size(); ++i) {
      right = values[i] == float_to_bf16(static_cast<float>((i % 7 + round) * ((1 << world_) - 1)));
    }
  }
  cudaFree(x);
  if (stream) cudaStreamDestroy(stream);
  return right;
}

bool Peers::takes(const Tensor& x) const {
  return x.dtype == DType::kBF16 && x.contiguous() && x.size() % 2 == 0 && x.size() / 2 <= kPeerWords &&
         reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
}

void Peers::all_reduce(int rank, Tensor x, cudaStream_t stream) const {
  sum_over_peers(stream, views_[static_cast<size_t>(rank)], x.data, x.size() / 2, 0);
}

}  // namespace gemma4::cuda
