#include "server/api/ollama.h"

#include <gtest/gtest.h>

#include "server/api/ollama_context.h"
#include "server/fetch.h"

namespace gemma4 {
namespace {

ApiContext ollama_context() {
  ApiContext context;
  context.models = {"demo", "tagged:7b"};
  context.max_seq_len = 4096;
  context.warnings = std::make_shared<Warnings>();
  return context;
}

Json ollama_body() { return {{"model", "demo"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}}; }

ApiError ollama_refusal(const Json& body, CompletionRequest (*parse)(const Json&, const ApiContext&)) {
  try {
    parse(body, ollama_context());
  } catch (const ApiError& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was refused: " << body.dump();
  return ApiError(0, "");
}

TEST(ApiOllama, ModelsAreNamedWithAndWithoutLatest) {
  for (const char* name : {"demo", "demo:latest", "tagged:7b"}) {
    Json body = ollama_body();
    body["model"] = name;
    EXPECT_NO_THROW(parse_ollama_chat(body, ollama_context())) << name;
  }
  for (const char* name : {"demo:7b", "tagged", "other"}) {
    Json body = ollama_body();
    body["model"] = name;
    EXPECT_EQ(ollama_refusal(body, parse_ollama_chat).status, 404) << name;
  }
  EXPECT_EQ(ollama_name("demo"), "demo:latest");
  EXPECT_EQ(ollama_name("tagged:7b"), "tagged:7b");
  EXPECT_EQ(ollama_name("host:5000/demo"), "host:5000/demo:latest");
}

TEST(ApiOllama, OptionsBecomeSampling) {
  Json body = ollama_body();
  body["options"] = {{"temperature", 0.5},
                     {"top_k", 7},
                     {"top_p", 0.25},
                     {"min_p", 0.125},
                     {"seed", 42},
                     {"num_predict", 9},
                     {"stop", {"a", ""}},
                     {"repeat_penalty", 1.5},
                     {"presence_penalty", 0.5},
                     {"frequency_penalty", -0.5},
                     {"num_ctx", 2048}};
  const ApiContext context = ollama_context();
  const CompletionRequest completion = parse_ollama_chat(body, context);
  ASSERT_EQ(completion.requests.size(), 1u);
  EXPECT_TRUE(completion.stream) << "by default";
  const Request& request = completion.requests[0];
  EXPECT_EQ(request.sampling.temperature, 0.5f);
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(request.sampling.top_p, 0.25f);
  EXPECT_EQ(request.sampling.min_p, 0.125f);
  EXPECT_EQ(request.sampling.seed, 42u);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.presence_penalty, 0.5f);
  EXPECT_EQ(request.sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(request.max_new_tokens, 9);
  EXPECT_EQ(request.stop, std::vector<std::string>{"a"});
  EXPECT_TRUE(context.warnings->list().empty());
}

TEST(ApiOllama, HintsAreTakenAndListed) {
  Json body = ollama_body();
  body["keep_alive"] = "5m";
  body["options"] = {{"num_ctx", 131072},  {"num_gpu", 99},    {"num_predict", -2}, {"seed", -1},
                     {"unheard_of", true}, {"typical_p", 1.0}, {"mirostat", 0},     {"top_p", 0}};
  const ApiContext context = ollama_context();
  const Request request = parse_ollama_chat(body, context).requests.at(0);
  EXPECT_EQ(request.max_new_tokens, 0);
  EXPECT_FALSE(request.sampling.seed);
  EXPECT_EQ(request.sampling.top_p, 1.0f);
  EXPECT_EQ(
      context.warnings->list(),
      (std::vector<std::string>{"options.num_ctx 131072 has no effect: the context is 4096 tokens (--max-seq-len)",
                                "options.num_gpu has no effect here", "options.unheard_of has no effect here"}));
  body["options"] = {{"mirostat", 2}};
  EXPECT_NE(std::string(ollama_refusal(body, parse_ollama_chat).what()).find("options.mirostat"), std::string::npos);
  body["options"] = Json::object();
  body["mesages"] = 1;
  EXPECT_NE(std::string(ollama_refusal(body, parse_ollama_chat).what()).find("'mesages'"), std::string::npos);
}

TEST(ApiOllama, ResultsFindTheirCalls) {
  Json body = ollama_body();
  const auto call = [](const char* name, Json arguments) {
    return Json{{"function", {{"name", name}, {"arguments", std::move(arguments)}}}};
  };
  body["messages"].push_back({{"role", "assistant"},
                              {"content", ""},
                              {"thinking", "hm"},
                              {"tool_calls", {call("a", {{"x", 1}}), call("b", "{}"), call("a", Json::object())}}});
  body["messages"].push_back({{"role", "tool"}, {"tool_name", "b"}, {"content", "of b"}});
  body["messages"].push_back({{"role", "tool"}, {"tool_name", "a"}, {"content", "of a"}});
  body["messages"].push_back({{"role", "tool"}, {"content", "of the other a"}});
  const Request request = parse_ollama_chat(body, ollama_context()).requests.at(0);
  const auto& messages = request.messages;
  ASSERT_EQ(messages.size(), 5u);
  const auto& calls = messages[1].tool_calls;
  EXPECT_EQ(messages[1].reasoning, "hm");
  EXPECT_EQ(calls[0].arguments, "{\"x\":1}");
  EXPECT_EQ(messages[2].tool_call_id, calls[1].id);
  EXPECT_EQ(messages[3].tool_call_id, calls[0].id);
  EXPECT_EQ(messages[4].tool_call_id, calls[2].id);
  EXPECT_NE(calls[0].id, calls[2].id);
  body["messages"][1]["tool_calls"][0] = call("a", Json::array());
  EXPECT_NE(std::string(ollama_refusal(body, parse_ollama_chat).what()).find("arguments must be a JSON object"),
            std::string::npos);
}

// As Ollama's own client, in Go, writes what is not set. What is a value stays.
TEST(ApiOllama, ToolsMayHaveMembersThatAreNull) {
  Json body = ollama_body();
  const Json city = {{"type", "string"}, {"items", nullptr}, {"enum", {"a", nullptr}}, {"default", nullptr}};
  const auto tool = [](const char* name, const Json& parameters) {
    return Json{{"type", "function"}, {"function", {{"name", name}, {"parameters", parameters}}}};
  };
  body["tools"] = {
      tool("now", {{"type", "object"}, {"$defs", nullptr}, {"required", nullptr}, {"properties", nullptr}}),
      tool("weather", {{"type", "object"}, {"required", {"city"}}, {"properties", {{"city", city}}}}),
      tool("plain", nullptr)};
  const Json tools = read_json<Json>(parse_ollama_chat(body, ollama_context()).requests.at(0).tools);
  EXPECT_EQ(tools[0]["function"]["parameters"], Json({{"type", "object"}}));
  EXPECT_EQ(tools[1]["function"]["parameters"]["properties"]["city"],
            Json({{"type", "string"}, {"enum", {"a", nullptr}}}));
  body["tools"] = Json::array({tool("now", {{"required", 5}})});
  EXPECT_NE(std::string(ollama_refusal(body, parse_ollama_chat).what()).find("no JSON schema"), std::string::npos);
}

TEST(ApiOllama, FormatsAndThinking) {
  Json body = ollama_body();
  body["format"] = "json", body["think"] = "low";
  Request request = parse_ollama_chat(body, ollama_context()).requests.at(0);
  EXPECT_EQ(request.format.type, ResponseFormat::kJson);
  EXPECT_TRUE(request.chat.enable_thinking);
  EXPECT_EQ(request.thinking_budget, 2048);
  EXPECT_EQ(request.thinking_share, 0.2);
  body["think"] = "high";
  EXPECT_EQ(parse_ollama_chat(body, ollama_context()).requests.at(0).thinking_budget, 32768);
  body["think"] = true;
  EXPECT_EQ(parse_ollama_chat(body, ollama_context()).requests.at(0).thinking_budget, -1);
  const Json prompt = {{"model", "demo"}, {"prompt", "hi"}, {"think", "medium"}};
  EXPECT_EQ(parse_ollama_generate(prompt, ollama_context()).requests.at(0).thinking_budget, 8192);
  for (const Json& think : {Json("often"), Json("LOW"), Json("true"), Json(0), Json::array()}) {
    body["think"] = think;
    const ApiError refused = ollama_refusal(body, parse_ollama_chat);
    EXPECT_EQ(refused.status, 400) << think;
    const std::string wanted = "think must be true, false, or one of none, minimal, low, medium, high, xhigh, max";
    EXPECT_EQ(std::string(refused.what()).substr(0, wanted.size()), wanted) << think;
  }
  body["format"] = {{"type", "object"}}, body["think"] = false;
  request = parse_ollama_chat(body, ollama_context()).requests.at(0);
  EXPECT_EQ(request.format.type, ResponseFormat::kSchema);
  EXPECT_EQ(request.format.schema, "{\"type\":\"object\"}");
  EXPECT_FALSE(request.chat.enable_thinking);
  body["format"] = "";
  EXPECT_EQ(parse_ollama_chat(body, ollama_context()).requests.at(0).format.type, ResponseFormat::kFree);
  for (const Json& bad : {Json("yaml"), Json(5)}) {
    body["format"] = bad;
    EXPECT_EQ(ollama_refusal(body, parse_ollama_chat).status, 400);
  }
}

TEST(ApiOllama, GenerateTakesASystemMessageARawPromptAndItsContext) {
  Json body = {{"model", "demo"}, {"prompt", "one"}, {"system", "be brief"}, {"stream", false}};
  CompletionRequest completion = parse_ollama_generate(body, ollama_context());
  const auto& messages = completion.requests.at(0).messages;
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].role, "system");
  Choice choice;
  choice.text = "two \xe2\x82\xac";
  choice.usage.prompt_tokens = 5, choice.usage.generated_tokens = 2, choice.usage.decode_ms = 3;
  const Json answer = read_json<Json>(completion.serializer.whole({choice}));
  EXPECT_EQ(answer["response"], "two \xe2\x82\xac");
  EXPECT_EQ(answer["done"], true);
  EXPECT_EQ(answer["done_reason"], "stop");
  EXPECT_EQ(answer["prompt_eval_count"], 5);
  EXPECT_EQ(answer["eval_count"], 2);
  EXPECT_EQ(answer["eval_duration"], 3'000'000);
  EXPECT_GT(answer["total_duration"].get<int64_t>(), 0);
  body = {{"model", "demo"}, {"prompt", "three"}, {"context", answer["context"]}};
  const Request next = parse_ollama_generate(body, ollama_context()).requests.at(0);
  ASSERT_EQ(next.messages.size(), 4u);
  EXPECT_EQ(next.messages[2].role, "assistant");
  EXPECT_EQ(next.messages[2].content[0].text, "two \xe2\x82\xac");
  for (const Json& bad :
       {Json{1, 2, 3}, Json("x"), Json{0x67346374, 256}, Json{0x67346374, 91}, Json{0x67346374, 53}}) {
    body["context"] = bad;
    EXPECT_EQ(ollama_refusal(body, parse_ollama_generate).status, 400) << bad.dump();
  }
  body = {{"model", "demo"}, {"prompt", "<bos>raw"}, {"raw", true}};
  EXPECT_EQ(parse_ollama_generate(body, ollama_context()).requests.at(0).raw, "<bos>raw");
  for (const char* name : {"suffix", "template"}) {
    body = {{"model", "demo"}, {"prompt", "x"}, {name, "y"}};
    EXPECT_NE(std::string(ollama_refusal(body, parse_ollama_generate).what()).find(name), std::string::npos);
  }
}

TEST(ApiOllama, NothingToAnswerLoadsOrUnloads) {
  Json body = {{"model", "demo"}};
  for (const auto parse : {parse_ollama_chat, parse_ollama_generate}) {
    body.erase("keep_alive");
    CompletionRequest completion = parse(body, ollama_context());
    EXPECT_TRUE(completion.requests.empty());
    EXPECT_EQ(read_json<Json>(completion.serializer.whole({}))["done_reason"], "load");
    body["keep_alive"] = 0;
    completion = parse(body, ollama_context());
    EXPECT_EQ(read_json<Json>(completion.serializer.end())["done_reason"], "unload");
  }
}

TEST(ApiOllama, Times) { EXPECT_EQ(ollama_time(1'777'638'896'000'000'007), "2026-05-01T12:34:56.000000007Z"); }

}  // namespace
}  // namespace gemma4
