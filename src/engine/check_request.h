// check_request: is every number of a Request in its range? Throws Error that names the first one that is not.
#pragma once

#include "engine/request.h"
#include "model/config.h"

namespace gemma4 {

void check_request(const Request& request, const Config& config);

}  // namespace gemma4
