#include "backend/backend.h"

namespace gemma4 {

std::unique_ptr<Backend> make_cpu(int) { throw Error("the cpu backend is being built"); }

}  // namespace gemma4
