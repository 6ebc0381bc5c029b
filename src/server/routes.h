// Routes: the table of endpoints. Which handler answers a method and path, whether it needs an API key, and in which
// API's form its errors are written. A new endpoint is a row in routes.cc and a file in endpoints/.
#pragma once

#include "server/endpoint.h"
#include "server/http/http.h"

namespace gemma4 {

enum class Api { kOpenAi, kAnthropic, kOllama };

struct Route {
  enum Match {
    kExact,   // the path itself
    kPrefix,  // every path that begins with `path`
    kPage,    // the files of the page at "/"
  };
  const char* method;
  const char* path;  // also the route's name in metrics
  Handler* handle;
  Match match = kExact;
  bool open = false;  // needs no API key
  Api api = Api::kOpenAi;
};

// The route of a request; null if there is none. any_method: the method need not match.
const Route* find_route(const HttpRequest& request, bool any_method);

// The methods that a path takes: "GET and DELETE".
std::string methods_of(const std::string& path);

// The address that a wrong one is meant to be, as far as a client's base URL may be wrong: a slash too many at the end,
// /v1 missing or doubled, another server's prefix before it. "" if there is none.
std::string near_route(const std::string& path);

// The API in whose form an answer or an error is written: Anthropic's if the request has its header, else that of the
// route. A path without a route counts as the route that it begins with.
Api api_of(const HttpRequest& request);

}  // namespace gemma4
