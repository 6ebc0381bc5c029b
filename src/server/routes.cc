#include "server/routes.h"

#include <algorithm>
#include <cctype>

#include "server/page.h"

namespace gemma4 {

namespace endpoints {
Handler chat_completions, completions, responses, messages;   // generate.cc
Handler compact;                                              // generate.cc
Handler ollama_chat, ollama_generate;                         // generate.cc
Handler count_tokens, count_response_tokens;                  // tokenize.cc
Handler tokenize, detokenize, tokenizer_info;                 // tokenize.cc
Handler stored_response, delete_response;                     // stored.cc
Handler create_conversation, conversation;                    // stored.cc
Handler delete_conversation;                                  // stored.cc
Handler models;                                               // models.cc
Handler health, metrics;                                      // status.cc
Handler ollama_tags, ollama_ps, ollama_show, ollama_version;  // ollama.cc
Handler ollama_pull, ollama_change, embeddings;               // ollama.cc
Handler page;                                                 // page.cc
}  // namespace endpoints

namespace {

constexpr size_t kNearPathMax = 200;

constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", endpoints::chat_completions},
    {"POST", "/v1/completions", endpoints::completions},
    {"POST", "/v1/responses", endpoints::responses},
    {"POST", "/v1/responses/compact", endpoints::compact},
    {"POST", "/v1/responses/input_tokens", endpoints::count_response_tokens},
    {"GET", "/v1/responses/", endpoints::stored_response, Route::kPrefix},
    {"DELETE", "/v1/responses/", endpoints::delete_response, Route::kPrefix},
    {"POST", "/v1/conversations", endpoints::create_conversation},
    {"GET", "/v1/conversations/", endpoints::conversation, Route::kPrefix},
    {"POST", "/v1/conversations/", endpoints::conversation, Route::kPrefix},
    {"DELETE", "/v1/conversations/", endpoints::delete_conversation, Route::kPrefix},
    {.method = "POST", .path = "/v1/messages", .handle = endpoints::messages, .api = Api::kAnthropic},
    {.method = "POST", .path = "/v1/messages/count_tokens", .handle = endpoints::count_tokens, .api = Api::kAnthropic},
    {"GET", "/v1/models", endpoints::models},
    {"GET", "/v1/models/", endpoints::models, Route::kPrefix},
    {"POST", "/tokenize", endpoints::tokenize},
    {"POST", "/detokenize", endpoints::detokenize},
    {"POST", "/v1/embeddings", endpoints::embeddings},
    {.method = "POST", .path = "/api/chat", .handle = endpoints::ollama_chat, .api = Api::kOllama},
    {.method = "POST", .path = "/api/generate", .handle = endpoints::ollama_generate, .api = Api::kOllama},
    {.method = "GET", .path = "/api/tags", .handle = endpoints::ollama_tags, .api = Api::kOllama},
    {.method = "GET", .path = "/api/ps", .handle = endpoints::ollama_ps, .api = Api::kOllama},
    {.method = "POST", .path = "/api/show", .handle = endpoints::ollama_show, .api = Api::kOllama},
    {.method = "GET", .path = "/api/version", .handle = endpoints::ollama_version, .api = Api::kOllama},
    {.method = "POST", .path = "/api/pull", .handle = endpoints::ollama_pull, .api = Api::kOllama},
    {.method = "POST", .path = "/api/create", .handle = endpoints::ollama_change, .api = Api::kOllama},
    {.method = "POST", .path = "/api/copy", .handle = endpoints::ollama_change, .api = Api::kOllama},
    {.method = "POST", .path = "/api/push", .handle = endpoints::ollama_change, .api = Api::kOllama},
    {.method = "DELETE", .path = "/api/delete", .handle = endpoints::ollama_change, .api = Api::kOllama},
    {.method = "POST", .path = "/api/embed", .handle = endpoints::embeddings, .api = Api::kOllama},
    {.method = "POST", .path = "/api/embeddings", .handle = endpoints::embeddings, .api = Api::kOllama},
    {"GET", "/tokenizer_info", endpoints::tokenizer_info},
    {"GET", "/metrics", endpoints::metrics},
    {.method = "GET", .path = "/health", .handle = endpoints::health, .open = true},
    {.method = "GET", .path = "/", .handle = endpoints::page, .match = Route::kPage, .open = true},
};

bool matches(const Route& route, const std::string& path) {
  switch (route.match) {
    case Route::kExact:
      return path == route.path;
    case Route::kPrefix:
      return path.starts_with(route.path);
    case Route::kPage:
      return std::ranges::find(page_files(), path, &PageFile::path) != page_files().end();
  }
  return false;
}

}  // namespace

const Route* find_route(const HttpRequest& request, bool any_method) {
  const auto* found = std::ranges::find_if(kRoutes, [&](const Route& route) {
    return (any_method || request.method == route.method) && matches(route, request.path);
  });
  return found == std::end(kRoutes) ? nullptr : found;
}

std::string methods_of(const std::string& path) {
  std::string all;
  for (const Route& route : kRoutes) {
    if (!matches(route, path)) continue;
    if (!all.empty()) all += " and ";
    all += route.method;
  }
  return all;
}

std::string near_route(const std::string& path) {
  if (path.size() > kNearPathMax) return "";
  std::string end = path;
  std::ranges::transform(end, end.begin(), [](unsigned char c) { return std::tolower(c); });
  while (end.ends_with('/')) end.pop_back();
  // From the longest end of the path to the shortest: /openai/v1/v1/models, /v1/v1/models, /v1/models, /models.
  for (size_t slash = 0; slash < end.size(); slash = end.find('/', slash + 1)) {
    for (const std::string& meant : {end.substr(slash), "/v1" + end.substr(slash)}) {
      const bool there = std::ranges::any_of(kRoutes, [&](const Route& route) {
        return route.match == Route::kExact && meant == route.path;
      });
      if (there && meant != path) return meant;
    }
  }
  return "";
}

Api api_of(const HttpRequest& request) {
  if (request.path.starts_with("/api/")) return Api::kOllama;
  const bool anthropic =
      !request.header("anthropic-version").empty() || std::ranges::any_of(kRoutes, [&](const Route& route) {
        return route.api == Api::kAnthropic && request.path.starts_with(route.path);
      });
  return anthropic ? Api::kAnthropic : Api::kOpenAi;
}

}  // namespace gemma4
