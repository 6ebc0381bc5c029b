#include "server/endpoint.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/threads.h"
#include "server/access.h"

namespace gemma4 {
namespace {

constexpr int kFetchesMax = 8;  // requests that fetch images, or hold fetched ones until they are prepared

// Holds one of the places for requests with fetched images.
class FetchPlace {
 public:
  explicit FetchPlace(std::counting_semaphore<>& of) : of_(of) {
    if (!of_.try_acquire()) throw ApiError(503, "too many images are being fetched; try again later", "", "busy");
  }
  ~FetchPlace() { of_.release(); }
  FetchPlace(const FetchPlace&) = delete;
  FetchPlace& operator=(const FetchPlace&) = delete;

 private:
  std::counting_semaphore<>& of_;
};

// Watches a request while this exists.
class Watching {
 public:
  Watching(PreparationWatch& watch, PreparationWatch::Watched& watched) : watch_(watch), watched_(watched) {
    watch_.add(watched_);
  }
  ~Watching() { watch_.remove(watched_); }
  Watching(const Watching&) = delete;
  Watching& operator=(const Watching&) = delete;

 private:
  PreparationWatch& watch_;
  PreparationWatch::Watched& watched_;
};

std::function<void(const std::string& line)> warning_writer(const ServerOptions& options) {
  if (options.log == RequestLog::kOff) return nullptr;
  return options.log_line ? options.log_line : log_to_standard_error;
}

}  // namespace

// Of requests that are prepared at a time. More than two cores can compute: a chat that needs a few milliseconds then
// gets its share of a core from the operating system beside requests that take seconds, and need not wait until one of
// them comes to a place where it makes way.
constexpr int kTurnsLeast = 16;

ServerState::ServerState(Engine& e, const ServerOptions& o)
    : engine(e),
      options(o),
      preparing(std::max(kTurnsLeast, ThreadPool::threads_for(0)) + 1, ThreadPool::threads_for(0) + 1),
      fetching(kFetchesMax),
      warnings(warning_writer(o)) {
  context.models = options.models;
  context.any_model = options.any_model;
  context.image_budget_max = engine.options().image_budget_max;
  context.max_seq_len = engine.options().max_seq_len;
  context.started = unix_time();
  context.decode = [&e](const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      if (id >= e.tokenizer().vocab_size()) throw Error("token id " + std::to_string(id) + " is not in the vocabulary");
    }
    return e.tokenizer().decode(ids, false);
  };
}

// Waiting for another host, or for other requests to start, takes long, so the turn is given back meanwhile. The
// fetched images of one request may together be as large as its body may be.
void prepare(ServerState& server, const HttpRequest& request, const std::function<Parse>& parse, size_t more) {
  PreparationWatch::Watched watched;
  watched.alive = request.alive;
  watched.deadline =
      std::chrono::steady_clock::now() + std::chrono::ceil<std::chrono::steady_clock::duration>(
                                             std::chrono::duration<double>(server.options.request_seconds));
  const Watching watching(server.watch, watched);
  try {
    Turn turn(server.preparing, turn_of(request, server.options), *watched.cancellation, request.body.size() + more);
    ++server.metrics->preparations;
    ApiContext context = server.context;
    size_t left = server.options.http.body_bytes;
    std::optional<FetchPlace> fetching;
    context.fetch = [&](const std::string& url, const std::string& path) {
      turn.give_back();
      if (!fetching) fetching.emplace(server.fetching);
      std::string image = fetch_image(url, left, server.options.fetch, path);
      left -= image.size();
      turn.take();
      return image;
    };
    Preparation preparation;
    preparation.cancellation = watched.cancellation;
    preparation.make_way = [&] { turn.make_way(); };
    preparation.pause = [&](const std::function<void()>& wait) {
      turn.give_back();
      wait();
      turn.take();
    };
    parse(context, preparation);
  } catch (const CancelledError&) {
    if (watched.stopped) throw StoppingError("the server is stopping; this request was not begun");
    if (watched.late) throw ApiError(504, "the answer took longer than this server allows");
    throw ApiError(499, "the client has gone");
  }
}

HttpResponse json_response(const Json& json) {
  HttpResponse response;
  response.body = dump(json);
  return response;
}

}  // namespace gemma4
