// What a model does for the first time: memory is touched, threads start, a GPU's graphs are recorded.
#pragma once

#include "model/model.h"

namespace gemma4 {

// Computes a few rows and drops them, so that the first request takes no longer than the next one. To be called before
// any sequence has pages. Throws what Model::forward() throws.
void warm_up(Model& model);

}  // namespace gemma4
