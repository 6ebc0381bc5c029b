// Server: an Engine behind HTTP. Which address does what, who may ask, how failures are told, and how it stops. The
// sockets are http.h's, the languages openai.h's and anthropic.h's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/fetch.h"
#include "server/http.h"

namespace gemma4 {

struct ServerOptions {
  HttpOptions http;
  std::vector<std::string> models;         // names that requests may use; at least one
  std::vector<std::string> api_keys;       // empty: nobody needs one
  std::vector<std::string> cors_origins;   // origins whose pages may ask ("*": all); empty: none but our own page
  FetchOptions fetch;                      // which hosts image URLs may name
  std::vector<std::string> allowed_hosts;  // names under which a server on a loopback address may be asked
  double request_seconds = 600;            // for one answer
  double ping_seconds = 10;                // how often a stream with nothing to say shows that it lives
};

class Server {
 public:
  Server(Engine& engine, const ServerOptions& options);  // serves from now on; throws Error where it cannot listen
  ~Server();                                             // stop(0)
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;
  void refuse_new();  // new prompts get 503 from now on; running ones go on
  // New prompts are refused (503) from now on; waits up to `seconds` for answers, tells the rest, and closes.
  void stop(double seconds);
  bool device_failed() const;  // some answer ended because the device failed

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Takes the same time wherever the two differ, so that nobody can find a key letter by letter.
bool same_secret(const std::string& given, const std::string& secret);

}  // namespace gemma4
