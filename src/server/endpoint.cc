#include "server/endpoint.h"

#include <algorithm>
#include <optional>
#include <thread>

namespace gemma4 {
namespace {

constexpr int kFetchesMax = 8;  // requests that fetch images, or hold fetched ones until they are prepared

// Holds a permit of a semaphore.
class Permit {
 public:
  explicit Permit(std::counting_semaphore<>& of) : of_(of) { of_.acquire(); }
  Permit(std::counting_semaphore<>& of, const char* busy) : of_(of) {
    if (!of_.try_acquire()) throw ApiError(503, busy, "", "busy");
  }
  ~Permit() { of_.release(); }
  Permit(const Permit&) = delete;
  Permit& operator=(const Permit&) = delete;

 private:
  std::counting_semaphore<>& of_;
};

}  // namespace

ServerState::ServerState(Engine& e, const ServerOptions& o)
    : engine(e), options(o), preparing(std::max(2u, std::thread::hardware_concurrency())), fetching(kFetchesMax) {
  context.models = options.models;
  context.image_budget_max = engine.options().image_budget_max;
  context.max_seq_len = engine.options().max_seq_len;
  context.started = unix_time();
}

// Fetching an image waits for another host, so the permit of `preparing` is released meanwhile. The fetched images of
// one request may together be as large as its body may be.
void prepare(ServerState& server, const std::function<void(const ApiContext&)>& parse) {
  ApiContext context = server.context;
  size_t left = server.options.http.body_bytes;
  std::optional<Permit> fetching, preparing(std::in_place, server.preparing);
  context.fetch = [&](const std::string& url, const std::string& path) {
    preparing.reset();
    if (!fetching) fetching.emplace(server.fetching, "too many images are being fetched; try again later");
    std::string image = fetch_image(url, left, server.options.fetch, path);
    left -= image.size();
    preparing.emplace(server.preparing);
    return image;
  };
  parse(context);
}

HttpResponse json_response(const Json& json) {
  HttpResponse response;
  response.body = dump(json);
  return response;
}

}  // namespace gemma4
