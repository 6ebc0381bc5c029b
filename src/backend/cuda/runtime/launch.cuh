// Launching kernels with programmatic dependent launch: while a kernel drains, the next kernel of the stream may be set
// up and may prefetch data that no kernel of the pass writes (weights). One rule makes it safe: in every kernel
// launched with launch(), each thread that touches memory which an earlier kernel wrote or still reads calls
// grid_wait() first. grid_wait() returns when all earlier grids are complete and their writes are visible.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "backend/cuda/runtime/device_profile.h"
#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {

// Waits for all earlier kernels of the stream. A no-op below sm_90 and without programmatic launch.
__device__ __forceinline__ void grid_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel be set up once every CTA of this grid has called it or ended. It orders no memory accesses.
__device__ __forceinline__ void grid_release() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Of the devices of this process.
inline const DeviceProfile& launch_profile() {
  static const DeviceProfile profile = [] {
    int device = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    return device_profile(device);
  }();
  return profile;
}

template <typename... Params, typename... Args>
void launch(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Params...),
            Args&&... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  const DeviceProfile& profile = launch_profile();
  config.numAttrs = profile.dependent_launch ? 1 : 0;
  if (profile.shared_card != profile.shared_max && shared_bytes > 0) {
    config.dynamicSmemBytes = static_cast<size_t>(shared_claim(profile, static_cast<int>(shared_bytes)));
    CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(config.dynamicSmemBytes)));
  }
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...));
}

// Raises a kernel's limit of dynamic shared memory. Call it before a launch that needs more than 48 KB.
template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
}

// The same, once for each device. `done` is a static variable of the caller, one for each kernel. `carveout`: the
// percentage of an SM's L1 that becomes shared memory, for kernels of which several CTAs share an SM.
struct AllowedOn {
  std::atomic<uint64_t> devices{0};  // bit d: device d
};
template <typename Kernel>
void allow_shared_once(Kernel* kernel, size_t bytes, AllowedOn& done, int carveout = cudaSharedmemCarveoutDefault) {
  int device = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (done.devices.load(std::memory_order_relaxed) & bit) return;
  allow_shared(kernel, bytes);
  if (carveout != cudaSharedmemCarveoutDefault)
    CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributePreferredSharedMemoryCarveout, carveout));
  done.devices.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace gemma4::cuda
