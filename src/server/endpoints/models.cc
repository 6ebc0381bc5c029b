// /v1/models, and /v1/models/NAME for one model.
#include <algorithm>
#include <cmath>
#include <ctime>

#include "server/routes.h"

namespace gemma4 {
namespace {

constexpr std::string_view kModelPath = "/v1/models/";

std::string utc(int64_t unix_seconds) {
  const time_t time = static_cast<time_t>(unix_seconds);
  tm parts = {};
  gmtime_r(&time, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

double rounded(float value) { return std::round(value * 1e6) / 1e6; }  // 0.95 and not 0.94999998

// What holds where a request says nothing.
Json generation_json(const GenerationConfig& config) {
  return {{"temperature", config.do_sample ? rounded(config.temperature) : 0},
          {"top_p", rounded(config.top_p)},
          {"top_k", config.top_k}};
}

Json model_json(const ServerState& server, const std::string& name, bool anthropic) {
  Json json = {{"id", name},
               {"object", "model"},
               {"created", server.context.started},
               {"owned_by", "gemma4"},
               {"max_model_len", server.context.max_seq_len},
               {"vision", server.engine.options().vision},
               {"image_budget", server.engine.options().image_budget},
               {"image_budget_max", server.context.image_budget_max},
               {"parameters", server.engine.parameters()},
               {"weights", server.engine.weights_format()},
               {"generation", generation_json(server.engine.generation_config())}};
  if (anthropic) {
    json.update({{"type", "model"},
                 {"display_name", name},
                 {"created_at", utc(server.context.started)},
                 {"max_input_tokens", server.context.max_seq_len},
                 {"max_tokens", server.context.max_seq_len}});
  }
  return json;
}

}  // namespace

namespace endpoints {

HttpResponse models(ServerState& server, HttpRequest& request) {
  const bool anthropic = api_of(request) == Api::kAnthropic;
  const std::vector<std::string>& names = server.context.models;
  if (request.path.size() > kModelPath.size() && request.path.starts_with(kModelPath)) {
    const std::string name = request.path.substr(kModelPath.size());
    if (!server.context.any_model && std::ranges::find(names, name) == names.end()) {
      throw ApiError(404, "the model '" + name.substr(0, 200) + "' is not served here", "model", "model_not_found");
    }
    return json_response(model_json(server, name, anthropic));
  }
  Json json = {{"object", "list"}, {"data", Json::array()}};
  for (const std::string& name : names) json["data"].push_back(model_json(server, name, anthropic));
  // For the page, which reads this first.
  if (!server.options.mcp_servers.empty()) json["mcp_servers"] = server.options.mcp_servers;
  if (anthropic) json.update({{"has_more", false}, {"first_id", names.front()}, {"last_id", names.back()}});
  return json_response(json);
}

}  // namespace endpoints
}  // namespace gemma4
