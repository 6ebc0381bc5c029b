#include "server/http/http.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"
#include "base/priority.h"
#include "server/http/connection.h"
#include "server/http/connection_table.h"
#include "server/http/http_format.h"
#include "server/http/http_parser.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

using Entry = ConnectionTable::Entry;
using Received = Connection::Received;

constexpr int kRequestsMax = 1000;  // of one connection
constexpr const char* kTooMany = "too many connections are open; try again later";

// One request on a connection, and its answer.
struct Exchange {
  Connection& connection;
  Entry& entry;
  HttpParser parser;
  HttpRequest request;
  bool last = false;         // the connection is closed after it
  bool body_unread = false;  // and what follows is not a request
};

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

void translate(const HttpHead& head, Connection& connection, HttpRequest& out) {
  out.method = head.method == "HEAD" ? "GET" : head.method;
  out.path = head.path;
  if (const size_t mark = head.target.find('?'); mark != std::string::npos) out.query = head.target.substr(mark + 1);
  for (const auto& [name, value] : head.fields) out.headers.emplace(name, value);
  out.network = connection.network();
  out.alive = [&connection] { return connection.alive(); };
}

using Problem = std::optional<std::pair<int, std::string>>;  // status and message

// A problem of the whole header, whatever it asks for.
Problem check_head(const HttpHead& head, const HttpRequest& request) {
  if (head.method != "GET" && head.method != "HEAD" && head.method != "POST" && head.method != "DELETE" &&
      head.method != "OPTIONS") {
    return std::pair(405, "the method " + head.method + " is not served");
  }
  const auto range = request.headers.find("range");
  if (range != request.headers.end() && !good_range(range->second)) {
    return std::pair(416, std::string("the Range header is not well formed"));
  }
  return std::nullopt;
}

std::string too_large(size_t limit) {
  return "the request's body is larger than the " + std::to_string(limit) + " bytes that are allowed";
}

// A reason not to read the body.
Problem check_body(const HttpHead& head, const HttpRequest& request, size_t limit) {
  const std::string type = request.header("content-type"), encoding = request.header("content-encoding");
  if (!head.chunked && !head.length) {
    return std::pair(411, std::string("the request has neither Content-Length nor chunks"));
  }
  if (head.length.value_or(0) > limit) return std::pair(413, too_large(limit));
  if (!encoding.empty() && encoding != "identity") {
    return std::pair(415, std::string("compressed request bodies are not taken"));
  }
  if (type.find("multipart/") != std::string::npos) {
    return std::pair(415, std::string("the body must be JSON, not multipart/form-data"));
  }
  return std::nullopt;
}

// Reads and parses until the parser leaves `stage`, or `sink` has enough of the body (false).
template <typename Sink>
Received read(Exchange& exchange, HttpParser::Stage stage, const Sink& sink) {
  Connection& connection = exchange.connection;
  while (exchange.parser.stage() == stage) {
    if (connection.buffered().empty()) {
      if (const Received received = connection.receive(); received != Received::kBytes) return received;
    }
    std::string_view piece;
    const size_t used = exchange.parser.parse(connection.buffered(), piece);
    if (!piece.empty() && !sink(piece)) break;
    connection.consume(used);
  }
  return Received::kBytes;
}

// False: the client has disconnected or does not read, or the handler failed.
bool write_stream(Connection& connection, const HttpResponse& response, bool chunked) {
  bool good = true;
  HttpWriter writer(
      [&](std::string_view bytes) {
        if (bytes.empty()) return good;  // an empty chunk would end the body
        return good = good && (chunked ? connection.write(http_chunk(bytes)) : connection.write(bytes));
      },
      [&] { return good && connection.alive(); });
  try {
    response.stream(writer);
  } catch (const std::exception&) {
    return false;  // the client sees that the end is missing
  }
  return good && (!chunked || connection.write(http_chunk("")));
}

ConnectionLimits connection_limits(const HttpOptions& options) {
  const int half = std::max(1, options.connections / 2);
  return {.connections = options.connections,
          .per_network = options.connections_per_address > 0 ? options.connections_per_address : half,
          .reserve = options.reserve};
}

}  // namespace

std::string HttpRequest::query_value(const std::string& name) const {
  for (size_t begin = 0; begin < query.size();) {
    const size_t end = std::min(query.find('&', begin), query.size());
    const std::string_view one = std::string_view(query).substr(begin, end - begin);
    if (one.starts_with(name) && one.substr(name.size()).starts_with('=')) {
      return std::string(one.substr(name.size() + 1));
    }
    begin = end + 1;
  }
  return "";
}

std::string HttpRequest::header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? "" : it->second;
}

struct HttpServer::Impl {
  Impl(const HttpOptions& options, HttpHandlers handlers);
  ~Impl();

  void accept_loop();
  bool hand_over(const std::shared_ptr<Entry>& entry) EXCLUDES(mutex);
  void turn_away(int fd);
  std::string busy_text();
  void wake_acceptor();
  void start_worker() REQUIRES(mutex);
  void work() EXCLUDES(mutex);
  bool retire() EXCLUDES(mutex);
  void serve(const std::shared_ptr<Entry>& entry);
  void serve_one(Exchange& exchange);
  std::optional<HttpResponse> answer(Exchange& exchange);
  std::optional<HttpResponse> read_head(Exchange& exchange);
  std::optional<HttpResponse> read_body(Exchange& exchange);
  bool hold(Exchange& exchange, size_t& counted, size_t bytes);
  void respond(Exchange& exchange, const HttpResponse& response);
  HttpResponse refuse(Exchange& exchange, int status, const std::string& message);
  void end_accepting();
  bool end_connections(double seconds, const std::string& last);
  void join_workers() EXCLUDES(mutex);

  const HttpOptions options;
  const HttpHandlers handlers;
  int listener = -1, wake = -1, bound = 0;
  std::thread acceptor;
  ConnectionTable table;

  Mutex mutex;
  CondVar work_ready;
  std::deque<std::shared_ptr<Entry>> accepted_entries GUARDED_BY(mutex);
  std::vector<std::thread> workers GUARDED_BY(mutex);
  std::thread retired GUARDED_BY(mutex);  // the last worker that left, or none
  int idle_workers GUARDED_BY(mutex) = 0;
  bool ended GUARDED_BY(mutex) = false;
  std::atomic<bool> stopping = false;
  std::atomic<uint64_t> accepted = 0, turned_away = 0;
  std::atomic<size_t> bodies = 0;
};

HttpServer::Impl::Impl(const HttpOptions& o, HttpHandlers h)
    : options(o), handlers(std::move(h)), table(connection_limits(o)) {
  listener = listen_on(options.host, options.port);
  bound = bound_port(listener);
  wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  acceptor = std::thread([this] { accept_loop(); });
}

HttpServer::Impl::~Impl() {
  end_accepting();
  table.shut_idle();
  while (!table.wait_until_empty(Clock::now() + std::chrono::seconds(1))) table.shut_all();
  join_workers();
  ::close(wake);
}

// Accepting.

void HttpServer::Impl::accept_loop() {
  while (!stopping) {
    pollfd entries[2] = {{listener, POLLIN, 0}, {wake, POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) return;
    if (entries[1].revents != 0) {
      uint64_t count;
      [[maybe_unused]] const ssize_t got = ::read(wake, &count, sizeof(count));
      const MutexLock lock(mutex);
      start_worker();
    }
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
      // Out of file descriptors: without a pause the waiting connection would wake this thread again and again.
      if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      continue;
    }
    ++accepted;
    const std::shared_ptr<Entry> entry = table.admit(fd);
    if (entry != nullptr && hand_over(entry)) continue;
    if (entry != nullptr) table.remove(entry);
    turn_away(fd);
  }
}

// To see that the server stops, or that threads are missing.
void HttpServer::Impl::wake_acceptor() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake, &one, sizeof(one));
}

// On the accepting thread. Starts a thread if more connections wait for one than threads are free. Where none can be
// started the next free one takes them.
void HttpServer::Impl::start_worker() {
  if (idle_workers >= static_cast<int>(accepted_entries.size())) return;
  if (static_cast<int>(workers.size()) >= table.capacity()) return;
  try {
    workers.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
  }
}

// False if there is no thread and none can be started.
bool HttpServer::Impl::hand_over(const std::shared_ptr<Entry>& entry) {
  const MutexLock lock(mutex);
  accepted_entries.push_back(entry);
  start_worker();
  if (workers.empty()) {
    accepted_entries.pop_back();
    return false;
  }
  work_ready.notify_one();
  return true;
}

std::string HttpServer::Impl::busy_text() {
  HttpResponse response = handlers.refuse(HttpRequest(), 503, kTooMany);
  if (std::ranges::none_of(response.headers, [](const auto& field) { return field.first == "Retry-After"; })) {
    response.headers.emplace_back("Retry-After", "1");
  }
  return http_head(response, {}) + response.body;
}

// Must not block: it runs on the accepting thread.
void HttpServer::Impl::turn_away(int fd) {
  ++turned_away;
  const std::string text = busy_text();
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
    while (!ended && accepted_entries.empty()) work_ready.wait(mutex);
    --idle_workers;
    if (accepted_entries.empty()) return;
    const std::shared_ptr<Entry> entry = accepted_entries.front();
    accepted_entries.pop_front();
    lock.unlock();
    serve(entry);
    if (priority_is_lowered() && retire()) return;
    lock.lock();
  }
}

// The end of a thread whose priority was lowered for what it computed: the next connection gets one with the full
// priority. It waits for the one that left before it, and the next one, or the end of the server, for it. False: it
// must stay, because connections wait and there is no other thread. The accepting thread starts others: one that this
// thread started would have its low priority.
bool HttpServer::Impl::retire() {
  MutexLock lock(mutex);
  if (!accepted_entries.empty()) {
    wake_acceptor();
    if (workers.size() == 1) return false;
  }
  const auto own = std::ranges::find(workers, std::this_thread::get_id(), &std::thread::get_id);
  if (own == workers.end()) return true;  // the server is ending, and waits for it
  std::thread before = std::exchange(retired, std::move(*own));
  workers.erase(own);
  lock.unlock();
  if (before.joinable()) before.join();
  return true;
}

void HttpServer::Impl::serve(const std::shared_ptr<Entry>& entry) {
  Connection connection(entry->fd, options.write_seconds);
  table.attach(*entry, connection);
  bool body_unread = false, asked = false;
  const std::string address = peer_address(entry->fd);
  for (int count = 1; !stopping && connection.reusable; ++count) {
    asked = false;
    table.wait(*entry);
    const HttpLimits limits = {.head_bytes = options.header_bytes, .body_bytes = options.body_bytes};
    Exchange exchange = {connection, *entry, HttpParser(limits), {}, count == kRequestsMax};
    if (!connection.wait_for_request(count == 1 ? options.header_seconds : options.idle_seconds)) break;
    asked = true;
    exchange.request.client = address;
    exchange.request.began = Clock::now();
    table.begin(*entry);
    try {
      serve_one(exchange);
    } catch (const std::exception&) {  // the refusal itself failed
      connection.reusable = false;
    }
    body_unread = exchange.body_unread;
  }
  if (body_unread && table.serve(*entry)) {
    table.wait(*entry);  // it is the first to go when there is no place for others
    connection.drain(2 * options.body_bytes, 5);
  }
  if (asked && !table.serve(*entry)) connection.write_last(busy_text());
  table.remove(entry);
}

void HttpServer::Impl::serve_one(Exchange& exchange) {
  const std::optional<HttpResponse> response = answer(exchange);
  exchange.request = {};  // its body does not count any more
  if (response && table.answer(exchange.entry)) return respond(exchange, *response);
  exchange.connection.reusable = false;
}

// Nothing if there is nobody to answer.
std::optional<HttpResponse> HttpServer::Impl::answer(Exchange& exchange) {
  HttpRequest& request = exchange.request;
  try {
    if (auto refused = read_head(exchange)) return refused;
    if (exchange.parser.stage() == HttpParser::Stage::kHead) return std::nullopt;
    const HttpHead& head = exchange.parser.head();
    if (request.method != "POST" && head.has_body()) exchange.last = exchange.body_unread = true;
    if (exchange.entry.reserved) {
      exchange.last = true;
      const bool allowed = std::ranges::find(options.reserve_paths, request.path) != options.reserve_paths.end();
      if (!allowed || head.has_body()) return ++turned_away, refuse(exchange, 503, kTooMany);
    }
    if (auto refused = handlers.gate(request)) {
      if (request.method == "POST") exchange.last = exchange.body_unread = true;
      return refused;
    }
    if (request.method == "POST") {
      if (auto refused = read_body(exchange)) return refused;
    }
    if (!table.serve(exchange.entry)) return std::nullopt;
    return handlers.handle(request);
  } catch (const std::bad_alloc&) {
    return refuse(exchange, 503, "there is not enough memory for this request now");
  } catch (const std::exception& error) {
    return refuse(exchange, 500, std::string("internal error: ") + error.what());
  }
}

// An answer that refuses; what is unread of the request is not taken for another one.
HttpResponse HttpServer::Impl::refuse(Exchange& exchange, int status, const std::string& message) {
  if (exchange.parser.stage() != HttpParser::Stage::kDone) exchange.last = exchange.body_unread = true;
  return handlers.refuse(exchange.request, status, message);
}

std::optional<HttpResponse> HttpServer::Impl::read_head(Exchange& exchange) {
  Connection& connection = exchange.connection;
  HttpParser& parser = exchange.parser;
  connection.allow(options.header_bytes + sizeof(Connection), options.header_seconds);
  const Received received = read(exchange, HttpParser::Stage::kHead, [](std::string_view) { return true; });
  translate(parser.head(), connection, exchange.request);
  if (received == Received::kLate && parser.started()) {
    return refuse(exchange, 408, "the request's header did not arrive in time");
  }
  if (received != Received::kBytes) return std::nullopt;
  if (parser.stage() == HttpParser::Stage::kFailed) return refuse(exchange, parser.status(), parser.message());
  if (const Problem problem = check_head(parser.head(), exchange.request)) {
    exchange.last = true;
    return refuse(exchange, problem->first, problem->second);
  }
  return std::nullopt;
}

std::optional<HttpResponse> HttpServer::Impl::read_body(Exchange& exchange) {
  HttpRequest& request = exchange.request;
  const HttpHead& head = exchange.parser.head();
  if (const Problem problem = check_body(head, request, options.body_bytes)) {
    exchange.last = exchange.body_unread = true;
    return handlers.refuse(request, problem->first, problem->second);
  }
  // The framing of chunks counts too.
  exchange.connection.allow(2 * options.body_bytes + (64 << 10), options.body_seconds);
  if (head.expects_continue && exchange.connection.buffered().empty()) {
    exchange.connection.write("HTTP/1.1 100 Continue\r\n\r\n");
  }
  const auto counted = std::make_shared<size_t>(0);
  request.held = std::shared_ptr<void>(nullptr, [this, counted](void*) { bodies -= *counted; });
  bool held = true;
  const Received received = read(exchange, HttpParser::Stage::kBody, [&](std::string_view piece) {
    held = hold(exchange, *counted, piece.size());
    if (held) request.body.append(piece);
    return held;
  });
  if (!held) return refuse(exchange, 503, "too many large requests are being read; try again later");
  if (received != Received::kBytes) return refuse(exchange, 400, "the request's body did not arrive whole");
  if (exchange.parser.stage() != HttpParser::Stage::kFailed) return std::nullopt;
  return refuse(exchange, exchange.parser.status(), exchange.parser.message());
}

// Counts bytes of a body against the limit of all; a body that arrives slowly makes room for others. False: past it.
bool HttpServer::Impl::hold(Exchange& exchange, size_t& counted, size_t bytes) {
  bodies += bytes;
  counted += bytes;
  table.body_bytes(exchange.entry, counted);
  if (bodies <= options.bodies_bytes) return true;
  if (!table.drop_slow_body()) return false;
  for (int i = 0; i < 100 && bodies > options.bodies_bytes; ++i) {  // until its thread has ended
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return bodies <= options.bodies_bytes;
}

void HttpServer::Impl::respond(Exchange& exchange, const HttpResponse& response) {
  Connection& connection = exchange.connection;
  const HttpHead& head = exchange.parser.head();
  const bool streamed = static_cast<bool>(response.stream), chunked = streamed && head.minor > 0;
  const bool keep = head.keep_alive && !exchange.last && (chunked || !streamed) && !stopping && !table.crowded();
  if (!keep) connection.reusable = false;
  std::string text = http_head(response, {chunked, keep, options.idle_seconds});
  if (head.method == "HEAD") {
    connection.write(text);
  } else if (streamed) {
    if (!connection.write(text) || !write_stream(connection, response, chunked)) connection.reusable = false;
  } else {
    text += response.body;
    connection.write(text);
  }
}

void HttpServer::Impl::end_accepting() {
  if (stopping.exchange(true)) return;
  wake_acceptor();
  acceptor.join();
  ::close(listener);
}

bool HttpServer::Impl::end_connections(double seconds, const std::string& last) {
  table.shut_idle();
  const auto grace = std::chrono::ceil<Clock::duration>(std::chrono::duration<double>(seconds));
  if (table.wait_until_empty(Clock::now() + grace)) return true;
  table.tell_all(last);
  return table.wait_until_empty(Clock::now() + std::chrono::seconds(1));
}

void HttpServer::Impl::join_workers() {
  MutexLock lock(mutex);
  ended = true;
  work_ready.notify_all();
  std::vector<std::thread> leaving = std::move(workers);
  workers.clear();
  if (retired.joinable()) leaving.push_back(std::move(retired));
  lock.unlock();
  for (std::thread& worker : leaving) worker.join();
}

// HttpServer.

HttpServer::HttpServer(const HttpOptions& options, HttpHandlers handlers)
    : impl_(std::make_unique<Impl>(options, std::move(handlers))) {}
HttpServer::~HttpServer() = default;

int HttpServer::port() const { return impl_->bound; }

HttpStats HttpServer::stats() const {
  return {impl_->table.open(), impl_->accepted, impl_->turned_away, impl_->table.dropped()};
}

bool HttpServer::stop(double seconds, const HttpResponse& last) {
  impl_->end_accepting();
  return impl_->end_connections(seconds, http_head(last, {}) + last.body);
}

}  // namespace gemma4
