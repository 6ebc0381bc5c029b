// Conversations that end with the assistant, over real sockets with the demo model; and the chat template that the
// server takes.
#include <gtest/gtest.h>

#include "serving_testing.h"

namespace gemma4 {
namespace {

class ContinueTest : public ServerTest {
 protected:
  static Json begun(const std::string& beginning) {
    Json body = chat(kCount);
    body["messages"].push_back({{"role", "assistant"}, {"content", beginning}});
    return body;
  }
  static std::string prompt_of(Json body) {
    body.erase("temperature");
    const Json tokens = good("/tokenize", body)["tokens"];
    return good("/detokenize", {{"tokens", tokens}})["prompt"];
  }
};

TEST_F(ContinueTest, ChatGoesOnWithTheLastMessage) {
  const Json json = good("/v1/chat/completions", begun("9, 10, 11,"));
  EXPECT_EQ(json["choices"][0]["message"]["content"], " 12, 13, 14, 15, 16, 17.");
  // A space at the end is neither in the prompt nor in the answer.
  EXPECT_EQ(good("/v1/chat/completions", begun("9, 10, 11, "))["choices"][0]["message"]["content"],
            "12, 13, 14, 15, 16, 17.");
  std::string text;
  for (const SseEvent& event : streamed("/v1/chat/completions", begun("9, 10, 11, "))) {
    if (event.name != "DONE") text += event.data["choices"][0]["delta"].value("content", "");
  }
  EXPECT_EQ(text, "12, 13, 14, 15, 16, 17.");
}

TEST_F(ContinueTest, MessagesGoOnWithTheLastMessage) {
  Json body = begun("9, 10, 11,");
  body["max_tokens"] = 100;
  const Json json = good("/v1/messages", body);
  EXPECT_EQ(json["content"], Json({{{"type", "text"}, {"text", " 12, 13, 14, 15, 16, 17."}}}));
  std::string text;
  for (const SseEvent& event : streamed("/v1/messages", body)) {
    if (event.name == "content_block_delta") text += event.data["delta"].value("text", "");
  }
  EXPECT_EQ(text, " 12, 13, 14, 15, 16, 17.");
  body["continue_final_message"] = false;
  EXPECT_NE(good("/v1/messages", body)["content"][0]["text"], " 12, 13, 14, 15, 16, 17.");
}

TEST_F(ContinueTest, ANewTurnWhereThatIsWanted) {
  const std::string open = "<bos><|turn>user\nCount from 9 to 17.<turn|>\n<|turn>model\n9, 10";
  Json body = begun("9, 10");
  EXPECT_EQ(prompt_of(body), open);
  body["continue_final_message"] = true;
  EXPECT_EQ(prompt_of(body), open);
  body["add_generation_prompt"] = false;
  EXPECT_EQ(prompt_of(body), open);
  body["continue_final_message"] = false;
  EXPECT_EQ(prompt_of(body), open + "<turn|>\n");
  body["add_generation_prompt"] = true;
  EXPECT_EQ(prompt_of(body), open + "<turn|>\n<|turn>model\n<|channel>thought\n<channel|>");
  body["continue_final_message"] = true;
  EXPECT_EQ(post("/v1/chat/completions", body).status, 400);
  body = chat(kCount);
  body["continue_final_message"] = true;
  EXPECT_EQ(post("/v1/chat/completions", body).status, 400);
}

TEST_F(ContinueTest, ASchemaHoldsForTheWholeAnswer) {
  Json body = begun("[1,");
  const Json schema = {{"type", "array"}, {"items", {{"type", "integer"}}}, {"minItems", 3}, {"maxItems", 3}};
  body["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", schema}}}};
  const std::string rest = good("/v1/chat/completions", body)["choices"][0]["message"]["content"];
  const Json whole = read_json<Json>("[1," + rest);
  EXPECT_EQ(whole.size(), 3u);
  EXPECT_EQ(whole[0], 1);
  body["messages"][1]["content"] = "{\"a\":";
  const Response response = post("/v1/chat/completions", body);
  EXPECT_EQ(response.status, 400);
  EXPECT_NE(response.body.find("does not fit the requested format"), std::string::npos) << response.body;
}

TEST_F(ContinueTest, ABegunAnswerMayGoOnWithACall) {
  Json body = tool_chat();
  body["messages"].push_back({{"role", "assistant"}, {"content", "Sure."}});
  body["tool_choice"] = "required";
  const Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "set_timer");
}

// With thinking, July's template opens a thought after a tool's result: the answer begins inside of it, in any format.
TEST(ChatTemplateServed, ThoughtsThatThePromptOpens) {
  EngineOptions options = served_model();
  options.chat_template = "july";
  Engine engine(options);
  Server server(engine, server_options());
  Json body = tool_chat();
  body["messages"].push_back({{"role", "assistant"},
                              {"tool_calls",
                               {{{"id", "1"},
                                 {"type", "function"},
                                 {"function", {{"name", "set_timer"}, {"arguments", "{\"minutes\":6}"}}}}}}});
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", "1"}, {"content", "{\"ok\": true}"}});
  body["reasoning_effort"] = "high";
  body["max_tokens"] = 60;
  const auto asked = [&](const std::string& path) {
    const Response response = ask(server.port(), "POST", path, body.dump(), {});
    EXPECT_EQ(response.status, 200) << response.body;
    return read_json<Json>(response.body);
  };
  const Json free = asked("/v1/chat/completions")["choices"][0]["message"];
  EXPECT_GT(free.value("reasoning_content", "").size(), 0u);
  body["response_format"] = {{"type", "json_schema"},
                             {"json_schema", {{"name", "x"}, {"schema", {{"enum", {"yes", "no"}}}}}}};
  body.erase("tools");
  const Json choice = asked("/v1/chat/completions")["choices"][0];
  const std::string content = choice["message"].value("content", "");
  EXPECT_TRUE(content.empty() ? choice["finish_reason"] == "length" : content == "\"yes\"" || content == "\"no\"")
      << choice;
  for (const char* field : {"response_format", "temperature", "max_tokens"}) body.erase(field);
  const Json tokens = asked("/tokenize")["tokens"];
  body = {{"tokens", tokens}};
  EXPECT_TRUE(asked("/detokenize")["prompt"].get<std::string>().ends_with("<tool_response|><|channel>thought\n"));
}

}  // namespace
}  // namespace gemma4
