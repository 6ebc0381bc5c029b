// /health and /metrics.
#include "server/endpoint.h"

namespace gemma4::endpoints {

HttpResponse health(ServerState& server, HttpRequest&) {
  const bool stalled = server.engine.stats().stalled;
  const char* status = server.device_failed ? "failed" : server.stopping ? "stopping" : stalled ? "stalled" : "ok";
  HttpResponse response = json_response({{"status", status}});
  if (server.device_failed || server.stopping || stalled) response.status = 503;
  return response;
}

HttpResponse metrics(ServerState& server, HttpRequest&) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4";
  response.body = server.metrics->text(server.engine.stats(), server.http_stats());
  return response;
}

}  // namespace gemma4::endpoints
