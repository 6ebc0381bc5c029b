// The endpoints that only tokenize: /tokenize, /detokenize, /v1/messages/count_tokens and /v1/responses/input_tokens.
#include "server/access.h"
#include "server/api/anthropic.h"
#include "server/api/openai.h"
#include "server/endpoint.h"

namespace gemma4::endpoints {

HttpResponse count_tokens(ServerState& server, HttpRequest& request) {
  HttpResponse response;
  prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    const Json json = parse_body(request.body);
    preparation.check_and_make_way();
    const Request prompt = parse_count_tokens(json, context);
    response = json_response({{"input_tokens", server.engine.count_tokens(prompt, preparation)}});
  });
  return response;
}

// Of the body that /v1/responses would take.
HttpResponse count_response_tokens(ServerState& server, HttpRequest& request) {
  HttpResponse response;
  prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    Json json = parse_body(request.body);
    if (json.is_object()) json["store"] = false;
    ApiContext keeping = context;
    keeping.responses = &server.responses;
    keeping.client = client_of(request, server.options);
    preparation.check_and_make_way();
    const CompletionRequest counted = parse_responses(json, keeping);
    response = json_response({{"object", "response.input_tokens"},
                              {"input_tokens", server.engine.count_tokens(counted.requests.front(), preparation)}});
  });
  return response;
}

HttpResponse tokenize(ServerState& server, HttpRequest& request) {
  Engine& engine = server.engine;
  std::vector<int32_t> ids;
  prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    const Json json = parse_body(request.body);
    Fields body(json, "");
    if (body.find("model")) check_model(body, context);
    if (body.find("messages")) {
      const Request prompt = parse_chat_prompt(body, context);
      body.done();
      ids = engine.prompt_ids(prompt, preparation);
      return;
    }
    const std::string text = body.required_string("prompt");
    const bool special = body.boolean("add_special_tokens").value_or(true);
    body.done();
    Request prompt;
    prompt.raw = text;
    ids = special ? engine.prompt_ids(prompt, preparation)
                  : engine.tokenizer().encode(text, true, [&] { preparation.check(); });
  });
  const size_t count = ids.size();
  return json_response({{"count", count}, {"max_model_len", server.context.max_seq_len}, {"tokens", std::move(ids)}});
}

// Names of control tokens, as clients of vLLM ask for them that then tokenize here (lm-evaluation-harness).
HttpResponse tokenizer_info(ServerState& server, HttpRequest&) {
  const Tokenizer& tokenizer = server.engine.tokenizer();
  Json json = {{"tokenizer_class", "Gemma4Tokenizer"}, {"vocab_size", tokenizer.vocab_size()}};
  for (const auto& [member, name] :
       {std::pair("bos_token", "<bos>"), std::pair("eos_token", "<eos>"), std::pair("pad_token", "<pad>")}) {
    json[member] = tokenizer.find(name) ? Json(name) : Json();
  }
  return json_response(json);
}

HttpResponse detokenize(ServerState& server, HttpRequest& request) {
  const Tokenizer& tokenizer = server.engine.tokenizer();
  HttpResponse response;
  prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    std::vector<int32_t> ids;
    {
      const Json json = parse_body(request.body);
      Fields body(json, "");
      if (body.find("model")) check_model(body, context);
      for (const Json& id : expect_array(body.require("tokens"), "tokens")) {
        if (!id.is_number_integer() || id < 0 || id >= tokenizer.vocab_size()) {
          fail_at("tokens", "holds " + dump(id).substr(0, 40) + ", which is no token id");
        }
        ids.push_back(id.get<int32_t>());
      }
      body.done();
    }
    preparation.check_and_make_way();
    response = json_response({{"prompt", tokenizer.decode(ids, false)}});
  });
  return response;
}

}  // namespace gemma4::endpoints
