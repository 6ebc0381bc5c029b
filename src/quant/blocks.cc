#include "quant/blocks.h"

#include "base/check.h"

namespace gemma4 {

void unpack_blocks(Format format, const uint8_t*, int64_t, float*) {
  throw Error("cannot read weights in format " + std::string(info(format).name));
}

}  // namespace gemma4
