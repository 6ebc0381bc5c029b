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

std::string without_brackets(const std::string& host) {
  return host.starts_with('[') && host.ends_with(']') ? host.substr(1, host.size() - 2) : host;
}

bool allowed_host(const std::string& name, const ServerOptions& options) {
  const std::string asked = without_brackets(name);
  return std::ranges::any_of(options.allowed_hosts, [&](const std::string& allowed) {
    return allowed == "*" || without_brackets(lower(allowed)) == asked;
  });
}

bool is_key(const std::string& key) {
  return !key.empty() && std::ranges::all_of(key, [](unsigned char c) { return c > ' ' && c < 0x7f; });
}

bool is_port(const std::string& port) {
  const bool digits = !port.empty() && port.find_first_not_of("0123456789") == std::string::npos;
  return digits && port.size() <= 5 && port != "0" && std::stoi(port) < 65536;
}

// A name, or an address of IPv4; not checked more closely than by its letters.
bool is_name(const std::string& name) {
  return !name.empty() && name.size() <= 253 && name.front() != '.' && name.front() != '-' &&
         std::ranges::all_of(
             name, [](unsigned char c) { return (c < 0x80 && std::isalnum(c)) || c == '.' || c == '-' || c == '_'; });
}

bool is_v6(const std::string& address) {
  return std::ranges::count(address, ':') > 1 &&
         address.find_first_not_of("0123456789abcdefABCDEF:.") == std::string::npos;
}

// `host`: "name", "10.0.0.7", "[fd00::7]"; with `bare_v6` also "fd00::7".
bool is_host(const std::string& host, bool bare_v6) {
  if (host.starts_with('[')) return host.ends_with(']') && is_v6(host.substr(1, host.size() - 2));
  return is_name(host) || (bare_v6 && is_v6(host));
}

bool is_host_and_port(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || text.ends_with(']')) return is_host(text, false);
  return is_host(text.substr(0, colon), false) && is_port(text.substr(colon + 1));
}

// As a browser sends it: "https://example.com:8443".
bool is_origin(const std::string& text) {
  const size_t scheme = text.find("://");
  if (scheme == std::string::npos || scheme == 0 || text != lower(text)) return false;
  const bool plain = std::ranges::all_of(text.substr(0, scheme), [](unsigned char c) {
    return std::islower(c) || std::isdigit(c) || c == '+' || c == '-' || c == '.';
  });
  return plain && is_host_and_port(text.substr(scheme + 3));
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

void check_options(const ServerOptions& options) {
  for (const std::string& key : options.api_keys) {
    // The key is a secret, so the sentence does not repeat it.
    if (!is_key(key)) throw Error("an API key must be printable ASCII characters without spaces, and one is not");
  }
  for (const std::string& origin : options.cors_origins) {
    if (origin == "*" || is_origin(origin)) continue;
    throw Error(
        "--cors-origin is an origin as browsers send it (https://example.com, in small letters, with a port "
        "where it has one, without a path or a slash at the end) or *, not '" +
        origin + "'");
  }
  for (const std::string& host : options.allowed_hosts) {
    if (host == "*" || is_host(host, true)) continue;
    throw Error("--allow-host is a host name (mybox.example, without a scheme, a port or a path) or *, not '" + host +
                "'");
  }
  for (const std::string& url : options.mcp_servers) {
    if (!mcp_origin(url).empty()) continue;
    throw Error(
        "--mcp is the http or https URL of an MCP server (https://tools.example/mcp), without a user name, a fragment "
        "or an IPv6 address, not '" +
        url + "'");
  }
  for (const std::string& host : options.fetch.hosts) {
    if (is_host_and_port(host)) continue;
    throw Error(
        "--allow-image-host is a host name or address, with a port where need be (pictures.example:8080), "
        "without a scheme or a path, not '" +
        host + "'");
  }
}

std::vector<std::string> keys_of(std::string_view text, const std::string& name) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // of editors on Windows
  std::vector<std::string> keys;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    constexpr std::string_view kSpace = " \t\r\v\f";
    const size_t first = line.find_first_not_of(kSpace);
    if (first != std::string_view::npos)
      keys.emplace_back(line.substr(first, line.find_last_not_of(kSpace) - first + 1));
  }
  if (keys.empty()) throw Error(name + " holds no API key");
  return keys;
}

std::string mcp_origin(const std::string& url) {
  const bool plain = std::ranges::all_of(url, [](unsigned char c) { return c > ' ' && c < 0x7f; });
  const size_t scheme = url.find("://");
  if (!plain || scheme == std::string::npos || url.find_first_of("#\\\"'<>") != std::string::npos) return "";
  const std::string origin = lower(url.substr(0, url.find_first_of("/?", scheme + 3)));
  const std::string authority = origin.substr(scheme + 3);
  const bool good = origin.starts_with("http://") || origin.starts_with("https://");
  return good && !authority.starts_with('[') && is_host_and_port(authority) ? origin : "";
}

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
    if (!is_loopback(name) && !allowed_host(name, options)) {
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
