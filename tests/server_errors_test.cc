// Errors in the words that clients act on: a prompt that does not fit, and addresses and models that are nearly right.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "serving_testing.h"

namespace gemma4 {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

using ServerErrors = ServerTest;

// "word word ..": a token each, and more than the context of 1,024.
Json overlong_chat(int words) {
  std::string text;
  for (int i = 0; i < words; ++i) text += "count ";
  Json body = chat(text);
  body["max_tokens"] = 4;
  return body;
}

Json errors_tool() {
  Json tool = kTimer;
  tool["function"]["description"] = "Set a timer. " + std::string(300, 'x');
  return tool;
}

TEST_F(ServerErrors, APromptThatDoesNotFitHasOpenAisCode) {
  for (const char* path : {"/v1/chat/completions", "/v1/completions", "/v1/responses"}) {
    Json body = overlong_chat(3000);
    const std::string text = body["messages"][0]["content"];
    if (path != std::string("/v1/chat/completions")) body = {{"model", "demo"}};
    if (path == std::string("/v1/completions")) body["prompt"] = text;
    if (path == std::string("/v1/responses")) body["input"] = text;
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 400);
    const Json error = read_json<Json>(response.body)["error"];
    EXPECT_EQ(error["code"], "context_length_exceeded") << path;
    EXPECT_EQ(error["type"], "invalid_request_error");
    const std::string message = error["message"];
    EXPECT_THAT(message,
                HasSubstr("This model's maximum context length is 1024 tokens. However, your messages resulted "
                          "in "));
    EXPECT_THAT(message, HasSubstr("--max-seq-len"));
    EXPECT_EQ(message.find("tools"), std::string::npos) << message;
  }
}

TEST_F(ServerErrors, APromptThatDoesNotFitHasAnthropicsWords) {
  Json body = overlong_chat(3000);
  body["tools"] = Json::array({{{"name", "set_timer"},
                                {"description", "Set a timer. " + std::string(300, 'x')},
                                {"input_schema", kTimer["function"]["parameters"]}}});
  const Response response = post("/v1/messages", body);
  EXPECT_EQ(response.status, 400);
  const Json error = read_json<Json>(response.body)["error"];
  EXPECT_EQ(error["type"], "invalid_request_error");
  const std::string message = error["message"];
  EXPECT_THAT(message, MatchesRegex("prompt is too long: [0-9]+ tokens > 1024 maximum \\([0-9]+ of them describe the "
                                    "tools\\); --max-seq-len sets the maximum"));
  // The same number as a count says.
  body.erase("max_tokens");
  body.erase("temperature");
  const Json counted = good("/v1/messages/count_tokens", body);
  EXPECT_THAT(message, HasSubstr(": " + std::to_string(counted["input_tokens"].get<int>()) + " tokens >"));
}

TEST_F(ServerErrors, SayWhatTheToolsTake) {
  Json body = overlong_chat(3000);
  const auto count = [](const Json& messages) {
    Json prompt = {{"messages", messages["messages"]}};
    if (messages.contains("tools")) prompt["tools"] = messages["tools"];
    return good("/tokenize", prompt)["count"].get<int>();
  };
  const int plain = count(body);
  body["tools"] = Json::array({errors_tool()});
  const int whole = count(body);
  EXPECT_GT(whole, plain + 100);
  const Response response = post("/v1/chat/completions", body);
  const std::string message = read_json<Json>(response.body)["error"]["message"];
  EXPECT_THAT(message, HasSubstr("resulted in " + std::to_string(whole) + " tokens (" + std::to_string(whole - plain) +
                                 " of them describe the tools)"));
}

TEST_F(ServerErrors, CountersCountWhatDoesNotFit) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "count ";
  EXPECT_GT(good("/tokenize", {{"prompt", text}})["count"].get<int>(), 5000);
  EXPECT_GT(good("/v1/messages/count_tokens", {{"messages", {{{"role", "user"}, {"content", text}}}}})["input_tokens"]
                .get<int>(),
            5000);
}

TEST_F(ServerErrors, ANearMissIsAnsweredWithTheRightAddress) {
  const auto hint = [](const std::string& path) {
    const Response response = ask(server_->port(), "POST", path, "{}");
    EXPECT_EQ(response.status, 404) << path;
    return read_json<Json>(response.body)["error"]["message"].get<std::string>();
  };
  const std::string meant = "; did you mean '/v1/chat/completions'?";
  for (const char* path : {"/v1/chat/completions/", "/chat/completions", "/chat/completions//",
                           "/v1/v1/chat/completions", "/openai/v1/chat/completions", "/proxy/v1/Chat/Completions"}) {
    EXPECT_THAT(hint(path), HasSubstr(meant)) << path;
  }
  EXPECT_THAT(hint("/v1/v1/messages"), HasSubstr("'/v1/messages'"));
  EXPECT_EQ(ask(server_->port(), "GET", "/v1/models/").body, ask(server_->port(), "GET", "/v1/models").body);
  for (const char* path : {"/v1/audio/speech", "/x/chat/completion", "/v1"}) {
    EXPECT_EQ(hint(path).find("did you mean"), std::string::npos) << path;
    EXPECT_THAT(hint(path), HasSubstr("this server has /v1/chat/completions")) << path;
  }
}

// By these details Anthropic's library knows that it must send the conversation itself.
TEST_F(ServerErrors, AThreadIsRefusedSoThatTheClientGoesOnWithoutOne) {
  for (const Json& thread :
       std::vector<Json>{{{"type", "create"}}, {{"type", "continue"}, {"previous_message_id", "x"}}}) {
    Json body = chat(kCount);
    body["max_tokens"] = 4;
    body["thread"] = thread;
    const Response response = post("/v1/messages", body);
    EXPECT_EQ(response.status, 400);
    const Json error = read_json<Json>(response.body)["error"];
    EXPECT_EQ(error["details"]["error_code"], "thread_unsupported_request");
    EXPECT_EQ(error["details"]["unsupported"], Json::array({"thread"}));
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("send the whole conversation in messages"));
  }
}

TEST_F(ServerErrors, AWrongMethodIsToldTheRightOnes) {
  const auto message = [](const std::string& method, const std::string& path) {
    const Response response = ask(server_->port(), method, path, "{}");
    EXPECT_EQ(response.status, 405) << path;
    return read_json<Json>(response.body)["error"]["message"].get<std::string>();
  };
  EXPECT_THAT(message("GET", "/v1/chat/completions"), HasSubstr("which takes POST"));
  EXPECT_THAT(message("POST", "/v1/responses/resp_1"), HasSubstr("which takes GET and DELETE"));
}

TEST_F(ServerErrors, ARequestWithoutAModelMeansTheServedOne) {
  Json body = chat(kCount);
  body.erase("model");
  body["max_tokens"] = 2;
  EXPECT_EQ(good("/v1/chat/completions", body)["model"], "demo");
  EXPECT_EQ(good("/v1/messages", body)["model"], "demo");
  body["model"] = "gpt-4o";
  const Response response = post("/v1/chat/completions", body);
  EXPECT_EQ(response.status, 404);
  EXPECT_THAT(response.body, HasSubstr("--model-name"));
}

TEST_F(ServerErrors, AnyModelMayBeTaken) {
  ServerOptions options = server_options();
  options.any_model = true;
  Engine engine(served_model());
  Server server(engine, options);
  Json body = chat(kCount);
  body["model"] = "claude-haiku-4-5";
  body["max_tokens"] = 2;
  EXPECT_EQ(ask(server.port(), "POST", "/v1/messages", body.dump()).status, 200);
  EXPECT_EQ(ask(server.port(), "GET", "/v1/models/gpt-4o").status, 200);
  const Json models = read_json<Json>(ask(server.port(), "GET", "/v1/models").body);
  EXPECT_EQ(models["data"].size(), 1u);
}

TEST_F(ServerErrors, ModelsAreAsOldAsTheServer) {
  const Response response = ask(server_->port(), "GET", "/v1/models", "", {{"anthropic-version", "2023-06-01"}});
  const std::string created = read_json<Json>(response.body)["data"][0]["created_at"];
  EXPECT_THAT(created, MatchesRegex("2[0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"));
  EXPECT_EQ(read_json<Json>(response.body)["data"][0]["max_input_tokens"], 1024);  // the context
}

}  // namespace
}  // namespace gemma4
