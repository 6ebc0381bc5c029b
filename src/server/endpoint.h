// Endpoint: the signature of the handler of a route, and what all handlers share. routes.cc names the handlers; they
// are in endpoints/.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <semaphore>

#include "engine/engine.h"
#include "server/completion_request.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/server.h"

namespace gemma4 {

struct ServerState {
  ServerState(Engine& engine, const ServerOptions& options);

  Engine& engine;
  const ServerOptions options;
  ApiContext context;
  std::shared_ptr<Metrics> metrics = std::make_shared<Metrics>();
  // Limits how many requests are parsed at once (JSON, pictures) to the number of cores, so that the server stays
  // responsive, and how many requests hold fetched images.
  std::counting_semaphore<> preparing, fetching;
  std::atomic<bool> stopping = false, device_failed = false;
  std::function<HttpStats()> http_stats;
};

// Answers a request. Throws ApiError, or any other exception, which becomes an error answer (server.cc).
using Handler = HttpResponse(ServerState& server, HttpRequest& request);

// Calls parse(context) while it holds a permit of `preparing`; context.fetch() fetches images for it.
void prepare(ServerState& server, const std::function<void(const ApiContext&)>& parse);

HttpResponse json_response(const Json& json);

}  // namespace gemma4
