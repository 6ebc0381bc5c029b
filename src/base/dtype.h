// Element types of tensors, in files and in memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemma4 {

enum class DType : uint8_t { kF32, kBF16, kF16, kI8, kU8, kI32, kU32, kI64 };

constexpr size_t dtype_size(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kI8:
    case DType::kU8:
      return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType type) {
  switch (type) {
    case DType::kF32:
      return "F32";
    case DType::kBF16:
      return "BF16";
    case DType::kF16:
      return "F16";
    case DType::kI8:
      return "I8";
    case DType::kU8:
      return "U8";
    case DType::kI32:
      return "I32";
    case DType::kU32:
      return "U32";
    case DType::kI64:
      return "I64";
  }
  return "?";
}

}  // namespace gemma4
