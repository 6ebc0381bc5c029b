// HttpServer: from bytes on sockets to requests, and back. All of it is ours: http_parser.h reads requests,
// http_format.h writes answers, connection_table.h says who may have a connection (docs/SERVER.md says why no library
// does). Each open connection has a thread, which sleeps most of the time.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gemma4 {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                  // 0: any free port
  int connections = 512;            // open at a time; a further one takes the place of one that waits, or gets 503
  int connections_per_address = 0;  // of one address (IPv6: of one /64 network); 0: half of `connections`
  int reserve = 16;                 // connections beyond `connections`, for `reserve_paths` only
  std::vector<std::string> reserve_paths = {"/health", "/metrics"};
  size_t body_bytes = 32 << 20;     // of one request; more is 413
  size_t bodies_bytes = 256 << 20;  // of all bodies held at a time; more is 503
  size_t header_bytes = 64 << 10;   // of one request
  double header_seconds = 10;       // for a request's headers to arrive
  double body_seconds = 60;         // for a request's body to arrive
  double idle_seconds = 30;         // between two requests on one connection
  double write_seconds = 20;        // for a reader to take any bytes
};

class HttpRequest {
 public:
  std::string method, path;  // HEAD is passed as GET; the path is decoded and without the query
  std::string query;         // what follows the ? of the address, as sent
  std::string body;
  std::multimap<std::string, std::string> headers;  // names in lower case

  std::string client;                           // its address, as text; "" if the socket has none
  std::chrono::steady_clock::time_point began;  // when its first byte was there

  std::string header(const std::string& lower_case_name) const;  // the first; "" if there is none
  // The first value of this name in the query, as sent; "" if there is none.
  std::string query_value(const std::string& name) const;
  std::function<bool()> alive;  // false: the client has disconnected
  std::string network;          // the client's, in bytes: an IPv4 address, half of an IPv6 one, or ""
  std::shared_ptr<void> held;   // counts `body` against HttpOptions::bodies_bytes; reset it when the body is freed
};

// Writes the body of a streamed response.
class HttpWriter {
 public:
  HttpWriter(std::function<bool(std::string_view)> write, std::function<bool()> alive)
      : write_(std::move(write)), alive_(std::move(alive)) {}
  bool write(std::string_view bytes) { return write_(bytes); }  // false: the client has disconnected or does not read
  bool alive() { return alive_(); }

 private:
  std::function<bool(std::string_view)> write_;
  std::function<bool()> alive_;
};

// Of a request that generates text; it is filled while the answer is sent.
struct RequestTokens {
  int prompt = 0, cached = 0, generated = 0;
  int failed = 0;  // the status that a stream could not have any more
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::function<void(HttpWriter&)> stream;  // in place of `body`
  std::shared_ptr<RequestTokens> tokens;    // for the log; may be null
};

// Callbacks of the server. All are called on the thread of the connection.
struct HttpHandlers {
  // Called before the body is read. If it returns a response, the request is refused with it.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> gate;
  std::function<HttpResponse(HttpRequest&)> handle;  // the request lives until its answer is written
  // The answer to a request that breaks HTTP or a limit (a bad request line, a body too large, ...).
  std::function<HttpResponse(const HttpRequest&, int status, const std::string& message)> refuse;
};

struct HttpStats {
  int connections = 0;
  uint64_t accepted = 0, turned_away = 0, dropped = 0;
};

class HttpServer {
 public:
  HttpServer(const HttpOptions& options, HttpHandlers handlers);  // listens; throws Error if it cannot
  ~HttpServer();                                                  // ends the connections and waits for their threads
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  HttpStats stats() const;
  // Accepts no more connections, closes idle ones, waits up to `seconds` for running requests, then answers those that
  // have no answer yet with `last`, closes the rest and waits up to a second for their threads. False: a thread still
  // computes for its request, which nobody waits for any more.
  bool stop(double seconds, const HttpResponse& last);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
