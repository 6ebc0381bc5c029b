// Server: an Engine behind HTTP. It checks access, calls the endpoint of a request (routes.h), turns exceptions into
// error answers, and stops in order. Sockets are in http.h, the APIs' JSON in api/.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/fetch.h"
#include "server/http/http.h"
#include "server/log/access_log.h"

namespace gemma4 {

struct ServerOptions {
  HttpOptions http;
  std::vector<std::string> models;         // names that requests may use; at least one
  bool any_model = false;                  // requests may use any other name, too
  std::vector<std::string> api_keys;       // empty: no key is needed
  std::vector<std::string> cors_origins;   // origins whose pages may send requests ("*": all); empty: only our own page
  std::vector<std::string> mcp_servers;    // URLs of MCP servers that the page may use
  FetchOptions fetch;                      // which hosts image URLs may name
  std::vector<std::string> allowed_hosts;  // host names under which a server on a loopback address may be reached
  double request_seconds = 600;            // for one answer
  double ping_seconds = 10;                // an idle stream sends a sign of life this often
  RequestLog log = RequestLog::kOff;       // which requests get a line
  std::function<void(const std::string& line)> log_line;  // where to; null: standard error
};

class Server {
 public:
  Server(Engine& engine, const ServerOptions& options);  // serves from now on; throws Error if it cannot listen
  ~Server();                                             // stop(0), and waits for threads
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;
  void refuse_new();      // new prompts get 503 from now on; running ones continue
  int preparing() const;  // requests that are read and prepared, or wait for that; then the engine has them
  // Refuses new prompts (503), waits up to `seconds` for running answers, ends the others with an error, what is still
  // prepared too (503), and closes. That takes six seconds at most after the engine's step. False: a thread still
  // prepares a request that nobody waits for any more.
  bool stop(double seconds);
  bool device_failed() const;  // an answer has ended because the device failed

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
