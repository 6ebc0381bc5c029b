// The parameters of vLLM, llama.cpp, Ollama and other providers that their clients send beside OpenAI's. Sources:
// vLLM's pages of its OpenAI-compatible server, llama.cpp's page of its server, Ollama's page of the parameters of a
// Modelfile, LM Studio's, Groq's and Mistral's of their APIs.
#include <algorithm>

#include "server/api/openai.h"

namespace gemma4 {
namespace {

// Samplers that this engine does not have, and the values that switch each off.
void refuse_other_samplers(Fields& body) {
  body.only("mirostat", {0});
  body.only("typical_p", {1, 1.0});
  body.only("tfs_z", {1, 1.0});
  body.only("top_a", {0, 0.0});
  body.only("top_n_sigma", {-1, -1.0, 0, 0.0});
  body.only("xtc_probability", {0, 0.0});
  body.only("dry_multiplier", {0, 0.0});
  body.only("dynatemp_range", {0, 0.0});
  body.only("use_beam_search", {false});
  body.only("length_penalty", {1, 1.0});
  body.only("early_stopping", {false});
  body.only("include_stop_str_in_output", {false});
  body.only("bad_words", {Json::array()});
  body.only("allowed_token_ids", {Json::array()});
  body.only("reasoning_format", {"auto", "parsed", "deepseek"});  // thoughts apart from the answer, as they are
  body.only("safe_prompt", {false});
}

// How a server is run, which a request cannot change here, and what goes with a sampler that is off.
void take_hints(Fields& body, const std::shared_ptr<Warnings>& warnings) {
  body.hints(warnings, {"num_ctx",  "num_keep",  "num_batch", "num_gpu", "main_gpu",   "num_thread",
                        "use_mmap", "use_mlock", "low_vram",  "numa",    "f16_kv",     "keep_alive",
                        "id_slot",  "n_keep",    "priority",  "guided_decoding_backend", "mirostat_eta", "mirostat_tau",
                        "return_progress", "ttl", "draft_model"});
  body.hint(warnings, "repeat_last_n", {-1});
  body.hint(warnings, "skip_special_tokens", {true});
  body.ignore({"spaces_between_special_tokens", "timings_per_token", "xtc_threshold", "dry_base", "dry_allowed_length",
               "dry_penalty_last_n", "dynatemp_exponent"});
}

}  // namespace

void parse_other_servers(Fields& body, Request& request, const ApiContext& context) {
  RequestSampling& sampling = request.sampling;
  if (const auto v = body.number("repeat_penalty", 0, 100); v && !body.find("repetition_penalty")) {
    sampling.repetition_penalty = static_cast<float>(*v);
  }
  if (const auto v = body.boolean("ignore_eos")) request.ignore_eos = *v;
  if (const auto v = body.boolean("cache_prompt")) request.reuse_prefix = *v;
  request.min_new_tokens = static_cast<int>(body.integer("min_tokens", 0, INT32_MAX).value_or(0));
  if (const Json* ids = body.find("stop_token_ids")) {
    for (const Json& id : expect_array(*ids, "stop_token_ids")) {
      if (!id.is_number_integer() || id < 0 || id > INT32_MAX) {
        fail_at("stop_token_ids", "must hold token ids only");
      }
      request.stop_ids.push_back(id.get<int32_t>());
    }
  }
  refuse_other_samplers(body);
  take_hints(body, context.warnings);
}

int parse_max_tokens(Fields& body, std::initializer_list<const char*> names) {
  int found = 0;
  bool any = false;
  for (const char* name : names) {
    const Json* value = body.find(name);
    if (value == nullptr) continue;
    // -1 (vLLM, llama.cpp) and Ollama's -2 mean: until the end or the end of the context.
    const bool unlimited = *value == -1 || *value == -2;
    const int most = unlimited ? 0 : static_cast<int>(*body.integer(name, 1, INT32_MAX));
    if (!any) found = most;
    any = true;
  }
  return found;
}

}  // namespace gemma4
