// The part of NCCL's binary interface that we use. It is stable since 2.10 (nccl.h of 2.10 to 2.28). It is declared
// here so that a build needs no NCCL; nccl_test.cc compares it with nccl.h if there is one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace gemma4::cuda::nccl {

using Comm = void*;  // ncclComm_t
struct UniqueId {    // ncclUniqueId
  char internal[128];
};
using Result = int;  // ncclResult_t
constexpr Result kSuccess = 0;
enum Type : int { kFloat32 = 7, kBFloat16 = 9 };  // ncclDataType_t
enum Reduction : int { kSum = 0 };                // ncclRedOp_t

using GetErrorString = const char* (*)(Result);
using CommInitAll = Result (*)(Comm*, int count, const int* devices);
using GetUniqueId = Result (*)(UniqueId*);
using CommInitRank = Result (*)(Comm*, int count, UniqueId, int rank);  // on the current device
using CommDestroy = Result (*)(Comm);
using CommAbort = Result (*)(Comm);
using AllReduce = Result (*)(const void* from, void* to, size_t count, Type, Reduction, Comm, cudaStream_t);
using Broadcast = Result (*)(const void* from, void* to, size_t count, Type, int root, Comm, cudaStream_t);
using Send = Result (*)(const void* from, size_t count, Type, int peer, Comm, cudaStream_t);
using Recv = Result (*)(void* to, size_t count, Type, int peer, Comm, cudaStream_t);
using GroupCall = Result (*)();

}  // namespace gemma4::cuda::nccl
