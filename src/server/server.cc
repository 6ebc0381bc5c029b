#include "server/server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <semaphore>
#include <span>
#include <thread>

#include "server/access.h"
#include "server/answers.h"
#include "server/api/anthropic.h"
#include "server/api/openai.h"
#include "server/page.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kLook(200);         // how often a waiting thread looks whether its client is still there
constexpr size_t kStreamPiece = 64 << 10;  // bytes that are gathered for one write
constexpr int kFetching = 8;               // requests whose images are being fetched or decoded at a time
constexpr std::string_view kModelPath = "/v1/models/";

HttpResponse json_response(const Json& json) {
  HttpResponse response;
  response.body = dump(json);
  return response;
}

bool speaks_anthropic(const HttpRequest& request) {
  return request.path.starts_with("/v1/messages") || !request.header("anthropic-version").empty();
}

Clock::duration seconds(double count) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
}

// What went wrong, in terms of HTTP. DeviceError is told apart by the caller.
ApiError to_api_error(const std::exception& error) {
  if (const auto* api = dynamic_cast<const ApiError*>(&error)) return *api;
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
  struct Route {
    const char* method;
    const char* path;
    bool open;  // needs no API key
    HttpResponse (Impl::*handle)(HttpRequest&);
  };
  static std::span<const Route> routes();

  Impl(Engine& engine, const ServerOptions& options);

  std::optional<HttpResponse> gate(const HttpRequest& request);
  HttpResponse handle(HttpRequest& request);
  HttpResponse refuse(const HttpRequest& request, const ApiError& error);
  HttpResponse finish(const HttpRequest& request, HttpResponse response);

  HttpResponse chat(HttpRequest& request) { return generate(request, parse_chat); }
  HttpResponse completions(HttpRequest& request) { return generate(request, parse_completions); }
  HttpResponse responses(HttpRequest& request) { return generate(request, parse_responses); }
  HttpResponse messages(HttpRequest& request) { return generate(request, parse_messages); }
  HttpResponse count_tokens(HttpRequest& request);
  HttpResponse models(HttpRequest& request);
  HttpResponse tokenize(HttpRequest& request);
  HttpResponse detokenize(HttpRequest& request);
  HttpResponse health(HttpRequest& request);
  HttpResponse show_metrics(HttpRequest& request);
  HttpResponse page(HttpRequest& request);

  template <typename Read>
  auto prepared(const Read& read);
  HttpResponse generate(HttpRequest& request, Call (*parse)(const Json&, const ApiContext&));
  std::vector<Choice> collect(Answers& answers, size_t count, const HttpRequest& request);
  void stream(const StreamSpelling& spelling, Answers& answers, HttpWriter& writer);
  void check_end(const Event& event);
  const Route* find_route(const HttpRequest& request, bool any_method) const;
  Json model_json(const std::string& name, bool anthropic) const;

  Engine& engine;
  const ServerOptions options;
  ApiContext context;
  std::shared_ptr<Metrics> metrics = std::make_shared<Metrics>();
  // Reading a request (JSON, pictures) computes; as many may as there are cores, so that all else stays quick.
  std::counting_semaphore<> preparing, fetching{kFetching};
  std::atomic<bool> stopping = false, device_failed = false;
  std::unique_ptr<HttpServer> http;
};

std::span<const Server::Impl::Route> Server::Impl::routes() {
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/chat/completions", false, &Impl::chat},
      {"POST", "/v1/completions", false, &Impl::completions},
      {"POST", "/v1/responses", false, &Impl::responses},
      {"POST", "/v1/messages", false, &Impl::messages},
      {"POST", "/v1/messages/count_tokens", false, &Impl::count_tokens},
      {"GET", "/v1/models", false, &Impl::models},
      {"POST", "/tokenize", false, &Impl::tokenize},
      {"POST", "/detokenize", false, &Impl::detokenize},
      {"GET", "/metrics", false, &Impl::show_metrics},
      {"GET", "/health", true, &Impl::health},
  };
  return kRoutes;
}

Server::Impl::Impl(Engine& e, const ServerOptions& o)
    : engine(e), options(o), preparing(std::max(2u, std::thread::hardware_concurrency())) {
  context.models = options.models;
  context.image_budget_max = engine.options().image_budget_max;
  context.max_seq_len = engine.options().max_seq_len;
  context.started = unix_time();
  HttpHandlers handlers;
  handlers.gate = [this](const HttpRequest& request) { return gate(request); };
  handlers.handle = [this](HttpRequest& request) { return handle(request); };
  handlers.refuse = [this](const HttpRequest& request, int status, const std::string& message) {
    return finish(request, refuse(request, ApiError(status, message)));
  };
  http = std::make_unique<HttpServer>(options.http, std::move(handlers));
}

// Requests and refusals.

const Server::Impl::Route* Server::Impl::find_route(const HttpRequest& request, bool any_method) const {
  static constexpr Route kPage = {"GET", "/", true, &Impl::page};
  static constexpr Route kModel = {"GET", "/v1/models/", false, &Impl::models};
  for (const Route& route : routes()) {
    if (request.path == route.path && (any_method || request.method == route.method)) return &route;
  }
  if (!any_method && request.method != "GET") return nullptr;
  if (request.path.starts_with(kModelPath)) return &kModel;
  const bool ours = std::ranges::any_of(page_files(), [&](const PageFile& f) { return f.path == request.path; });
  return ours ? &kPage : nullptr;
}

std::optional<HttpResponse> Server::Impl::gate(const HttpRequest& request) {
  const auto refused = [&](const ApiError& error) { return finish(request, refuse(request, error)); };
  const Route* route = find_route(request, request.method == "OPTIONS");
  if (const auto error = check_access(request, options, route != nullptr && route->open)) return refused(*error);
  if (route != nullptr) return std::nullopt;
  if (find_route(request, true)) {
    return refused(ApiError(405, "the method " + request.method + " does not go with " + request.path));
  }
  return refused(ApiError(404, "there is nothing at '" + request.path.substr(0, 200) + "'"));
}

HttpResponse Server::Impl::handle(HttpRequest& request) {
  if (request.method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    add_cors(request, options, true, response);
    return response;
  }
  try {
    return finish(request, (this->*find_route(request, false)->handle)(request));
  } catch (const DeviceError& error) {
    device_failed = true;
    return finish(request, refuse(request, to_api_error(error)));
  } catch (const std::exception& error) {
    return finish(request, refuse(request, to_api_error(error)));
  }
}

HttpResponse Server::Impl::refuse(const HttpRequest& request, const ApiError& error) {
  HttpResponse response = json_response(speaks_anthropic(request) ? anthropic_error(error) : openai_error(error));
  response.status = error.status;
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse Server::Impl::finish(const HttpRequest& request, HttpResponse response) {
  const Route* route = find_route(request, true);
  metrics->answered(route != nullptr ? route->path : "other", response.status);
  const std::string id = make_id("req_");
  response.headers.emplace_back("X-Request-Id", id);  // as OpenAI's client reads it
  response.headers.emplace_back("Request-Id", id);    // as Anthropic's does
  response.headers.emplace_back("X-Content-Type-Options", "nosniff");
  add_cors(request, options, false, response);
  return response;
}

// Answers.

// Has a turn of a semaphore while it lives.
class Turn {
 public:
  explicit Turn(std::counting_semaphore<>& of) : of_(of) { of_.acquire(); }
  Turn(std::counting_semaphore<>& of, const char* busy) : of_(of) {
    if (!of_.try_acquire()) throw ApiError(503, busy, "", "busy");
  }
  ~Turn() { of_.release(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::counting_semaphore<>& of_;
};

// Calls read(context) in a turn of `preparing`. Fetching an image waits for others, so it gives that turn back
// meanwhile; the fetched images of one request may be as large as its body, and only so many requests hold such images.
template <typename Read>
auto Server::Impl::prepared(const Read& read) {
  ApiContext own = context;
  size_t left = options.http.body_bytes;
  std::optional<Turn> fetch_turn, turn(std::in_place, preparing);
  own.fetch = [&](const std::string& url, const std::string& path) {
    turn.reset();
    if (!fetch_turn) fetch_turn.emplace(fetching, "too many images are being fetched; try again later");
    std::string image = fetch_image(url, left, options.fetch, path);
    left -= image.size();
    turn.emplace(preparing);
    return image;
  };
  return read(own);
}

HttpResponse Server::Impl::generate(HttpRequest& request, Call (*parse)(const Json&, const ApiContext&)) {
  if (stopping) throw StoppingError("the server is stopping and takes no new requests");
  auto call = std::make_shared<Call>();
  std::shared_ptr<Answers> answers;
  prepared([&](const ApiContext& own) {
    *call = parse(parse_body(request.body), own);
    std::string().swap(request.body);
    answers = std::make_shared<Answers>(engine, metrics, call->requests, call->one_tool_call);
    std::vector<Request>().swap(call->requests);
  });
  request.held.reset();
  HttpResponse response;
  if (!call->stream) {
    response.body = call->spelling.whole(collect(*answers, answers->choices(), request));
    return response;
  }
  response.content_type = "text/event-stream";
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("X-Accel-Buffering", "no");  // proxies must not gather it
  response.stream = [this, call, answers](HttpWriter& writer) { stream(call->spelling, *answers, writer); };
  return response;
}

// Throws where the event says that there will be no answer.
void Server::Impl::check_end(const Event& event) {
  if (event.type == Event::kError) {
    device_failed = device_failed || event.device;
    throw ApiError(500, event.text, "", event.device ? "device_failed" : "engine_failed");
  }
  if (event.type == Event::kDone && event.finish == Finish::kCancelled) {
    throw ApiError(503, "the server is stopping; this answer is not complete", "", "stopping");
  }
}

static void add_event(Choice& choice, Event event) {
  if (event.type != Event::kThinking) {
    std::ranges::move(event.logprobs, std::back_inserter(choice.logprobs));
  }
  switch (event.type) {
    case Event::kText:
      choice.text += event.text;
      break;
    case Event::kThinking:
      choice.thinking += event.text;
      break;
    case Event::kToolCall:
      choice.tool_calls.push_back(std::move(event.tool_call));
      break;
    default:
      choice.finish = event.finish;
      choice.stop = event.stop;
      choice.usage = event.usage;
  }
}

std::vector<Choice> Server::Impl::collect(Answers& answers, size_t count, const HttpRequest& request) {
  const auto deadline = Clock::now() + seconds(options.request_seconds);
  std::vector<Choice> choices(count);
  auto looked = Clock::now();
  while (!answers.over()) {
    if (auto next = answers.next(kLook)) {
      check_end(next->second);
      add_event(choices[next->first], std::move(next->second));
    }
    if (Clock::now() - looked < kLook) continue;
    looked = Clock::now();
    if (!request.alive()) throw ApiError(499, "the client has gone");
    if (looked > deadline) throw ApiError(504, "the answer took longer than this server allows");
  }
  return choices;
}

void Server::Impl::stream(const StreamSpelling& spelling, Answers& answers, HttpWriter& writer) {
  ++metrics->streams;
  const std::shared_ptr<void> count(nullptr, [this](void*) { --metrics->streams; });
  const auto deadline = Clock::now() + seconds(options.request_seconds);
  auto wrote = Clock::now();
  try {
    std::string out = spelling.begin();
    while (!answers.over()) {
      // What is there already goes out in one piece.
      auto next = answers.next(out.empty() ? kLook : milliseconds(0));
      if (next) {
        check_end(next->second);
        out += spelling.piece(next->first, next->second);
        if (out.size() < kStreamPiece) continue;
      }
      const auto now = Clock::now();
      if (now > deadline) throw ApiError(504, "the answer took longer than this server allows");
      if (out.empty() && now - wrote > seconds(options.ping_seconds)) out = spelling.ping;
      if (out.empty() && !writer.alive()) return;
      if (out.empty()) continue;
      if (!writer.write(out)) return;
      out.clear();
      wrote = now;
    }
    writer.write(out + spelling.end());
  } catch (const ApiError& error) {
    writer.write(spelling.error(error));
  }
}

// The smaller routes.

HttpResponse Server::Impl::count_tokens(HttpRequest& request) {
  return prepared([&](const ApiContext& own) {
    return json_response({{"input_tokens", engine.count_tokens(parse_count_tokens(parse_body(request.body), own))}});
  });
}

Json Server::Impl::model_json(const std::string& name, bool anthropic) const {
  Json json = {{"id", name},
               {"object", "model"},
               {"created", context.started},
               {"owned_by", "gemma4"},
               {"max_model_len", context.max_seq_len},
               {"vision", engine.options().vision},
               {"image_budget", engine.options().image_budget},
               {"image_budget_max", context.image_budget_max}};
  if (anthropic) json.update({{"type", "model"}, {"display_name", name}, {"created_at", "1970-01-01T00:00:00Z"}});
  return json;
}

HttpResponse Server::Impl::models(HttpRequest& request) {
  const bool anthropic = speaks_anthropic(request);
  if (request.path.starts_with(kModelPath)) {
    const std::string name = request.path.substr(kModelPath.size());
    if (std::ranges::find(context.models, name) == context.models.end()) {
      throw ApiError(404, "the model '" + name.substr(0, 200) + "' is not served here", "model", "model_not_found");
    }
    return json_response(model_json(name, anthropic));
  }
  Json json = {{"object", "list"}, {"data", Json::array()}};
  for (const std::string& name : context.models) json["data"].push_back(model_json(name, anthropic));
  if (anthropic) {
    json.update({{"has_more", false}, {"first_id", context.models.front()}, {"last_id", context.models.back()}});
  }
  return json_response(json);
}

HttpResponse Server::Impl::tokenize(HttpRequest& request) {
  std::vector<int32_t> ids = prepared([&](const ApiContext& own) {
    const Json json = parse_body(request.body);
    Fields body(json, "");
    if (body.find("model")) check_model(body, own);
    if (body.find("messages")) {
      Request prompt = parse_chat_prompt(body, own);
      prompt.chat.add_generation_prompt = body.boolean("add_generation_prompt").value_or(true);
      body.done();
      return engine.prompt_ids(prompt);
    }
    const std::string text = body.required_string("prompt");
    const bool special = body.boolean("add_special_tokens").value_or(true);
    body.done();
    Request prompt;
    prompt.raw = text;
    return special ? engine.prompt_ids(prompt) : engine.tokenizer().encode(text, true);
  });
  const size_t count = ids.size();
  return json_response({{"count", count}, {"max_model_len", context.max_seq_len}, {"tokens", std::move(ids)}});
}

HttpResponse Server::Impl::detokenize(HttpRequest& request) {
  const Json json = parse_body(request.body);
  Fields body(json, "");
  if (body.find("model")) check_model(body, context);
  std::vector<int32_t> ids;
  for (const Json& id : expect_array(body.require("tokens"), "tokens")) {
    if (!id.is_number_integer() || id < 0 || id >= engine.tokenizer().vocab_size()) {
      fail_at("tokens", "holds " + dump(id).substr(0, 40) + ", which is no token id");
    }
    ids.push_back(id.get<int32_t>());
  }
  body.done();
  return json_response({{"prompt", engine.tokenizer().decode(ids, false)}});
}

HttpResponse Server::Impl::health(HttpRequest&) {
  const char* status = device_failed ? "failed" : stopping ? "stopping" : "ok";
  HttpResponse response = json_response({{"status", status}});
  if (device_failed || stopping) response.status = 503;
  return response;
}

HttpResponse Server::Impl::show_metrics(HttpRequest&) {
  HttpResponse response;
  response.content_type = "text/plain; version=0.0.4";
  response.body = metrics->text(engine.stats(), http->stats());
  return response;
}

HttpResponse Server::Impl::page(HttpRequest& request) {
  const auto file = std::ranges::find(page_files(), request.path, &PageFile::path);
  HttpResponse response;
  response.content_type = std::string(file->type) + "; charset=utf-8";
  response.body = file->bytes;
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("Referrer-Policy", "no-referrer");
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  return response;
}

// The public face.

Server::Server(Engine& engine, const ServerOptions& options) : impl_(std::make_unique<Impl>(engine, options)) {
  CHECK(!options.models.empty());
}
Server::~Server() { stop(0); }

int Server::port() const { return impl_->http->port(); }

bool Server::device_failed() const { return impl_->device_failed; }

void Server::refuse_new() { impl_->stopping = true; }

void Server::stop(double seconds) {
  impl_->stopping = true;
  impl_->engine.stop(seconds);  // every answer is over after this
  impl_->http->stop(5);         // what is left to send is short
}

}  // namespace gemma4
