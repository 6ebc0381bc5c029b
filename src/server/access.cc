#include "server/access.h"

#include <algorithm>
#include <cctype>

namespace gemma4 {
namespace {

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

bool contains(const std::vector<std::string>& list, const std::string& value) {
  return std::ranges::find(list, value) != list.end();
}

std::string without_port(const std::string& host) {
  const size_t colon = host.rfind(':');
  const bool bare_v6 = !host.starts_with('[') && host.find(':') != colon;
  return colon == std::string::npos || bare_v6 || host.ends_with(']') ? host : host.substr(0, colon);
}

bool allowed_origin(const std::string& origin, const ServerOptions& options) {
  return contains(options.cors_origins, "*") || contains(options.cors_origins, origin);
}

std::string given_key(const HttpRequest& request) {
  const std::string bearer = request.header("authorization");
  if (bearer.size() > 7 && lower(bearer.substr(0, 7)) == "bearer ") return bearer.substr(7);
  return request.header("x-api-key");
}

bool key_matches(const HttpRequest& request, const ServerOptions& options) {
  const std::string given = given_key(request);
  bool good = false;
  for (const std::string& key : options.api_keys) good |= same_secret(given, key);
  return good;
}

}  // namespace

bool is_loopback(const std::string& host) {
  // 127.evil.example is an ordinary name.
  const bool v4 = host.starts_with("127.") && host.find_first_not_of("0123456789.") == std::string::npos;
  return host == "localhost" || host == "::1" || host == "[::1]" || v4;
}

std::string client_of(const HttpRequest& request, const ServerOptions& options) {
  return options.api_keys.empty() ? "" : given_key(request);
}

std::string turn_of(const HttpRequest& request, const ServerOptions& options) {
  return options.api_keys.empty() ? request.network : given_key(request);
}

bool same_secret(const std::string& given, const std::string& secret) {
  size_t difference = given.size() ^ secret.size();
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<unsigned char>(given[i]) ^
                  static_cast<unsigned char>(secret.empty() ? 1 : secret[i % secret.size()]);
  }
  return difference == 0;
}

HttpResponse host_refusal_page(const HttpRequest& request) {
  const std::string name = without_port(lower(request.header("host"))).substr(0, 253);
  const bool plain = std::ranges::all_of(name, [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '-'; });
  const std::string option = plain ? "--allow-host " + name : "--allow-host NAME";
  HttpResponse response;
  response.status = 403;
  response.content_type = "text/html; charset=utf-8";
  response.headers.emplace_back("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'");
  response.body =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<meta name=\"color-scheme\" content=\"light dark\"><title>Gemma 4: this name is not served</title></head>\n"
      "<body><main><h1>This server does not answer under this name</h1>\n"
      "<p>It has no API key, so it answers only under the names of its own machine. Otherwise a page of another site "
      "could "
      "use it.</p>\n<p>To allow this name, start the server with</p>\n<pre><code>gemma4 serve … " +
      option +
      "</code></pre>\n<p>or give it a key, which clients then need (<code>--api-key-file FILE</code>). On the machine "
      "itself "
      "<code>http://localhost</code> with the server's port works.</p></main></body></html>\n";
  return response;
}

bool wants_html(const HttpRequest& request) {
  return request.method == "GET" && lower(request.header("accept")).find("text/html") != std::string::npos;
}

std::optional<ApiError> check_access(const HttpRequest& request, const ServerOptions& options, bool open) {
  const std::string host = lower(request.header("host")), origin = request.header("origin");
  // Without keys, only being on this machine gives access. A page of another site could use that by letting its own
  // host name point here.
  if (options.api_keys.empty() && is_loopback(options.http.host) && !host.empty()) {
    const std::string name = without_port(host);
    if (!is_loopback(name) && !contains(options.allowed_hosts, name)) {
      return ApiError(403, "the host name '" + name.substr(0, 100) + "' is not served; --allow-host would allow it", "",
                      kHostNotAllowed);
    }
  }
  if (!origin.empty() && !allowed_origin(origin, options)) {
    const size_t scheme = origin.find("://");
    if (scheme == std::string::npos || lower(origin.substr(scheme + 3)) != host) {
      return ApiError(403,
                      "pages of " + origin.substr(0, 100) + " may not use this server; --cors-origin would allow it");
    }
  }
  if (open || options.api_keys.empty() || request.method == "OPTIONS" || key_matches(request, options)) {
    return std::nullopt;
  }
  return ApiError(401,
                  "an API key is needed (Authorization: Bearer KEY, or x-api-key: KEY), and none or a wrong one "
                  "was given",
                  "", "invalid_api_key");
}

void add_cors(const HttpRequest& request, const ServerOptions& options, bool preflight, HttpResponse& response) {
  const std::string origin = request.header("origin");
  if (origin.empty() || !allowed_origin(origin, options)) return;
  response.headers.emplace_back("Access-Control-Allow-Origin", origin);
  response.headers.emplace_back("Vary", "Origin");
  if (!preflight) return;
  const std::string wanted = request.header("access-control-request-headers");
  response.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
  response.headers.emplace_back("Access-Control-Allow-Headers",
                                wanted.empty() ? "authorization, content-type, x-api-key" : wanted);
  response.headers.emplace_back("Access-Control-Max-Age", "600");
}

}  // namespace gemma4
