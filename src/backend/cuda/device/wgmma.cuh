// Warpgroup products (wgmma, sm_90a): d [64, N] += a [64, 16] b [16, N] with float32 sums, for the prefill GEMM (bf16)
// and for attention (attention_t). Lane layouts of d, and of a in registers: those of mma.m16n8k16 (device/mma.cuh),
// where warp w of the group holds rows 16 w ... The products run asynchronously: between group_fence() and group_wait()
// the registers of d and a must not be touched. Source: PTX ISA, "Asynchronous warpgroup level matrix instructions".
// Tiles of attention lie in shared memory without swizzle, as core matrices of 8 rows x 16 bytes, each of them
// contiguous: 8-element vector c of row r of a tile of R rows begins at byte c * R * 16 + r / 8 * 128 + r % 8 * 16.
// Read along its rows such a tile is a K-major operand (q, keys), read across them an MN-major one (values).
#pragma once

#include <cstdint>

#include "backend/cuda/device/element.cuh"
#include "backend/cuda/device/shared.cuh"

// Code for other devices is compiled too but never runs: the launchers check the device first.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUP_ASM(...) __trap()
#else
#define WARPGROUP_ASM(...) asm volatile(__VA_ARGS__)
#endif

#define FLOATS4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define FLOATS16(d, i) FLOATS4(d, i), FLOATS4(d, i + 1), FLOATS4(d, i + 2), FLOATS4(d, i + 3)
#define FLOATS32(d, i) FLOATS16(d, i), FLOATS16(d, i + 4)
#define FLAT4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLAT16(d, i) FLAT4(d, i), FLAT4(d, i + 4), FLAT4(d, i + 8), FLAT4(d, i + 12)

// Registers written before the fence may be read by wgmma instructions issued after it.
__device__ __forceinline__ void group_fence() { WARPGROUP_ASM("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { WARPGROUP_ASM("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most kPending committed groups still run.
template <int kPending>
__device__ __forceinline__ void group_wait() {
  WARPGROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Makes this thread's writes to shared memory visible to wgmma; a barrier must follow.
__device__ __forceinline__ void fence_async() { WARPGROUP_ASM("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving uses of these registers across wgmma instructions that still write them.
template <int kTiles>
__device__ __forceinline__ void pin(float (&d)[kTiles][4]) {
#pragma unroll
  for (int t = 0; t < kTiles; ++t) asm volatile("" : FLOATS4(d, t)::"memory");
}

// The descriptor of a tile of rows of 64 bf16, 128 bytes each, as TMA writes it with a 128-byte swizzle; 1024-byte
// aligned. For columns 16 i .. of the tile, add 2 i. Fields: PTX ISA, "Matrix Descriptor Format".
__device__ __forceinline__ uint64_t wgmma_tile(uint32_t shared_address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32,
                     kUnused = uint64_t{1} << 16;
  return kSwizzle128 | kEightRows | kUnused | (shared_address >> 4 & 0x3fff);
}

// d [64, N] += a [64, 16] b [16, N], bf16 operands; where `add` is 0, d is overwritten. d[4 j + e] holds columns
// 8 j + 2 c + e % 2 of row g + 8 (e / 2).
__device__ __forceinline__ void wgmma_bf16(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int add) {
  WARPGROUP_ASM(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "{%16, %17, %18, %19}, %20, add, 1, 1, 0;\n}\n"
      : FLAT16(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ __forceinline__ void wgmma_bf16(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add) {
  WARPGROUP_ASM(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}\n"
      : FLAT16(d, 0), FLAT16(d, 16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], const uint32_t (&a)[4], uint64_t b, int add) {
  WARPGROUP_ASM(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, 0;\n}\n"
      : FLAT16(d, 0), FLAT16(d, 16), FLAT16(d, 32), FLAT16(d, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

// The descriptor of an attention tile: its address, and the strides in bytes between core matrices, along the depth of
// the product and across it. Which of the two is `leading` differs between K-major and MN-major operands.
__device__ __forceinline__ uint64_t tile_descriptor(const void* begin, uint32_t leading, uint32_t stride) {
  return static_cast<uint64_t>((shared_address(begin) & 0x3ffff) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32;
}

// d[64, N] = a b (`add` false) or d + a b; both operands K-major in shared memory.
__device__ __forceinline__ void multiply_shared(float (&d)[4][4], uint64_t a, uint64_t b, bool add) {
  WARPGROUP_ASM(
      "{.reg .pred p; setp.ne.b32 p, %18, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." ATTENTION_OPERANDS
      " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1, 0, 0;}"
      : FLOATS16(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
__device__ __forceinline__ void multiply_shared(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
  WARPGROUP_ASM(
      "{.reg .pred p; setp.ne.b32 p, %34, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." ATTENTION_OPERANDS
      " {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;}"
      : FLOATS32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// d[64, 72] += a b; a in registers, b MN-major in shared memory.
__device__ __forceinline__ void multiply_registers(float (&d)[9][4], const uint32_t (&a)[4], uint64_t b) {
  WARPGROUP_ASM("wgmma.mma_async.sync.aligned.m64n72k16.f32." ATTENTION_OPERANDS
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
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." ATTENTION_OPERANDS
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
#undef FLAT4
#undef FLAT16
#undef WARPGROUP_ASM
