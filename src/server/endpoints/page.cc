// The chat page at "/" and its files.
#include "server/page.h"

#include <algorithm>

#include "server/endpoint.h"

namespace gemma4::endpoints {

HttpResponse page(ServerState&, HttpRequest& request) {
  const auto file = std::ranges::find(page_files(), request.path, &PageFile::path);
  HttpResponse response;
  response.content_type = std::string(file->type) + (file->type.starts_with("font/") ? "" : "; charset=utf-8");
  response.body = file->bytes;
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("Referrer-Policy", "no-referrer");
  response.headers.emplace_back(
      "Content-Security-Policy",
      "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
      "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
  return response;
}

}  // namespace gemma4::endpoints
