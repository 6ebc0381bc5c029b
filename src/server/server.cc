#include "server/server.h"

#include "server/access.h"
#include "server/api/anthropic.h"
#include "server/api/ollama.h"
#include "server/api/openai.h"
#include "server/curl.h"
#include "server/endpoint.h"
#include "server/routes.h"

namespace gemma4 {
namespace {

constexpr const char* kAddresses =
    "; this server has /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/models, /api/chat, "
    "/api/generate and /api/tags";

// The exception as an HTTP error. The caller handles DeviceError first.
ApiError to_api_error(const std::exception& error, Api api) {
  if (const auto* api = dynamic_cast<const ApiError*>(&error)) return *api;
  if (const auto* context = dynamic_cast<const ContextError*>(&error)) {
    return api == Api::kAnthropic ? anthropic_error_of(*context) : openai_error_of(*context);
  }
  if (dynamic_cast<const BusyError*>(&error)) return ApiError(429, error.what(), "", "queue_full");
  if (dynamic_cast<const StoppingError*>(&error)) return ApiError(503, error.what(), "", "stopping");
  if (dynamic_cast<const DeviceError*>(&error)) return ApiError(500, error.what(), "", "device_failed");
  if (dynamic_cast<const Error*>(&error)) return ApiError(400, error.what());
  if (dynamic_cast<const std::bad_alloc*>(&error)) {
    return ApiError(503, "there is not enough memory for this request now", "", "out_of_memory");
  }
  return ApiError(500, std::string("internal error: ") + error.what());
}

}  // namespace

struct Server::Impl {
  Impl(Engine& engine, const ServerOptions& options);

  std::optional<HttpResponse> gate(const HttpRequest& request);
  HttpResponse handle(HttpRequest& request);
  HttpResponse refuse(const HttpRequest& request, const ApiError& error);
  HttpResponse finish(const HttpRequest& request, HttpResponse response);
  void log(const HttpRequest& request, const std::string& id, HttpResponse& response);

  ServerState state;
  std::unique_ptr<HttpServer> http;
};

Server::Impl::Impl(Engine& engine, const ServerOptions& options) : state(engine, options) {
  state.http_stats = [this] { return http->stats(); };
  state.refusal = [this](const HttpRequest& request, const std::exception& error) {
    return refuse(request, to_api_error(error, api_of(request)));
  };
  HttpHandlers handlers;
  handlers.gate = [this](const HttpRequest& request) { return gate(request); };
  handlers.handle = [this](HttpRequest& request) { return handle(request); };
  handlers.refuse = [this](const HttpRequest& request, int status, const std::string& message) {
    return finish(request, refuse(request, ApiError(status, message)));
  };
  http = std::make_unique<HttpServer>(options.http, std::move(handlers));
}

std::optional<HttpResponse> Server::Impl::gate(const HttpRequest& request) {
  const auto refused = [&](const ApiError& error) { return finish(request, refuse(request, error)); };
  const Route* route = find_route(request, request.method == "OPTIONS");
  if (const auto error = check_access(request, state.options, route != nullptr && route->open)) {
    if (error->code == kHostNotAllowed && wants_html(request)) return finish(request, host_refusal_page(request));
    return refused(*error);
  }
  if (route != nullptr) return std::nullopt;
  if (find_route(request, true)) {
    return refused(ApiError(405, "the method " + request.method + " does not go with " + request.path +
                                     ", which takes " + methods_of(request.path)));
  }
  const std::string meant = near_route(request.path);
  return refused(ApiError(404, "there is nothing at '" + request.path.substr(0, 200) + "'" +
                                   (meant.empty() ? kAddresses : "; did you mean '" + meant + "'?")));
}

HttpResponse Server::Impl::handle(HttpRequest& request) {
  if (request.method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    add_cors(request, state.options, true, response);
    return response;
  }
  try {
    return finish(request, find_route(request, false)->handle(state, request));
  } catch (const DeviceError& error) {
    state.device_failed = true;
    return finish(request, refuse(request, to_api_error(error, api_of(request))));
  } catch (const std::exception& error) {
    return finish(request, refuse(request, to_api_error(error, api_of(request))));
  }
}

HttpResponse Server::Impl::refuse(const HttpRequest& request, const ApiError& error) {
  const Api api = api_of(request);
  HttpResponse response = json_response(api == Api::kAnthropic ? anthropic_error(error)
                                        : api == Api::kOllama  ? ollama_error(error)
                                                               : openai_error(error));
  response.status = error.status;
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

// Calls `then` when the answer is there: a stream's, when it has ended.
static void at_end(HttpResponse& response, std::function<void()> then) {
  if (!response.stream) return then();
  response.stream = [stream = std::move(response.stream), then = std::move(then)](HttpWriter& writer) {
    const std::shared_ptr<void> ends(nullptr, [&](void*) { then(); });
    stream(writer);
  };
}

// The line of a stream is written at its end.
void Server::Impl::log(const HttpRequest& request, const std::string& id, HttpResponse& response) {
  if (state.options.log == RequestLog::kOff || request.client.empty()) return;  // nobody could have asked yet
  AccessEntry entry = {request.method,  request.path,  request.client, id,
                       response.status, request.began, response.tokens};
  const auto write = [this](const AccessEntry& ended) {
    if (state.options.log == RequestLog::kErrors && !is_error(ended)) return;
    const std::string line = access_line(ended, std::chrono::system_clock::now(), std::chrono::steady_clock::now());
    state.options.log_line ? state.options.log_line(line) : log_to_standard_error(line);
  };
  at_end(response, [entry = std::move(entry), write] { write(entry); });
}

HttpResponse Server::Impl::finish(const HttpRequest& request, HttpResponse response) {
  const Route* route = find_route(request, true);
  state.metrics->answered(route != nullptr ? route->path : "other", response.status);
  const std::string id = make_id("req_");
  log(request, id, response);
  at_end(response, [this] { state.memory.request_ended(); });
  response.headers.emplace_back("X-Request-Id", id);  // read by OpenAI's client
  response.headers.emplace_back("Request-Id", id);    // read by Anthropic's client
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  add_cors(request, state.options, false, response);
  return response;
}

Server::Server(Engine& engine, const ServerOptions& options) : impl_(std::make_unique<Impl>(engine, options)) {
  CHECK(!options.models.empty());
  if (!options.fetch.hosts.empty()) system_curl();  // says now what is missing, not at the first request
}
Server::~Server() { stop(0); }

int Server::port() const { return impl_->http->port(); }

bool Server::device_failed() const { return impl_->state.device_failed; }

int Server::preparing() const { return impl_->state.watch.count(); }

void Server::refuse_new() { impl_->state.stopping = true; }

bool Server::stop(double seconds) {
  constexpr double kSending = 5;  // of the last answers takes little time
  impl_->state.stopping = true;
  impl_->state.engine.stop(seconds);  // all answers have ended after this
  impl_->state.watch.stop();
  const StoppingError why("the server is stopping; this request was not answered");
  return impl_->http->stop(kSending, impl_->refuse(HttpRequest(), to_api_error(why, Api::kOpenAi)));
}

}  // namespace gemma4
