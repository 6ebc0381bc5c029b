// The endpoints of Ollama's API that only tell: /api/tags, /api/ps, /api/show, /api/version; those that would change
// which models there are; and embeddings, of this and of OpenAI's API, which are refused. /api/chat and /api/generate
// are in generate.cc.
#include <cctype>

#include "server/api/ollama.h"
#include "server/endpoint.h"

namespace gemma4 {
namespace {

// Programs compare it to find out what a server can do: the version of the API that this follows.
constexpr const char* kApiVersion = "0.12.6";
constexpr const char* kNoEmbeddings =
    "this server makes no embeddings: Gemma 4 is a model that writes text; run an embedding model in another server "
    "and give the program that server's address for embeddings";

int64_t parameter_count(const ServerState& server) { return server.engine.parameters(); }

std::string short_count(int64_t count) {
  char text[32];
  const double value = static_cast<double>(count);
  if (value >= 1e9) {
    std::snprintf(text, sizeof(text), "%.1fB", value / 1e9);
  } else {
    std::snprintf(text, sizeof(text), "%.2fM", value / 1e6);
  }
  return text;
}

std::string upper(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

Json details(const ServerState& server) {
  return {{"parent_model", ""},
          {"format", server.engine.model_kind()},
          {"family", "gemma4"},
          {"families", Json::array({"gemma4"})},
          {"parameter_size", short_count(parameter_count(server))},
          {"quantization_level", upper(server.engine.weights_format())}};
}

// No file is hashed: the digest only tells models apart.
std::string digest(const ServerState& server, const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325;
  std::string text;
  for (int part = 0; part < 4; ++part) {
    for (const char c : name + "/" + std::to_string(parameter_count(server)) + "/" + std::to_string(part)) {
      hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
    char digits[17];
    std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(hash));
    text += digits;
  }
  return text;
}

std::string loaded_at(const ServerState& server) { return ollama_time(server.context.started * 1'000'000'000); }

Json listed(const ServerState& server, const std::string& model) {
  const std::string name = ollama_name(model);
  return {{"name", name},
          {"model", name},
          {"modified_at", loaded_at(server)},
          {"size", server.engine.stats().weights_bytes},
          {"digest", digest(server, name)},
          {"details", details(server)}};
}

template <typename Entry>
HttpResponse model_list(const ServerState& server, const Entry& entry) {
  Json json = {{"models", Json::array()}};
  for (const std::string& name : server.context.models) json["models"].push_back(entry(name));
  return json_response(json);
}

// The model that a request names, which must be the one that is served. Members of these names are taken and not used.
std::string asked_model(ServerState& server, const HttpRequest& request, std::initializer_list<const char*> unused) {
  std::string name;
  prepare(server, request, [&](const ApiContext& context, const Preparation&) {
    const Json json = parse_body(request.body);
    Fields body(json, "");
    const auto older = body.string("name");
    name = body.string("model").value_or(older.value_or(""));
    if (name.empty()) fail_at("model", "is missing");
    body.ignore(unused);
    body.done();
    check_ollama_model(name, context);
  });
  return name;
}

}  // namespace

namespace endpoints {

HttpResponse ollama_tags(ServerState& server, HttpRequest&) {
  return model_list(server, [&](const std::string& name) { return listed(server, name); });
}

HttpResponse ollama_ps(ServerState& server, HttpRequest&) {
  constexpr int64_t kNever = 4'102'444'800;  // the year 2100: the model stays loaded
  return model_list(server, [&](const std::string& name) {
    const EngineStats stats = server.engine.stats();
    Json json = listed(server, name);
    json.erase("modified_at");
    json["size"] = stats.memory_bytes;
    json["expires_at"] = ollama_time(kNever * 1'000'000'000);
    json["size_vram"] = server.engine.options().backend == "cuda" ? stats.memory_bytes : 0;
    json["context_length"] = server.context.max_seq_len;
    return json;
  });
}

HttpResponse ollama_version(ServerState&, HttpRequest&) { return json_response({{"version", kApiVersion}}); }

HttpResponse ollama_show(ServerState& server, HttpRequest& request) {
  const std::string name = asked_model(server, request, {"verbose", "system", "template", "options"});
  const Config& config = server.engine.config();
  Json capabilities = Json::array({"completion", "tools", "thinking"});
  if (server.engine.options().vision) capabilities.push_back("vision");
  return json_response({{"license", ""},
                        {"modelfile", "FROM " + name},
                        {"parameters", ""},
                        {"template", "{{ .Prompt }}"},
                        {"details", details(server)},
                        {"model_info",
                         {{"general.architecture", "gemma4"},
                          {"general.parameter_count", parameter_count(server)},
                          {"gemma4.block_count", config.layers},
                          {"gemma4.context_length", server.context.max_seq_len},
                          {"gemma4.embedding_length", config.hidden},
                          {"gemma4.feed_forward_length", config.intermediate},
                          {"gemma4.attention.sliding_window", config.window}}},
                        {"capabilities", std::move(capabilities)},
                        {"modified_at", loaded_at(server)}});
}

// The model that is served is there; no other can be had.
HttpResponse ollama_pull(ServerState& server, HttpRequest& request) {
  asked_model(server, request, {"insecure", "stream", "username", "password"});
  return json_response({{"status", "success"}});
}

HttpResponse ollama_change(ServerState&, HttpRequest&) {
  throw ApiError(404, "models cannot be made, copied, pushed or deleted here: gemma4 serve has the one of its --model");
}

HttpResponse embeddings(ServerState&, HttpRequest&) {
  throw ApiError(400, kNoEmbeddings, "", "embeddings_not_supported");
}

}  // namespace endpoints
}  // namespace gemma4
