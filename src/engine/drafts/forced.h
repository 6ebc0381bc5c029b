// Which token does a grammar force? Where a mask allows one token alone, the sampler will draw it: it is a draft that
// costs nothing and is always accepted. On a worker's thread.
#pragma once

#include <cstdint>
#include <span>

namespace gemma4 {

// The only token allowed by `mask` (Grammar::mask()); -1: none or several are.
int32_t forced_token(std::span<const uint32_t> mask);

}  // namespace gemma4
