// Endpoint: the signature of the handler of a route, and what all handlers share. routes.cc names the handlers; they
// are in endpoints/.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <semaphore>

#include "engine/engine.h"
#include "server/allocator.h"
#include "server/completion_request.h"
#include "server/http/http.h"
#include "server/log/metrics.h"
#include "server/preparing.h"
#include "server/response_store.h"
#include "server/server.h"
#include "server/log/warning_log.h"

namespace gemma4 {

struct ServerState {
  ServerState(Engine& engine, const ServerOptions& options);

  Engine& engine;
  const ServerOptions options;
  ApiContext context;
  std::shared_ptr<Metrics> metrics = std::make_shared<Metrics>();
  // Limits how many requests are parsed at once (JSON, pictures) to the cores and one, so that the server stays
  // responsive.
  Turns preparing;
  PreparationWatch watch;
  std::counting_semaphore<> fetching;  // how many requests hold fetched images
  std::atomic<bool> stopping = false, device_failed = false;
  std::function<HttpStats()> http_stats;
  // The error answer to a request, in the form of its API.
  std::function<HttpResponse(const HttpRequest&, const std::exception&)> refusal;
  WarningLog warnings;
  ResponseStore responses;
  MemoryTrimmer memory;
};

// Answers a request. Throws ApiError, or any other exception, which becomes an error answer (server.cc).
using Handler = HttpResponse(ServerState& server, HttpRequest& request);

// Calls parse(context, preparation) while it holds a turn of `preparing`; context.fetch() fetches images for it. Ends
// with ApiError 499 soon after the client has gone, and with 504 after ServerOptions::request_seconds.
// `more`: bytes that parse() will read beside the body.
using Parse = void(const ApiContext& context, const Preparation& preparation);
void prepare(ServerState& server, const HttpRequest& request, const std::function<Parse>& parse,
             size_t more = 0);

HttpResponse json_response(const Json& json);

}  // namespace gemma4
