// Warpgroup products for attention (sm_90a): d[64, N] += a[64, 16] b[16, N], attend_t in, float32 sums, asynchronous.
// Tiles in shared memory are stored without swizzle, as core matrices of 8 rows x 16 bytes that lie together: chunk c
// (8 elements) of row r of a tile of R rows stands at c * R * 16 + r / 8 * 128 + r % 8 * 16 bytes. Read along its rows
// such a tile is a K-major operand (q, keys), read across them an MN-major one (values). Lane layouts of d and of a in
// registers: those of mma.m16n8k16, warp w of the group holding rows 16w ... Source: PTX ISA, "Asynchronous warpgroup
// level matrix instructions".
#pragma once

#include <cstdint>

#include "backend/cuda/device/tile.cuh"

// Code for another device is compiled too but never run: attend() asks for the device first.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUP_ASM(...) __trap()
#else
#define WARPGROUP_ASM(...) asm volatile(__VA_ARGS__)
#endif

#define FLOATS4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define FLOATS16(d, i) FLOATS4(d, i), FLOATS4(d, i + 1), FLOATS4(d, i + 2), FLOATS4(d, i + 3)
#define FLOATS32(d, i) FLOATS16(d, i), FLOATS16(d, i + 4)

// A tile's descriptor: where it begins, and the strides in bytes between core matrices along the depth of the product
// and across it. Which of the two fields is which differs between K-major and MN-major operands.
__device__ __forceinline__ uint64_t tile_descriptor(const void* begin, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((shared_address(begin) & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32;
}

__device__ __forceinline__ void group_fence() { WARPGROUP_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { WARPGROUP_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void group_wait() {
  WARPGROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Makes this thread's writes to shared memory visible to the tensor cores' reads; a barrier must follow.
__device__ __forceinline__ void fence_async() { WARPGROUP_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving uses of registers across the asynchronous products that own them.
template <int kTiles>
__device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) asm volatile("" : FLOATS4(d, t)::"memory");
}

// d[64, N] = a b (`add` false) or d + a b; both operands K-major in shared memory.
__device__ __forceinline__ void multiply_shared(float (&d)[4][4], uint64_t a, uint64_t b, bool add) {
  WARPGROUP_ASM(
      "{.reg .pred p; setp.ne.b32 p, %18, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." ATTEND_OPERANDS
      " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1, 0, 0;}"
      : FLOATS16(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void multiply_shared(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
  WARPGROUP_ASM(
      "{.reg .pred p; setp.ne.b32 p, %34, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." ATTEND_OPERANDS
      " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}"
      : FLOATS32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// d[64, 72] += a b; a in registers, b MN-major in shared memory.
__device__ __forceinline__ void multiply_registers(float (&d)[9][4], const uint32_t (&a)[4], uint64_t b) {
  WARPGROUP_ASM("wgmma.mma_async.sync.aligned.m64n72k16.f32." ATTEND_OPERANDS
                " {"
                "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35"
                "}, {%36, %37, %38, %39}, %40, 1, 1, 1, 1;"
                : FLOATS32(d, 0), FLOATS4(d, 8)
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// d[64, 256] += a b; a in registers, b MN-major in shared memory.
__device__ __forceinline__ void multiply_registers(float (&d)[32][4], const uint32_t (&a)[4], uint64_t b) {
  WARPGROUP_ASM(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." ATTEND_OPERANDS
      " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
      "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "
      "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "
      "%118, %119, "
      "%120, %121, %122, %123, %124, %125, %126, %127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : FLOATS32(d, 0), FLOATS32(d, 8), FLOATS32(d, 16), FLOATS32(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FLOATS4
#undef FLOATS16
#undef FLOATS32
#undef WARPGROUP_ASM
