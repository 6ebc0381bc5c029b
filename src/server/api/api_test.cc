// Parsing of request bodies, without an engine.
#include <gtest/gtest.h>

#include "server/api/anthropic.h"
#include "server/api/build_request.h"
#include "server/api/openai.h"
#include "server/fetch.h"
#include "text/chat/chat.h"

namespace gemma4 {
namespace {

ApiContext context() {
  ApiContext context;
  context.models = {"demo", "alias"};
  context.fetch = [](const std::string& url, const std::string& path) {
    return fetch_image(url, 1000, {.hosts = {"pictures.example", "127.0.0.1:1"}}, path);
  };
  context.image_budget_max = 560;
  return context;
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

Json base() { return {{"model", "alias"}, {"messages", {{{"role", "user"}, {"content", "hi"}}}}}; }

TEST(Api, BodiesAreBounded) {
  EXPECT_NE(refusal([] { parse_body(std::string(65, '[') + std::string(65, ']')); }).find("deep"), std::string::npos);
  EXPECT_NO_THROW(parse_body(std::string(64, '[') + std::string(64, ']')));
  std::string many = "[1";
  for (int i = 0; i < (1 << 19); ++i) many += ",1";
  EXPECT_NE(refusal([&] { parse_body(many + "]"); }).find("values"), std::string::npos);
  std::string members = "{\"a\":1";
  for (int i = 0; i < 3000; ++i) members += ",\"" + std::to_string(i) + "\":1";
  EXPECT_NE(refusal([&] { parse_body(members + "}"); }).find("members"), std::string::npos);
  EXPECT_NO_THROW(parse_body("{\"text\": \"" + std::string(100, '[') + "\\\"" + std::string(100, '{') + "\"}"));
  EXPECT_NE(refusal([] { parse_body("{\"a\": \"\xff\"}"); }).find("not JSON"), std::string::npos);
}

TEST(Api, Base64) {
  EXPECT_EQ(decode_base64("aGVsbG8=", "x"), "hello");
  EXPECT_EQ(decode_base64("aGVs\r\n bG8", "x"), "hello");
  EXPECT_EQ(decode_base64("-_-_", "x"), decode_base64("+/+/", "x"));
  EXPECT_EQ(decode_base64("AA==", "x"), std::string(1, '\0'));
  for (const char* bad : {"a", "aGVsb*8=", "aGVsbG8=a", "", "===="}) {
    EXPECT_NE(refusal([&] { decode_base64(bad, "x"); }).find("x "), std::string::npos) << bad;
  }
}

TEST(Api, ImageAddresses) {
  const auto refused = [](const std::string& url) { return refusal([&] { image_of_url(url, context(), "url"); }); };
  EXPECT_EQ(image_of_url("data:image/png;base64,aGVsbG8=", context(), "url"), "hello");
  EXPECT_EQ(image_of_url("DATA:Image/PNG;Base64,aGVsbG8=", context(), "url"), "hello");
  EXPECT_NE(refused("https://other.example/a.png").find("'other.example' is not allowed"), std::string::npos);
  EXPECT_NE(refused("https://a@other.example:80/a.png").find("user's name"), std::string::npos);
  EXPECT_NE(refused("file:///etc/passwd").find("data: URL"), std::string::npos);
  EXPECT_NE(refused("data:image/png;base64").find("comma"), std::string::npos);
  const std::string bare = "R0lGODlhAQABAAAAACwAAAAAAQABAAACAkQBADs=";
  EXPECT_EQ(image_of_url(bare, context(), "url").substr(0, 6), "GIF89a");
  EXPECT_NE(refused("blob:" + bare).find("data: URL"), std::string::npos);
  EXPECT_NE(refused(bare.substr(0, 20)).find("data: URL"), std::string::npos);
}

TEST(Api, ChatBecomesARequest) {
  Json body = base();
  body.update({{"max_tokens", 5},
               {"max_completion_tokens", 7},
               {"seed", 3},
               {"n", 2},
               {"stop", {"a", "b"}},
               {"logit_bias", {{"5", -1.5}}},
               {"parallel_tool_calls", false},
               {"top_k", -1},
               {"user", "someone"}});
  body["messages"].push_back(
      {{"role", "assistant"},
       {"content", nullptr},
       {"reasoning_content", "hm"},
       {"tool_calls", {{{"id", "c1"}, {"type", "function"}, {"function", {{"name", "f"}, {"arguments", "{}"}}}}}}});
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", "c1"}, {"content", "done"}});
  const CompletionRequest completion = parse_chat(body, context());
  ASSERT_EQ(completion.requests.size(), 1u);
  const Request& request = completion.requests[0];
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.max_new_tokens, 7);
  EXPECT_EQ(request.sampling.seed, 3u);
  EXPECT_EQ(request.sampling.top_k, 0);
  EXPECT_EQ(request.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -1.5f}}));
  EXPECT_EQ(request.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(completion.one_tool_call);
  ASSERT_EQ(request.messages.size(), 3u);
  EXPECT_EQ(request.messages[1].reasoning, "hm");
  EXPECT_EQ(request.messages[1].tool_calls[0].id, "c1");
  EXPECT_EQ(request.messages[2].tool_call_id, "c1");
}

// Some languages have floating-point numbers only, and write them so.
TEST(Api, WholeNumbersMayHaveAPoint) {
  const auto most = [](const Json& value) {
    Json body = base();
    body["max_tokens"] = value;
    return parse_chat(body, context()).requests[0].max_new_tokens;
  };
  EXPECT_EQ(most(12.0), 12);
  EXPECT_EQ(most(1.2e1), 12);
  EXPECT_THROW(most(12.5), ApiError);
  EXPECT_THROW(most(1e300), ApiError);
  EXPECT_THROW(most(-3.0), ApiError);
  EXPECT_THROW(most("12"), ApiError);
}

TEST(Api, DetailSetsTheBudget) {
  const auto budget = [](const char* detail) {
    Json body = base();
    body["messages"][0]["content"] = Json::array();
    body["messages"][0]["content"].push_back(
        {{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64,aGVsbG8="}, {"detail", detail}}}});
    return parse_chat(body, context()).requests[0].image_budget;
  };
  EXPECT_EQ(budget("auto"), 0);
  EXPECT_EQ(budget("low"), 70);
  EXPECT_EQ(budget("high"), 560);
}

TEST(Api, ResponsesItemsOfOneTurnAreOneMessage) {
  const Json body = {{"model", "demo"},
                     {"instructions", "Be brief."},
                     {"input",
                      {{{"role", "user"}, {"content", "hi"}},
                       {{"type", "reasoning"},
                        {"summary", Json::array()},
                        {"content", Json::array({{{"type", "reasoning_text"}, {"text", "hm"}}})}},
                       {{"type", "function_call"}, {"call_id", "c1"}, {"name", "f"}, {"arguments", "{\"a\": 1}"}},
                       {{"type", "function_call"}, {"call_id", "c2"}, {"name", "g"}, {"arguments", ""}},
                       {{"type", "function_call_output"}, {"call_id", "c1"}, {"output", "one"}},
                       {{"type", "function_call_output"}, {"call_id", "c2"}, {"output", "two"}}}}};
  const Request request = parse_responses(body, context()).requests[0];
  ASSERT_EQ(request.messages.size(), 5u);
  EXPECT_EQ(request.messages[0].role, "system");
  EXPECT_EQ(request.messages[2].reasoning, "hm");
  EXPECT_EQ(request.messages[2].tool_calls.size(), 2u);
  EXPECT_EQ(request.messages[4].tool_call_id, "c2");
}

TEST(Api, AnthropicResultsComeBeforeWords) {
  Json body = {{"model", "demo"}, {"max_tokens", 9}, {"system", "Be brief."}, {"messages", Json::array()}};
  body["messages"].push_back({{"role", "user"}, {"content", "hi"}});
  Json use = {
      {"type", "tool_use"}, {"id", "t1"}, {"name", "f"}, {"input", parse_body("{\"a\":123456789012345678901234}")}};
  Json thought = {{"type", "thinking"}, {"thinking", "hm"}, {"signature", ""}};
  body["messages"].push_back({{"role", "assistant"}, {"content", Json::array({thought, use})}});
  Json result = {{"type", "tool_result"}, {"tool_use_id", "t1"}, {"content", "bad"}, {"is_error", true}};
  Json words = {{"type", "text"}, {"text", "go on"}};
  body["messages"].push_back({{"role", "user"}, {"content", Json::array({result, words})}});
  const Request request = parse_messages(body, context()).requests[0];
  ASSERT_EQ(request.messages.size(), 5u);
  EXPECT_EQ(request.messages[2].reasoning, "hm");
  EXPECT_EQ(request.messages[2].tool_calls[0].arguments, "{\"a\":123456789012345678901234}");
  EXPECT_EQ(request.messages[3].role, "tool");
  EXPECT_EQ(request.messages[3].content[0].text, "Error: ");
  EXPECT_EQ(request.messages[4].content[0].text, "go on");
  body["messages"][2]["content"] = Json::array({words, result});
  refusal([&] { parse_messages(body, context()); });
}

// A client that cut a text in the middle of a character sends it with every request of its conversation.
TEST(Api, HalfASurrogatePairKeepsTheConversationAlive) {
  const Json body = parse_body(
      R"({"model":"demo","messages":[{"role":"user","content":"a\ud83d"},{"role":"assistant","tool_calls":[{"id":"c",)"
      R"("type":"function","function":{"name":"f","arguments":"{\"x\":\"\\ud83d\"}"}}]},)"
      R"({"role":"tool","tool_call_id":"c","content":"\ude00"}]})");
  const Request request = parse_chat(body, context()).requests[0];
  EXPECT_EQ(request.messages[0].content[0].text, "a\xef\xbf\xbd");
  EXPECT_EQ(request.messages[2].content[0].text, "\xef\xbf\xbd");
  EXPECT_FALSE(render_chat(request.messages, "", {}).empty());
}

TEST(Api, NothingIsDroppedInSilence) {
  for (const char* name : {"functions", "audio", "mirostat", "typical_p", "prompt_logprobs", "best_of"}) {
    Json body = base();
    body[name] = {{"x", 1}};
    EXPECT_NE(refusal([&] { parse_chat(body, context()); }).find(name), std::string::npos);
    body[name] = nullptr;
    EXPECT_NO_THROW(parse_chat(body, context()));
  }
  Json nested = base();
  nested["messages"][0]["mood"] = "good";
  EXPECT_NE(refusal([&] { parse_chat(nested, context()); }).find("messages[0].mood"), std::string::npos);
}

}  // namespace
}  // namespace gemma4
