// Can the cuda backend run here? Asked where the user names no backend.
#pragma once

#include <string>

namespace gemma4 {

// Why make_cuda(0) would throw, in words; empty where a GPU can be used.
std::string why_no_gpu();

}  // namespace gemma4
