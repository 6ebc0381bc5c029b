// Access: who may ask this server what. API keys, other sites' pages (CORS), and names that were made to point here
// (DNS rebinding).
#pragma once

#include <optional>
#include <string>

#include "server/json.h"
#include "server/server.h"

namespace gemma4 {

// Why a request is refused; nothing where it is not. `open`: this address needs no key.
std::optional<ApiError> check_access(const HttpRequest& request, const ServerOptions& options, bool open);

// Lets the page of an allowed origin read the answer; `preflight`: also tells it what it may send.
void add_cors(const HttpRequest& request, const ServerOptions& options, bool preflight, HttpResponse& response);

}  // namespace gemma4
