#include "backend/backend.h"

namespace gemma4 {

std::unique_ptr<Backend> make_ref() { throw Error("the ref backend is being built"); }

}  // namespace gemma4
