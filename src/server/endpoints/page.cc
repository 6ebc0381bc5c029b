// The chat page at "/" and its files.
#include "server/page.h"

#include <algorithm>

#include "server/access.h"
#include "server/endpoint.h"

namespace gemma4::endpoints {
namespace {

// " http://tools.example https://other.example:8443"
std::string mcp_origins(const ServerOptions& options) {
  std::string origins;
  for (const std::string& url : options.mcp_servers) origins += " " + mcp_origin(url);
  return origins;
}

}  // namespace

HttpResponse page(ServerState& server, HttpRequest& request) {
  const auto file = std::ranges::find(page_files(), request.path, &PageFile::path);
  HttpResponse response;
  response.content_type = std::string(file->type) + (file->type.starts_with("font/") ? "" : "; charset=utf-8");
  response.body = file->bytes;
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("Referrer-Policy", "no-referrer");
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
      "connect-src 'self'" +
          mcp_origins(server.options) +
          "; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  return response;
}

}  // namespace gemma4::endpoints
