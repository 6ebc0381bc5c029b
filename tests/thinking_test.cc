// A budget for thoughts: at the budget the thought is closed, and the answer begins.
#include "engine/engine_testing.h"
#include "program_testing.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

Request thinking_request(int budget, int tokens = 120) {
  Request request = chat_request("What is 16 + 3?", tokens);
  request.chat.enable_thinking = true;
  request.thinking_budget = budget;
  request.logprobs = -1;
  return request;
}

void expect_no_markup(const std::string& text) {
  for (const char* mark : {"<|", "|>", "thought"}) EXPECT_EQ(text.find(mark), std::string::npos) << text;
}

TEST(Thinking, ClosesAtTheBudget) {
  EngineOptions options = demo_options();
  options.max_seqs = 2;
  Engine engine(options);
  const Heard free = Ask(engine, thinking_request(-1)).get();
  ASSERT_GT(free.usage.thinking_tokens, 8);
  for (const int budget : {0, 2, 3, 4, 5, 7}) {
    const Heard heard = Ask(engine, thinking_request(budget)).get();
    EXPECT_EQ(heard.usage.thinking_tokens, std::max(budget, 2)) << "the two markers count";
    EXPECT_TRUE(free.thinking.starts_with(heard.thinking)) << heard.thinking;
    EXPECT_EQ(heard.thinking.empty(), budget < 5) << heard.thinking;
    EXPECT_FALSE(heard.text.empty());
    EXPECT_EQ(heard.finish, Finish::kStop);
    expect_no_markup(heard.text);
  }
  const Heard ample = Ask(engine, thinking_request(free.usage.thinking_tokens + 1)).get();
  EXPECT_EQ(ample.text, free.text);
  EXPECT_EQ(ample.thinking, free.thinking);
  Request half = thinking_request(-1, 20);
  half.thinking_share = 0.3;
  EXPECT_EQ(Ask(engine, half).get().usage.thinking_tokens, 6);
  half.thinking_budget = 4;
  EXPECT_EQ(Ask(engine, half).get().usage.thinking_tokens, 4);
}

// A model that wants nothing but to think answers all the same.
TEST(Thinking, NoThoughtFollowsAtOnce) {
  Engine engine(demo_options());
  Request request = thinking_request(6, 30);
  request.sampling.logit_bias = {{engine.tokenizer().require("<|channel>"), 100.0f}};
  const Heard heard = Ask(engine, request).get();
  EXPECT_GE(heard.text.size(), 5u) << heard.text;
  expect_no_markup(heard.text);
}

TEST(Thinking, APromptMayEndInsideAThought) {
  Engine engine(demo_options());
  Request request = raw_request("<bos><|turn>user\nWhat is 16 + 3?<turn|>\n<|turn>model\n<|channel>thought\n", 60);
  const Heard free = Ask(engine, request).get();
  ASSERT_GT(free.usage.thinking_tokens, 3);
  request.thinking_budget = 3;
  const Heard heard = Ask(engine, request).get();
  EXPECT_EQ(heard.usage.thinking_tokens, 3);
  EXPECT_TRUE(free.thinking.starts_with(heard.thinking));
  EXPECT_FALSE(heard.text.empty());
  request.thinking_budget = 0;
  EXPECT_EQ(Ask(engine, request).get().thinking, "");
}

TEST(Thinking, TheAnswerKeepsItsFormat) {
  EngineOptions options = demo_options();
  options.thinking_budget = 7;  // of requests that name none
  Engine engine(options);
  Request request = thinking_request(-1);
  request.format.type = ResponseFormat::kSchema;
  request.format.schema = R"({"type": "integer", "minimum": 0, "maximum": 99})";
  const Heard heard = Ask(engine, request).get();
  EXPECT_EQ(heard.usage.thinking_tokens, 7);
  EXPECT_TRUE(read_json<Json>(heard.text).is_number_integer()) << heard.text;
}

class ServerThinking : public ServerTest {};

TEST_F(ServerThinking, EveryApiHasABudget) {
  Json body = chat("What is 16 + 3?");
  const auto thought = [&] {
    const Json json = good("/v1/chat/completions", body);
    EXPECT_FALSE(json["choices"][0]["message"]["content"].get<std::string>().empty()) << json;
    return json["usage"]["completion_tokens_details"]["reasoning_tokens"].get<int>();
  };
  body["chat_template_kwargs"] = {{"enable_thinking", true}};
  const int free = thought();
  ASSERT_GT(free, 8);
  body["thinking_token_budget"] = 6;
  EXPECT_EQ(thought(), 6);
  body["thinking_token_budget"] = -1;  // none, as in vLLM
  EXPECT_EQ(thought(), free);
  body["thinking_token_budget"] = 0;
  EXPECT_EQ(thought(), 0);
  body.erase("thinking_token_budget");
  body.erase("chat_template_kwargs");
  body["max_tokens"] = 40;
  const std::pair<const char*, int> kEfforts[] = {{"none", 0}, {"minimal", 4}, {"low", 8}, {"max", free}};
  for (const auto& [effort, tokens] : kEfforts) {
    body["reasoning_effort"] = effort;
    EXPECT_EQ(thought(), tokens) << effort;
  }

  Json responses = {{"model", "demo"}, {"temperature", 0}, {"input", "What is 16 + 3?"}, {"max_output_tokens", 40}};
  responses["reasoning"]["effort"] = "minimal";
  EXPECT_EQ(good("/v1/responses", responses)["usage"]["output_tokens_details"]["reasoning_tokens"], 4);

  Json messages = {{"model", "demo"}, {"temperature", 0}, {"max_tokens", 100}};
  messages["messages"] = {{{"role", "user"}, {"content", "What is 16 + 3?"}}};
  messages["thinking"] = {{"type", "enabled"}, {"budget_tokens", 1024}};
  const Json all = good("/v1/messages", messages)["content"];
  messages["thinking"]["budget_tokens"] = 6;
  const Json some = good("/v1/messages", messages)["content"];
  ASSERT_EQ(all.size(), 2u);
  ASSERT_EQ(some.size(), 2u);
  EXPECT_LT(some[0]["thinking"].get<std::string>().size(), all[0]["thinking"].get<std::string>().size());
  EXPECT_EQ(some[1]["type"], "text");
}

TEST(Thinking, RunTakesABudget) {
  const Ran ran = run_gemma4({"run", "--model", kDemo, "--backend", "cpu", "--temperature", "0", "--think", "--json",
                              "--thinking-budget", "6", "--prompt", "What is 16 + 3?"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("\"thinking_tokens\":6,"), std::string::npos) << ran.err;
  EXPECT_FALSE(ran.out.empty());
  expect_no_markup(ran.out);
}

}  // namespace
}  // namespace gemma4
