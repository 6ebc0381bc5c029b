#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "backend/cuda/error.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/peers.h"
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

std::shared_ptr<Peers> Peers::connect(int count) {
  const char* wanted = std::getenv("GEMMA4_PEERS");
  if (count < 2 || count > kPeersMost || (wanted && std::strcmp(wanted, "0") == 0)) return nullptr;
  std::shared_ptr<Peers> peers(new Peers());
  if (!peers->reach(count)) return nullptr;
  if (peers->trial()) return peers;
  std::fprintf(stderr, "gemma4: sums written straight between the GPUs came out wrong; NCCL makes all of them\n");
  return nullptr;
}

// Makes every GPU's inbox, and lets every GPU write to every other one.
bool Peers::reach(int count) {
  for (int from = 0; from < count; ++from) {
    for (int to = 0; to < count; ++to) {
      int can = 0;
      if (from != to && (cudaDeviceCanAccessPeer(&can, from, to) != cudaSuccess || !can)) return false;
    }
  }
  CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&left_), sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
  *left_ = 0;
  std::vector<uint64_t*> inboxes;
  for (int device = 0; device < count; ++device) {
    CUDA_CHECK(cudaSetDevice(device));
    for (int peer = 0; peer < count; ++peer) {
      if (peer == device) continue;
      const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
      if (error != cudaErrorPeerAccessAlreadyEnabled) CUDA_CHECK(error);
      cudaGetLastError();
    }
    PeerView view = {};
    const size_t bytes = static_cast<size_t>(2 * count * kPeerWords) * sizeof(uint64_t);
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&view.inbox[0]), bytes));
    inboxes.push_back(view.inbox[0]);
    CUDA_CHECK(cudaMemset(view.inbox[0], 0, bytes));
    CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&view.state), 2 * sizeof(uint32_t)));
    const uint32_t state[2] = {kFirst, 0};
    CUDA_CHECK(cudaMemcpy(view.state, state, sizeof(state), cudaMemcpyHostToDevice));
    CUDA_CHECK(cudaDeviceSynchronize());
    view.left = left_, view.rank = device, view.world = count;
    views_.push_back(view);
    steps_.push_back(make_step(device, count));
  }
  for (StepPeers& step : steps_) {
    for (int device = 0; device < count; ++device) step.inbox[device] = step_inboxes_[static_cast<size_t>(device)];
  }
  for (PeerView& view : views_) std::copy(inboxes.begin(), inboxes.end(), view.inbox);
  return true;
}

// The inbox and the number of this GPU's step kernels.
StepPeers Peers::make_step(int device, int count) {
  StepPeers step;
  const size_t bytes = static_cast<size_t>(2 * count * kStepDim) * sizeof(uint32_t);
  uint32_t* inbox = nullptr;
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&inbox), bytes));
  CUDA_CHECK(cudaMemset(inbox, 0, bytes));
  step_inboxes_.push_back(inbox);
  CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&step.number), sizeof(uint32_t)));
  CUDA_CHECK(cudaMemset(step.number, 0, sizeof(uint32_t)));
  CUDA_CHECK(cudaDeviceSynchronize());
  step.left = left_, step.rank = device, step.world = count;
  return step;
}

Peers::~Peers() {
  for (const StepPeers& step : steps_) cudaFree(step.number);
  for (uint32_t* inbox : step_inboxes_) cudaFree(inbox);
  for (const PeerView& view : views_) {
    cudaFree(view.inbox[view.rank]);
    cudaFree(view.state);
  }
  if (left_) cudaFreeHost(left_);
}

// Three sums of whole numbers, by all GPUs at once, each on a thread of its own as later.
bool Peers::trial() const {
  const int world = static_cast<int>(views_.size());
  std::vector<char> good(views_.size(), 0);
  const auto work = [&](int rank) {
    uint16_t* x = nullptr;
    cudaStream_t stream = nullptr;
    std::vector<uint16_t> values(static_cast<size_t>(2 * kPeerWords));
    bool right = cudaSetDevice(rank) == cudaSuccess &&
                 cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
                 cudaMalloc(reinterpret_cast<void**>(&x), values.size() * 2) == cudaSuccess;
    for (int round = 1; right && round <= 3; ++round) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_bf16(static_cast<float>((i % 7 + round) << rank));
      right = cudaMemcpy(x, values.data(), values.size() * 2, cudaMemcpyHostToDevice) == cudaSuccess;
      if (right) sum_over_peers(stream, views_[rank], x, kPeerWords, kTrialPatience);
      right = right && cudaStreamSynchronize(stream) == cudaSuccess &&
              cudaMemcpy(values.data(), x, values.size() * 2, cudaMemcpyDeviceToHost) == cudaSuccess;
      for (size_t i = 0; right && i < values.size(); ++i) {
        const auto want = static_cast<float>((i % 7 + round) * ((1 << world) - 1));
        right = values[i] == float_to_bf16(want);
      }
    }
    good[static_cast<size_t>(rank)] = right;
    cudaFree(x);
    if (stream) cudaStreamDestroy(stream);
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) threads.emplace_back(work, rank);
  for (std::thread& thread : threads) thread.join();
  return std::count(good.begin(), good.end(), 1) == world;
}

bool Peers::takes(const Tensor& x) const {
  return x.dtype == DType::kBF16 && x.contiguous() && x.size() % 2 == 0 && x.size() / 2 <= kPeerWords &&
         reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
}

void Peers::all_reduce(int rank, Tensor x, cudaStream_t stream) const {
  sum_over_peers(stream, views_[static_cast<size_t>(rank)], x.data, x.size() / 2, 0);
}

}  // namespace gemma4::cuda
