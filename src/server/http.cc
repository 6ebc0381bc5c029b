#include "server/http.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <deque>
#include <set>
#include <system_error>
#include <thread>

#include "base/check.h"
#include "base/mutex.h"
#include "server/connection.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

// The library's callbacks do not say for which connection they are. Each connection has a thread, so this is
// thread-local.
struct Serving {
  Connection* connection = nullptr;
  std::string
      path;  // as the client sent it; the library sees "/", because its router matches paths with regular expressions
  bool body_unread = false;
};
thread_local Serving serving;

int listen_on(const std::string& host, int port) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  const std::string service = std::to_string(port);
  if (const int code = getaddrinfo(host.c_str(), service.c_str(), &hints, &found)) {
    throw Error("cannot listen on " + host + ": " + gai_strerror(code));
  }
  int fd = -1, error = 0;
  for (const addrinfo* a = found; a != nullptr && fd < 0; a = a->ai_next) {
    fd = ::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    const int on = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (fd >= 0 && ::bind(fd, a->ai_addr, a->ai_addrlen) == 0 && ::listen(fd, 1024) == 0) break;
    error = errno;
    if (fd >= 0) ::close(fd);
    fd = -1;
  }
  freeaddrinfo(found);
  if (fd < 0) throw Error("cannot listen on " + host + " port " + service + ": " + std::strerror(error));
  return fd;
}

int bound_port(int fd) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof(storage);
  getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size);
  const bool v6 = storage.ss_family == AF_INET6;
  return ntohs(v6 ? reinterpret_cast<sockaddr_in6&>(storage).sin6_port
                  : reinterpret_cast<sockaddr_in&>(storage).sin_port);
}

HttpRequest translate(const httplib::Request& request) {
  HttpRequest out;
  out.method = request.method == "HEAD" ? "GET" : request.method;
  out.path = serving.path;
  for (const auto& [name, value] : request.headers) {
    std::string lower = name;
    std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
    out.headers.emplace(std::move(lower), value);
  }
  out.alive = [connection = serving.connection] { return connection->alive(); };
  return out;
}

// {status, message} if the body is not accepted.
std::optional<std::pair<int, std::string>> check_body(const HttpRequest& request, size_t limit) {
  const std::string length = request.header("content-length"), coding = request.header("transfer-encoding");
  const std::string type = request.header("content-type"), encoding = request.header("content-encoding");
  const auto fail = [](int status, std::string message) { return std::pair(status, std::move(message)); };
  if (!length.empty() && !coding.empty()) return fail(400, "Content-Length and Transfer-Encoding exclude each other");
  if (!coding.empty() && coding != "chunked") return fail(400, "the transfer encoding '" + coding + "' is not known");
  if (length.empty() && coding.empty()) return fail(411, "the request has neither Content-Length nor chunks");
  if (request.headers.count("content-length") > 1 || request.headers.count("transfer-encoding") > 1) {
    return fail(400, "the request gives its length twice");
  }
  if (length.find_first_not_of("0123456789") != std::string::npos) return fail(400, "Content-Length is not a number");
  if (length.size() > 18 || (!length.empty() && std::stoull(length) > limit)) {
    return fail(413, "the request's body is larger than the " + std::to_string(limit) + " bytes that are allowed");
  }
  if (!encoding.empty() && encoding != "identity") return fail(415, "compressed request bodies are not taken");
  if (type.find("multipart/") != std::string::npos) return fail(415, "the body must be JSON, not multipart/form-data");
  return std::nullopt;
}

void fill(httplib::Response& out, HttpResponse response, bool http_1_0) {
  out.status = response.status;
  for (const auto& [name, value] : response.headers) out.set_header(name.c_str(), value);
  if (!serving.connection->reusable) out.set_header("Connection", "close");
  if (!response.stream) return out.set_content(std::move(response.body), response.content_type.c_str());
  const auto provide = [stream = std::move(response.stream), connection = serving.connection](size_t,
                                                                                              httplib::DataSink& sink) {
    bool good = true;
    HttpWriter writer(
        [&](std::string_view bytes) {
          // An empty chunk would end the body.
          return good = good && (bytes.empty() || sink.write(bytes.data(), bytes.size()));
        },
        [&] { return good && connection->alive(); });
    try {
      stream(writer);
    } catch (const std::exception&) {
      good = false;
    }
    if (!good) connection->reusable = false;
    if (good) sink.done();
    return good;
  };
  if (http_1_0) {
    serving.connection->reusable = false;
    out.set_content_provider(response.content_type.c_str(), provide);
  } else {
    out.set_chunked_content_provider(response.content_type.c_str(), provide);
  }
}

}  // namespace

std::string HttpRequest::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

struct HttpServer::Impl : httplib::Server {
  Impl(const HttpOptions& options, HttpHandlers handlers);
  ~Impl() override;

  void accept_loop();
  bool hand_over(int fd) EXCLUDES(mutex);
  void turn_away(int fd);
  void work();
  void serve(int fd) EXCLUDES(mutex);
  bool serve_one(Connection& connection);
  void respond(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader* reader);
  HttpResponse answer(const httplib::Request& request, const httplib::ContentReader* reader);
  std::optional<std::pair<int, std::string>> read_body(HttpRequest& request, const httplib::ContentReader& reader);
  void stop_serving(double seconds);

  const HttpOptions options;
  const HttpHandlers handlers;
  int listener = -1, wake = -1, bound = 0;
  std::thread acceptor;

  Mutex mutex;
  CondVar work_ready, all_gone;
  std::deque<int> accepted_fds GUARDED_BY(mutex);
  std::vector<std::thread> workers GUARDED_BY(mutex);
  int idle_workers GUARDED_BY(mutex) = 0;
  std::set<Connection*> open GUARDED_BY(mutex);
  std::set<Connection*> idle GUARDED_BY(mutex);  // between two requests
  bool ended GUARDED_BY(mutex) = false;
  std::atomic<bool> stopping = false;
  std::atomic<int> connections = 0;
  std::atomic<uint64_t> accepted = 0, turned_away = 0;
  std::atomic<size_t> bodies = 0;
};

HttpServer::Impl::Impl(const HttpOptions& o, HttpHandlers h) : options(o), handlers(std::move(h)) {
  // The library makes a static set of HTTP's methods when it parses its first request. The system's library is not
  // instrumented, so ThreadSanitizer cannot see that this is synchronised. It is therefore made before any thread
  // starts.
  httplib::detail::BufferStream first;
  static_cast<httplib::Stream&>(first).write("GET / HTTP/1.0\r\n\r\n");
  bool closed = true;
  process_request(first, closed, closed, nullptr);
  listener = listen_on(options.host, options.port);
  bound = bound_port(listener);
  svr_sock_ = listener;  // the library checks it before each chunk of a stream
  wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  set_keep_alive_max_count(1000);
  set_keep_alive_timeout(static_cast<time_t>(options.idle_seconds));
  const auto plain = [this](const httplib::Request& request, httplib::Response& response) {
    respond(request, response, nullptr);
  };
  Get("/", plain);
  Options("/", plain);
  Post("/", [this](const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& reader) {
    respond(request, response, &reader);
  });
  set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
    const std::string& method = request.method;
    if (method == "GET" || method == "HEAD" || method == "POST" || method == "OPTIONS") {
      return HandlerResponse::Unhandled;
    }
    serving.connection->reusable = false;
    fill(response, handlers.refuse(translate(request), 405, "the method " + method + " is not served"), false);
    return HandlerResponse::Handled;
  });
  set_error_handler(HandlerWithResponse([this](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return HandlerResponse::Unhandled;
    serving.connection->reusable = false;
    const std::string message = response.status == 414   ? "the request's address is too long"
                                : response.status == 416 ? "the Range header is not well formed"
                                                         : "the request is not well formed HTTP";
    fill(response, handlers.refuse(translate(request), response.status, message), false);
    return HandlerResponse::Handled;
  }));
  acceptor = std::thread([this] { accept_loop(); });
}

HttpServer::Impl::~Impl() {
  stop_serving(0);
  ::close(wake);
}

// Accepting.

void HttpServer::Impl::accept_loop() {
  while (!stopping) {
    pollfd entries[2] = {{listener, POLLIN, 0}, {wake, POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) return;
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      // Out of file descriptors: without a pause the waiting connection would wake this thread again and again.
      if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      continue;
    }
    ++accepted;
    if (connections >= options.connections) {
      turn_away(fd);
      continue;
    }
    if (!hand_over(fd)) turn_away(fd);
  }
}

// False if no thread is free and none can be started.
bool HttpServer::Impl::hand_over(int fd) {
  const MutexLock lock(mutex);
  if (idle_workers <= static_cast<int>(accepted_fds.size())) {
    try {
      workers.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      if (workers.empty()) return false;  // otherwise the next free thread takes it
    }
  }
  ++connections;
  accepted_fds.push_back(fd);
  work_ready.notify_one();
  return true;
}

// Must not block: it runs on the accepting thread.
void HttpServer::Impl::turn_away(int fd) {
  ++turned_away;
  HttpResponse response = handlers.refuse(HttpRequest(), 503, "too many connections are open; try again later");
  std::string text =
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: " + response.content_type +
      "\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: " + std::to_string(response.body.size()) +
      "\r\n\r\n" + response.body;
  char dropped[4096];
  while (::recv(fd, dropped, sizeof(dropped), MSG_DONTWAIT) == sizeof(dropped)) {
  }
  [[maybe_unused]] const ssize_t sent = ::send(fd, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  ::shutdown(fd, SHUT_WR);
  ::close(fd);
}

// Connections.

void HttpServer::Impl::work() {
  MutexLock lock(mutex);
  while (true) {
    ++idle_workers;
    while (!ended && accepted_fds.empty()) work_ready.wait(mutex);
    --idle_workers;
    if (accepted_fds.empty()) return;
    const int fd = accepted_fds.front();
    accepted_fds.pop_front();
    lock.unlock();
    serve(fd);
    lock.lock();
    --connections;
    if (connections == 0) all_gone.notify_all();
  }
}

void HttpServer::Impl::serve(int fd) {
  Connection connection(fd, options.write_seconds);
  {
    const MutexLock lock(mutex);
    open.insert(&connection);
  }
  serving = {&connection, "", false};
  for (int count = 0; count < 1000 && !stopping && connection.reusable; ++count) {
    {
      const MutexLock lock(mutex);
      idle.insert(&connection);
      if (stopping) break;
    }
    const bool came = connection.wait_for_request(count == 0 ? options.header_seconds : options.idle_seconds);
    {
      const MutexLock lock(mutex);
      idle.erase(&connection);
    }
    if (!came || !serve_one(connection)) break;
  }
  {
    const MutexLock lock(mutex);
    open.erase(&connection);
    idle.erase(&connection);
  }
  if (serving.body_unread) connection.drain(2 * options.body_bytes, 5);
  serving = {};
}

bool HttpServer::Impl::serve_one(Connection& connection) {
  connection.allow(options.header_bytes, options.header_seconds);
  // Near the limit of connections none is kept idle.
  const bool crowded = connections > options.connections - options.connections / 4;
  bool closed = crowded || stopping;
  const auto on_headers = [&](httplib::Request& request) {
    serving.path = request.path;
    request.path = "/";
    request.ranges.clear();                    // ranges are not supported
    request.headers.erase("Accept-Encoding");  // compression is not supported
    // The headers of chunks count too.
    connection.allow(2 * options.body_bytes + (64 << 10), options.body_seconds);
  };
  try {
    return process_request(connection, closed, closed, on_headers) && !closed && connection.reusable;
  } catch (const std::exception&) {
    return false;
  }
}

void HttpServer::Impl::respond(const httplib::Request& request, httplib::Response& response,
                               const httplib::ContentReader* reader) {
  fill(response, answer(request, reader), request.version == "HTTP/1.0");
}

HttpResponse HttpServer::Impl::answer(const httplib::Request& raw, const httplib::ContentReader* reader) {
  HttpRequest request = translate(raw);
  Connection& connection = *serving.connection;
  const auto close_unread = [&] {
    serving.body_unread = true;
    connection.reusable = false;
  };
  try {
    if (reader == nullptr &&
        (!request.header("content-length").empty() || !request.header("transfer-encoding").empty()) &&
        request.header("content-length") != "0") {
      close_unread();  // an unread body would be parsed as the next request
    }
    if (auto refused = handlers.gate(request)) {
      if (reader != nullptr) close_unread();
      return *std::move(refused);
    }
    if (reader != nullptr) {
      if (auto problem = read_body(request, *reader)) {
        close_unread();
        return handlers.refuse(request, problem->first, problem->second);
      }
    }
    return handlers.handle(request);
  } catch (const std::bad_alloc&) {
    return handlers.refuse(request, 503, "there is not enough memory for this request now");
  } catch (const std::exception& error) {
    return handlers.refuse(request, 500, std::string("internal error: ") + error.what());
  }
}

std::optional<std::pair<int, std::string>> HttpServer::Impl::read_body(HttpRequest& request,
                                                                       const httplib::ContentReader& reader) {
  if (auto problem = check_body(request, options.body_bytes)) return problem;
  const auto counted = std::make_shared<size_t>(0);
  request.held = std::shared_ptr<void>(nullptr, [this, counted](void*) { bodies -= *counted; });
  bool too_large = false, too_many = false;
  const bool read = reader([&](const char* data, size_t size) {
    too_large = request.body.size() + size > options.body_bytes;
    bodies += size;
    *counted += size;
    too_many = bodies > options.bodies_bytes;
    if (too_large || too_many) return false;
    request.body.append(data, size);
    return true;
  });
  if (too_large) {
    return std::pair(
        413, "the request's body is larger than the " + std::to_string(options.body_bytes) + " bytes that are allowed");
  }
  if (too_many) return std::pair(503, std::string("too many large requests are being read; try again later"));
  if (!read) return std::pair(400, std::string("the request's body did not arrive whole"));
  return std::nullopt;
}

void HttpServer::Impl::stop_serving(double seconds) {
  if (!stopping.exchange(true)) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake, &one, sizeof(one));
    acceptor.join();
    ::close(listener);
  }
  MutexLock lock(mutex);
  for (Connection* connection : idle) connection->shut();
  const auto deadline = Clock::now() + std::chrono::ceil<Clock::duration>(std::chrono::duration<double>(seconds));
  while (connections != 0 && all_gone.wait_until(mutex, deadline)) {
  }
  if (connections != 0) {
    for (Connection* connection : open) connection->shut();
    while (connections != 0) all_gone.wait(mutex);
  }
  ended = true;
  work_ready.notify_all();
  std::vector<std::thread> leaving = std::move(workers);
  workers.clear();
  lock.unlock();
  for (std::thread& worker : leaving) worker.join();
}

// HttpServer.

HttpServer::HttpServer(const HttpOptions& options, HttpHandlers handlers)
    : impl_(std::make_unique<Impl>(options, std::move(handlers))) {}
HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->bound; }

HttpStats HttpServer::stats() const { return {impl_->connections, impl_->accepted, impl_->turned_away}; }

void HttpServer::stop(double seconds) { impl_->stop_serving(seconds); }

}  // namespace gemma4
