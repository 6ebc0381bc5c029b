// Access: which clients may send which requests. API keys, pages of other sites (CORS), and host names that an attacker
// points at this server (DNS rebinding).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/json.h"
#include "server/server.h"

namespace gemma4 {

// ApiError::code where the request's host name is not allowed.
inline constexpr const char* kHostNotAllowed = "host_not_allowed";

// What the options say about access makes sense: keys that a header can carry, origins without a path, host names
// without a scheme. Throws Error, which names the option. Call it before the model is loaded.
void check_options(const ServerOptions& options);

// The keys of a file with one on each line. Spaces around them, a byte order mark and empty lines do not count. Throws
// Error if there is none; `name` is the file's.
std::vector<std::string> keys_of(std::string_view text, const std::string& name);

// The error if a request is refused. `open`: this route needs no key.
std::optional<ApiError> check_access(const HttpRequest& request, const ServerOptions& options, bool open);

// For a browser, in place of that error's JSON: a page that says with which option to start the server. The name comes
// from the request, so one that has other characters than a host name's is not repeated.
HttpResponse host_refusal_page(const HttpRequest& request);

// Whether a browser shows the answer to a person.
bool wants_html(const HttpRequest& request);

// The API key that the request carries; "" if none is needed.
std::string client_of(const HttpRequest& request, const ServerOptions& options);

// Who takes turns with others: the API key, or the network where none is needed.
std::string turn_of(const HttpRequest& request, const ServerOptions& options);

// Adds the headers that let a page of an allowed origin read the answer; `preflight`: also those that say what it may
// send.
void add_cors(const HttpRequest& request, const ServerOptions& options, bool preflight, HttpResponse& response);

// The origin of an MCP server's URL: "https://tools.example:8443". "" where the page cannot use the URL: only http and
// https, no user name, no fragment, and no IPv6 address, which a Content-Security-Policy cannot name.
std::string mcp_origin(const std::string& url);

// Whether a host name or address is this machine's own.
bool is_loopback(const std::string& host);

// Compares a key in a time that does not depend on where the two differ, so that a key cannot be guessed letter by
// letter.
bool same_secret(const std::string& given, const std::string& secret);

}  // namespace gemma4
