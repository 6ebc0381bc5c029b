#include "server/completion_request.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "base/random.h"

namespace gemma4 {

void check_model(Fields& body, const ApiContext& context) {
  const std::string model = body.string("model").value_or(context.models.front());
  if (context.any_model || std::ranges::find(context.models, model) != context.models.end()) return;
  throw ApiError(404,
                 "the model '" + model.substr(0, 200) + "' is not served here; this server has '" +
                     context.models.front() + "' (--model-name gives it another name, and '*' takes any)",
                 "model", "model_not_found");
}

void add_warnings(Json& json, const std::shared_ptr<Warnings>& warnings) {
  if (!warnings) return;
  const std::vector<std::string> all = warnings->list();
  if (!all.empty()) json["warnings"] = all;
}

std::string make_id(const std::string& prefix) {
  static thread_local std::mt19937_64 random{system_random()};
  constexpr std::string_view kAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789";
  std::string id = prefix;
  for (int i = 0; i < 24; ++i) id += kAlphabet[random() % kAlphabet.size()];
  return id;
}

int64_t unix_time() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string sse(const Json& data, const std::string& name) {
  return (name.empty() ? "" : "event: " + name + "\n") + "data: " + dump(data) + "\n\n";
}

// The choices of one prompt share it; it counts once.
Usage total_usage(const std::vector<Choice>& choices, int per_prompt) {
  Usage total;
  for (size_t i = 0; i < choices.size(); ++i) {
    const Usage& usage = choices[i].usage;
    if (i % per_prompt == 0) {
      total.prompt_tokens += usage.prompt_tokens;
      total.cached_tokens += usage.cached_tokens;
      total.image_tokens += usage.image_tokens;
    }
    total.generated_tokens += usage.generated_tokens;
    total.thinking_tokens += usage.thinking_tokens;
  }
  return total;
}

Json timings(const Usage& usage) {
  const auto rate = [](double count, double ms) { return ms > 0 ? count * 1000 / ms : 0.0; };
  Json json = {{"seed", usage.seed},
               {"queue_ms", usage.queue_ms},
               {"prepare_ms", usage.prepare_ms},
               {"image_ms", usage.image_ms},
               {"prefill_ms", usage.prefill_ms},
               {"first_token_ms", usage.first_token_ms},
               {"decode_ms", usage.decode_ms},
               {"prefill_tokens_per_second", rate(usage.prompt_tokens - usage.cached_tokens, usage.prefill_ms)},
               {"decode_tokens_per_second", rate(usage.generated_tokens - 1, usage.decode_ms)}};
  const DraftStats& drafts = usage.drafts;
  if (!drafts.wanted) return json;
  json["rounds"] = drafts.rounds;
  json["drafted"] = drafts.drafted;
  json["accepted"] = drafts.accepted;
  json["accepted_by_position"] = drafts.accepted_by_position;
  return json;
}

}  // namespace gemma4
