// HttpServer: bytes on sockets to requests and back. cpp-httplib parses and formats; sockets, threads and limits are
// ours, because its own server has no bound on connections, on headers or on chunked bodies. A connection has a thread
// of its own while it lives; the threads mostly sleep. Only http.cc and connection.h know the library.
#pragma once

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
  int port = 8000;                  // 0: any that is free
  int connections = 512;            // open at a time; one more is answered 503 and closed
  size_t body_bytes = 32 << 20;     // of one request; more is 413
  size_t bodies_bytes = 256 << 20;  // of all requests whose bodies are held now; more is 503
  size_t header_bytes = 64 << 10;   // of one request
  double header_seconds = 10;       // for a request's headers to arrive
  double body_seconds = 60;         // for a request's body to arrive
  double idle_seconds = 30;         // between two requests on one connection
  double write_seconds = 20;        // for a reader to take any bytes
};

class HttpRequest {
 public:
  std::string method, path;  // HEAD comes as GET; the path is decoded and has no query
  std::string body;
  std::multimap<std::string, std::string> headers;  // names in lower case

  std::string header(const std::string& lower_case_name) const;  // the first; "" where there is none
  std::function<bool()> alive;                                   // false: the other side has gone
  std::shared_ptr<void> held;  // counts `body` against HttpOptions::bodies_bytes; reset it once the body is used up
};

// The body of a response that is sent as it is made.
class HttpWriter {
 public:
  HttpWriter(std::function<bool(std::string_view)> write, std::function<bool()> alive)
      : write_(std::move(write)), alive_(std::move(alive)) {}
  bool write(std::string_view bytes) { return write_(bytes); }  // false: the other side has gone, or does not read
  bool alive() { return alive_(); }

 private:
  std::function<bool(std::string_view)> write_;
  std::function<bool()> alive_;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::function<void(HttpWriter&)> stream;  // in place of `body`
};

// What the server around it decides. All run on a connection's thread.
struct HttpHandlers {
  // Before the body is read; an answer here refuses the request.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> gate;
  std::function<HttpResponse(HttpRequest&)> handle;
  // The answer to a request that HTTP itself does not allow (a bad request line, a body too large, ...).
  std::function<HttpResponse(const HttpRequest&, int status, const std::string& message)> refuse;
};

struct HttpStats {
  int connections = 0;
  uint64_t accepted = 0, turned_away = 0;
};

class HttpServer {
 public:
  HttpServer(const HttpOptions& options, HttpHandlers handlers);  // listens; throws Error where it cannot
  ~HttpServer();                                                  // stop(0)
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  HttpStats stats() const;
  // Takes no more connections and closes idle ones; waits up to `seconds` for requests, then cuts the rest.
  void stop(double seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
