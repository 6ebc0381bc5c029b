// The kernel of peer_all_reduce(), and how ranks open each other's receive buffers. Latency bounds the kernel: a pair
// crosses NVLink once, and the receiver polls its own memory.
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
constexpr uint64_t kSelfCheckPolls = 1 << 22;  // takes some seconds
constexpr uint32_t kFirstEpoch = 1;            // receive buffers begin as zeros, so no epoch is 0
constexpr uint32_t kWrappedEpoch = 2;          // follows the largest epoch, which is odd, so that the halves alternate

__device__ __forceinline__ void store_flagged(uint64_t* to, uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__device__ __forceinline__ uint64_t load_flagged(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

// Polls until the value at `from` is of `epoch`. Returns 0 after polls_max polls, or once the group has ended.
__device__ uint32_t spin_wait(const uint64_t* from, uint32_t epoch, const PeerView& view, uint64_t polls_max) {
  for (uint64_t polls = 1;; ++polls) {
    const uint64_t value = load_flagged(from);
    if (static_cast<uint32_t>(value >> 32) == epoch) return static_cast<uint32_t>(value);
    if (polls == polls_max) return 0;
    if (polls % 4096 == 0 && *view.aborted) return 0;  // seldom, because host memory is slow to read
  }
}

__device__ __forceinline__ float2 unpack_pair(uint32_t bits) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bits));
}

__global__ void peer_all_reduce_kernel(PeerView view, uint32_t* x, int pairs, uint64_t polls_max) {
  grid_release();
  grid_wait();
  const uint32_t epoch = *static_cast<volatile uint32_t*>(view.state);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t half = (epoch & 1) * view.world;
  if (i < pairs) {
    const uint32_t own = x[i];
    for (int step = 1; step < view.world; ++step) {
      const int to = (view.rank + step) % view.world;  // so that the ranks do not all write to the same one
      store_flagged(view.receive[to] + (half + view.rank) * kPeerPairs + i, static_cast<uint64_t>(epoch) << 32 | own);
    }
    float2 sum = make_float2(0, 0);
    for (int from = 0; from < view.world; ++from) {
      const uint64_t* received = view.receive[view.rank] + (half + from) * kPeerPairs + i;
      const float2 pair = unpack_pair(from == view.rank ? own : spin_wait(received, epoch, view, polls_max));
      sum.x += pair.x;
      sum.y += pair.y;
    }
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(sum.x, sum.y);
    x[i] = *reinterpret_cast<const uint32_t*>(&rounded);
  }
  // The last CTA moves on to the next epoch; by then every CTA has read this one.
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(view.state + 1, 1u) == gridDim.x - 1) {
      view.state[1] = 0;
      view.state[0] = epoch == 0xffffffffu ? kWrappedEpoch : epoch + 1;
    }
  }
}

}  // namespace

void peer_all_reduce(cudaStream_t stream, const PeerView& view, void* x, int64_t pairs, uint64_t polls_max) {
  const unsigned blocks = static_cast<unsigned>((pairs + kThreads - 1) / kThreads);
  launch(stream, dim3(blocks), dim3(kThreads), 0, peer_all_reduce_kernel, view, static_cast<uint32_t*>(x),
         static_cast<int>(pairs), polls_max);
}

namespace {

bool enabled(int world) {
  const char* value = std::getenv("GEMMA4_PEERS");
  return world >= 2 && world <= kRanksMax && !(value && std::strcmp(value, "0") == 0);
}

std::shared_ptr<PeerAllReduce> report_wrong_sums() {
  std::fprintf(stderr, "gemma4: sums written straight between the GPUs came out wrong; NCCL makes all of them\n");
  return nullptr;
}

// Whether every process says `mine`.
bool all_agree(ControlChannel& channel, bool mine) {
  const auto said = std::byte{mine};
  const ControlChannel::Bytes all = channel.gather(ControlChannel::Message::kPeers, {&said, 1});
  return std::ranges::count(all, std::byte{1}) == channel.world();
}

}  // namespace

std::shared_ptr<PeerAllReduce> PeerAllReduce::connect(int count) {
  if (!enabled(count)) return nullptr;
  const std::shared_ptr<PeerAllReduce> peers(new PeerAllReduce(count));
  if (!peers->open_buffers()) return nullptr;
  std::vector<char> good(static_cast<size_t>(count), 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) threads.emplace_back([&, rank] { good[rank] = peers->self_check(rank); });
  for (std::thread& thread : threads) thread.join();
  return std::count(good.begin(), good.end(), 1) == count ? peers : report_wrong_sums();
}

std::shared_ptr<PeerAllReduce> PeerAllReduce::connect(ControlChannel& channel, int device) {
  const bool one_host = enabled(channel.world()) && channel.process().local_world == channel.world();
  if (!all_agree(channel, one_host)) return nullptr;
  const std::shared_ptr<PeerAllReduce> peers(new PeerAllReduce(channel.world()));
  if (!all_agree(channel, peers->open_buffers(channel, device))) return nullptr;
  return all_agree(channel, peers->self_check(channel.rank())) ? peers : report_wrong_sums();
}

PeerAllReduce::PeerAllReduce(int world)
    : world_(world), views_(static_cast<size_t>(world)), rank_buffers_(static_cast<size_t>(world)) {
  CUDA_CHECK(
      cudaHostAlloc(reinterpret_cast<void**>(&aborted_), sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
  *aborted_ = 0;
}

// Another process opens whole allocations, and the driver takes small ones from blocks of 2 MiB.
size_t PeerAllReduce::ReceiveBuffer::bytes(int world) {
  constexpr size_t kDriverBlock = size_t{2} << 20;
  const size_t pairs = static_cast<size_t>(2 * world * kPeerPairs) * sizeof(uint64_t);
  const size_t values = static_cast<size_t>(2 * world * kResidualDimMax) * sizeof(uint32_t);
  return (pairs + values + kDriverBlock - 1) / kDriverBlock * kDriverBlock;
}

// Adds a rank of this process, on GPU `device`: its receive buffer, and the epochs of its all-reduces.
void PeerAllReduce::add_rank(int rank, int device) {
  CUDA_CHECK(cudaSetDevice(device));
  ReceiveBuffer buffer;
  CUDA_CHECK(cudaMalloc(&buffer.memory, ReceiveBuffer::bytes(world_)));
  buffers_.push_back(buffer);
  CUDA_CHECK(cudaMemset(buffer.memory, 0, ReceiveBuffer::bytes(world_)));
  PeerView& view = views_[static_cast<size_t>(rank)];
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&view.state), 2 * sizeof(uint32_t)));
  const uint32_t state[2] = {kFirstEpoch, 0};
  CUDA_CHECK(cudaMemcpy(view.state, state, sizeof(state), cudaMemcpyHostToDevice));
  RankBuffers& buffers = rank_buffers_[static_cast<size_t>(rank)];
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&buffers.epoch), sizeof(uint32_t)));
  CUDA_CHECK(cudaMemset(buffers.epoch, 0, sizeof(uint32_t)));
  CUDA_CHECK(cudaDeviceSynchronize());
  view.aborted = buffers.aborted = aborted_;
  view.rank = buffers.rank = rank;
  view.world = buffers.world = world_;
  ranks_.push_back(rank);
  devices_.push_back(device);
}

// Tells this process's ranks the receive buffer of rank `to`.
void PeerAllReduce::set_buffer(int to, const ReceiveBuffer& buffer) {
  for (const int rank : ranks_) {
    views_[static_cast<size_t>(rank)].receive[to] = buffer.pairs();
    rank_buffers_[static_cast<size_t>(rank)].receive[to] = buffer.values(world_);
  }
}

// Allocates the receive buffer of every GPU, and lets every GPU write to every other one.
bool PeerAllReduce::open_buffers() {
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
  for (int rank = 0; rank < world_; ++rank) set_buffer(rank, buffers_[static_cast<size_t>(rank)]);
  return true;
}

// Allocates this process's receive buffer and opens those of the others.
bool PeerAllReduce::open_buffers(ControlChannel& channel, int device) {
  add_rank(channel.rank(), device);
  struct Offer {
    cudaIpcMemHandle_t handle;
    bool good;
  } mine = {};
  mine.good = cudaIpcGetMemHandle(&mine.handle, buffers_[0].memory) == cudaSuccess;
  const ControlChannel::Bytes all = channel.gather(ControlChannel::Message::kPeers, std::as_bytes(std::span(&mine, 1)));
  bool good = true;
  for (int rank = 0; rank < world_ && good; ++rank) {
    Offer offer;
    std::memcpy(&offer, all.data() + static_cast<size_t>(rank) * sizeof offer, sizeof offer);
    ReceiveBuffer buffer = buffers_[0];
    if (rank != channel.rank()) {
      good = offer.good &&
             cudaIpcOpenMemHandle(&buffer.memory, offer.handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
      if (good) opened_.push_back(buffer.memory);
    }
    if (good) set_buffer(rank, buffer);
  }
  cudaGetLastError();
  return good;
}

PeerAllReduce::~PeerAllReduce() {
  for (void* memory : opened_) cudaIpcCloseMemHandle(memory);
  for (const int rank : ranks_) {
    cudaFree(rank_buffers_[static_cast<size_t>(rank)].epoch);
    cudaFree(views_[static_cast<size_t>(rank)].state);
  }
  for (const ReceiveBuffer& buffer : buffers_) cudaFree(buffer.memory);
  if (aborted_) cudaFreeHost(aborted_);
}

// Three all-reduces of whole numbers, by all ranks at once.
bool PeerAllReduce::self_check(int rank) const {
  const int device = devices_[static_cast<size_t>(std::ranges::find(ranks_, rank) - ranks_.begin())];
  uint16_t* x = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<uint16_t> values(static_cast<size_t>(2 * kPeerPairs));
  bool right = cudaSetDevice(device) == cudaSuccess &&
               cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
               cudaMalloc(reinterpret_cast<void**>(&x), values.size() * 2) == cudaSuccess;
  for (int round = 1; right && round <= 3; ++round) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_bf16(static_cast<float>((i % 7 + round) << rank));
    right = cudaMemcpy(x, values.data(), values.size() * 2, cudaMemcpyHostToDevice) == cudaSuccess;
    if (right) peer_all_reduce(stream, views_[static_cast<size_t>(rank)], x, kPeerPairs, kSelfCheckPolls);
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

bool PeerAllReduce::supports(const Tensor& x) const {
  return x.dtype == DType::kBF16 && x.contiguous() && x.size() % 2 == 0 && x.size() / 2 <= kPeerPairs &&
         reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
}

void PeerAllReduce::all_reduce(int rank, Tensor x, cudaStream_t stream) const {
  peer_all_reduce(stream, views_[static_cast<size_t>(rank)], x.data, x.size() / 2, 0);
}

}  // namespace gemma4::cuda
