// Tool calls over HTTP: what is enforced, how arguments stream, and where a limit cuts a call.
#include <gmock/gmock.h>

#include "serving_testing.h"
#include "text/chat/call_parser.h"

namespace gemma4 {
namespace {

class ServerCalls : public ServerTest {};

const Json kWords = {{"type", "object"},
                     {"properties", {{"text", {{"type", "string"}, {"minLength", 60}, {"maxLength", 80}}}}},
                     {"required", Json::array({"text"})}};

Json tool(const std::string& name, const Json& parameters) {
  return {{"type", "function"}, {"function", {{"name", name}, {"description", "D."}, {"parameters", parameters}}}};
}

// The same request for each API: one tool that must be called, or may be.
Json words_chat(const std::string& text, const Json& choice) {
  Json body = chat(text);
  body["tools"] = Json::array({tool("files:write/a.txt", kWords)});
  body["tool_choice"] = choice;
  return body;
}

Json words_responses(const std::string& text, const Json& choice) {
  return {{"model", "demo"},
          {"temperature", 0},
          {"input", text},
          {"tool_choice", choice},
          {"tools",
           {{{"type", "function"}, {"name", "files:write/a.txt"}, {"description", "D."}, {"parameters", kWords}}}}};
}

Json words_messages(const std::string& text, const Json& choice) {
  return {{"model", "demo"},
          {"temperature", 0},
          {"max_tokens", 400},
          {"messages", {{{"role", "user"}, {"content", text}}}},
          {"tool_choice", choice},
          {"tools", {{{"name", "files:write/a.txt"}, {"description", "D."}, {"input_schema", kWords}}}}};
}

struct StreamedCall {
  std::string name, arguments, finish;
  int pieces = 0, ended = 0;
};

StreamedCall chat_call(const std::vector<SseEvent>& events) {
  StreamedCall call;
  std::string id;
  for (const SseEvent& event : events) {
    if (event.name == "DONE" || event.data["choices"].empty()) continue;
    const Json& choice = event.data["choices"][0];
    EXPECT_TRUE(choice["delta"].value("content", "").empty()) << choice;
    if (choice["finish_reason"].is_string()) call.finish = choice["finish_reason"], ++call.ended;
    if (!choice["delta"].contains("tool_calls")) continue;
    const Json& delta = choice["delta"]["tool_calls"][0];
    EXPECT_EQ(delta["index"], 0);
    EXPECT_EQ(delta.contains("id"), call.name.empty()) << "the first delta alone has the id";
    call.name += delta["function"].value("name", "");
    call.arguments += delta["function"]["arguments"].get<std::string>();
    ++call.pieces;
  }
  return call;
}

StreamedCall responses_call(const std::vector<SseEvent>& events) {
  StreamedCall call;
  for (const SseEvent& event : events) {
    // Where the limit comes before a call's name there is an empty message, as in a whole answer.
    if (event.data.contains("item") && event.data["item"]["type"] == "message") continue;
    if (event.name == "response.output_item.added") {
      EXPECT_EQ(event.data["item"]["status"], "in_progress");
      EXPECT_EQ(event.data["item"]["arguments"], "");
      call.name = event.data["item"]["name"];
    } else if (event.name == "response.function_call_arguments.delta") {
      call.arguments += event.data["delta"].get<std::string>();
      ++call.pieces;
    } else if (event.name == "response.function_call_arguments.done") {
      EXPECT_EQ(event.data["arguments"], call.arguments);
    } else if (event.name == "response.output_item.done") {
      call.finish = event.data["item"]["status"];
      EXPECT_EQ(event.data["item"]["arguments"], call.arguments);
      ++call.ended;
    }
  }
  return call;
}

StreamedCall messages_call(const std::vector<SseEvent>& events) {
  StreamedCall call;
  for (const SseEvent& event : events) {
    if (event.name == "content_block_start") {
      EXPECT_EQ(event.data["content_block"]["type"], "tool_use");
      call.name = event.data["content_block"]["name"];
    } else if (event.name == "content_block_delta") {
      EXPECT_EQ(event.data["delta"]["type"], "input_json_delta");
      call.arguments += event.data["delta"]["partial_json"].get<std::string>();
      ++call.pieces;
    } else if (event.name == "content_block_stop") {
      ++call.ended;
    } else if (event.name == "message_delta") {
      call.finish = event.data["delta"]["stop_reason"];
    }
  }
  return call;
}

TEST_F(ServerCalls, ArgumentsStreamAsTheyAreWritten) {
  const Json forced_chat = words_chat("Who are you?", "required");
  const Json forced_responses = words_responses("Who are you?", "required");
  const Json forced_messages = words_messages("Who are you?", {{"type", "any"}, {"disable_parallel_tool_use", true}});
  Json one_chat = forced_chat, one_responses = forced_responses;
  one_chat["parallel_tool_calls"] = one_responses["parallel_tool_calls"] = false;
  const Json whole = good("/v1/chat/completions", one_chat)["choices"][0]["message"]["tool_calls"][0]["function"];
  EXPECT_EQ(whole["name"], "files:write/a.txt");
  const std::string arguments = whole["arguments"];
  EXPECT_GE(read_json<Json>(arguments)["text"].get<std::string>().size(), 60u);
  const StreamedCall calls[] = {chat_call(streamed("/v1/chat/completions", one_chat)),
                                responses_call(streamed("/v1/responses", one_responses)),
                                messages_call(streamed("/v1/messages", forced_messages))};
  const char* const finish[] = {"tool_calls", "completed", "tool_use"};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(calls[i].name, "files:write/a.txt");
    EXPECT_EQ(calls[i].arguments, arguments);
    EXPECT_EQ(calls[i].finish, finish[i]);
    EXPECT_EQ(calls[i].ended, 1);
    EXPECT_GE(calls[i].pieces, 3) << "pieces that are ready together are joined, but not all";
  }
  EXPECT_EQ(good("/v1/responses", one_responses)["output"][0]["arguments"], arguments);
  EXPECT_EQ(good("/v1/messages", forced_messages)["content"][0]["input"], read_json<Json>(arguments));
}

TEST_F(ServerCalls, ACutCallIsPartOfACall) {
  for (const int tokens : {1, 3, 8, 20, 30}) {
    Json body = words_chat("Who are you?", "required");
    body["max_tokens"] = tokens;
    const Json choice = good("/v1/chat/completions", body)["choices"][0];
    EXPECT_EQ(choice["finish_reason"], "length");
    EXPECT_TRUE(choice["message"]["content"].is_null() || choice["message"]["content"] == "") << choice;
    const bool named = choice["message"].contains("tool_calls");
    EXPECT_TRUE(named || tokens < 20) << choice;
    const std::string partial = named ? choice["message"]["tool_calls"][0]["function"]["arguments"] : "";
    EXPECT_FALSE(Json::accept(partial));
    StreamedCall call = chat_call(streamed("/v1/chat/completions", body));
    EXPECT_EQ(call.arguments, partial);
    EXPECT_EQ(call.finish, "length");

    Json responses = words_responses("Who are you?", "required");
    responses["max_output_tokens"] = tokens;
    const Json response = good("/v1/responses", responses);
    EXPECT_EQ(response["status"], "incomplete");
    EXPECT_EQ(response["output"].back()["status"], "incomplete");
    if (named) {
      EXPECT_EQ(response["output"][0]["arguments"], partial);
    }
    call = responses_call(streamed("/v1/responses", responses));
    EXPECT_EQ(call.arguments, partial);
    EXPECT_EQ(call.ended, named);
    if (named) {
      EXPECT_EQ(call.finish, "incomplete");
    }

    Json messages = words_messages("Who are you?", {{"type", "any"}});
    messages["max_tokens"] = tokens;
    const Json message = good("/v1/messages", messages);
    EXPECT_EQ(message["stop_reason"], "max_tokens");
    EXPECT_EQ(message["content"].size(), named ? 1u : 0u) << message;
    if (named) {
      EXPECT_EQ(message["content"][0]["input"], read_json<Json>(close_arguments(partial)));
    }
    call = messages_call(streamed("/v1/messages", messages));
    EXPECT_EQ(call.arguments, partial);
    EXPECT_EQ(call.ended, named);
    EXPECT_EQ(call.finish, "max_tokens");
  }
}

TEST_F(ServerCalls, AutoCallsAnOfferedToolOnly) {
  Json body = chat("Set a timer for 6 minutes.");  // the model would call set_timer
  body["max_tokens"] = 60;
  body["tools"] = Json::array({tool("now", {{"type", "object"}, {"properties", Json::object()}})});
  const Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
  ASSERT_TRUE(message.contains("tool_calls")) << message;
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "now");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], "{}");
  body["messages"].push_back({{"role", "assistant"}, {"content", "No tools."}});
  body["messages"].push_back({{"role", "user"}, {"content", "Set a timer for 6 minutes."}});
  body.erase("tools");
  const Json none = good("/v1/chat/completions", body)["choices"][0]["message"];
  EXPECT_FALSE(none.contains("tool_calls"));
  EXPECT_EQ(none["content"].get<std::string>().find("<|"), std::string::npos) << none;
}

// The model writes minutes:6; the schema says that it is a string.
TEST_F(ServerCalls, AutoArgumentsHaveTheTypesOfTheSchema) {
  for (const Json& type : {Json("string"), Json{"string", "null"}}) {
    for (const bool strict : {false, true}) {
      for (const bool stream : {false, true}) {
        Json body = tool_chat();
        Json& function = body["tools"][0]["function"];
        function["parameters"]["properties"]["minutes"]["type"] = type;
        if (strict) function["strict"] = true;
        body["max_tokens"] = 100;
        std::string arguments;
        if (stream) {
          arguments = chat_call(streamed("/v1/chat/completions", body)).arguments;
        } else {
          const Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
          ASSERT_TRUE(message.contains("tool_calls")) << message;
          arguments = message["tool_calls"][0]["function"]["arguments"];
        }
        const Json minutes = read_json<Json>(close_arguments(arguments))["minutes"];
        EXPECT_TRUE(minutes.is_string() || (type.is_array() && minutes.is_null())) << arguments;
      }
    }
  }
}

TEST_F(ServerCalls, StrictIsKeptOrRefused) {
  Json body = tool_chat();
  body["tools"][0]["function"]["strict"] = true;
  body["tools"][0]["function"]["parameters"]["properties"]["minutes"] = {
      {"type", "integer"}, {"if", {{"const", 7}}}, {"then", false}};
  const Response refused = post("/v1/chat/completions", body);
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(refused.body.find("if"), std::string::npos) << refused.body;
  body["tools"][0]["function"].erase("strict");
  const Json taken = good("/v1/chat/completions", body);
  EXPECT_EQ(taken["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], R"({"minutes":6})");
  EXPECT_FALSE(taken.contains("warnings")) << taken;  // 6 is not 7
}

// Tools that are too large to enforce: the name and the syntax still are, and values have the types of the schema.
TEST_F(ServerCalls, ToolsThatAreTooLargeAreStillCalled) {
  Json body = tool_chat();
  Json& function = body["tools"][0]["function"];
  function["parameters"]["properties"]["minutes"]["type"] = "string";
  function["parameters"]["$defs"]["unused"]["enum"] = {std::string(300 << 10, 'x')};
  for (const bool stream : {false, true}) {
    std::string arguments;
    if (stream) {
      arguments = chat_call(streamed("/v1/chat/completions", body)).arguments;
    } else {
      const Json answer = good("/v1/chat/completions", body);
      ASSERT_TRUE(answer["choices"][0]["message"].contains("tool_calls")) << answer;
      arguments = answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
      EXPECT_EQ(answer["warnings"].size(), 1u) << answer;
    }
    EXPECT_EQ(arguments, R"({"minutes":"6"})");
  }
}

const Json kShape = {{"type", "object"},
                     {"properties", {{"a", {{"type", "integer"}, {"minimum", 0}, {"maximum", 99}}}}},
                     {"required", Json::array({"a"})},
                     {"additionalProperties", false}};

void expect_shape(const std::string& text) {
  const Json value = read_json_or_discard<Json>(text);
  ASSERT_TRUE(value.is_object()) << text;
  EXPECT_TRUE(value.at("a").is_number_integer());
}

TEST_F(ServerCalls, AFormatLeavesToolsOn) {
  Json body = tool_chat();
  body["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", kShape}}}};
  Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
  ASSERT_TRUE(message.contains("tool_calls")) << message;
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], R"({"minutes":6})");
  body["max_tokens"] = 200;
  const Json no_call = {{std::to_string(engine_->tokenizer().require("<|tool_call>")), -100}};
  body["logit_bias"] = no_call;
  message = good("/v1/chat/completions", body)["choices"][0]["message"];
  ASSERT_FALSE(message.contains("tool_calls")) << message;
  expect_shape(message["content"]);

  Json responses = {{"model", "demo"}, {"temperature", 0}, {"input", "Set a timer for 6 minutes."}};
  responses["tools"] = Json::array({kTimer["function"]});
  responses["tools"][0]["type"] = "function";
  responses["text"]["format"] = {{"type", "json_schema"}, {"name", "x"}, {"schema", kShape}};
  EXPECT_EQ(good("/v1/responses", responses)["output"][0]["type"], "function_call");
  responses["logit_bias"] = no_call;
  responses["max_output_tokens"] = 200;
  expect_shape(good("/v1/responses", responses)["output"][0]["content"][0]["text"]);

  Json messages = {{"model", "demo"}, {"temperature", 0}, {"max_tokens", 200}};
  messages["messages"] = {{{"role", "user"}, {"content", "Set a timer for 6 minutes."}}};
  messages["tools"] = {{{"name", "set_timer"},
                        {"description", "Set a timer in minutes."},
                        {"input_schema", kTimer["function"]["parameters"]}}};
  messages["output_format"] = {{"type", "json_schema"}, {"schema", kShape}};
  EXPECT_EQ(good("/v1/messages", messages)["content"][0]["type"], "tool_use");
}

// At any temperature an answer is a call or the shape.
TEST_F(ServerCalls, SampledAnswersAreACallOrTheShape) {
  Json body = tool_chat();
  body["messages"][0]["content"] = "Who are you?";
  body["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", kShape}}}};
  body.update({{"temperature", 2}, {"top_k", 0}, {"top_p", 1}, {"n", 8}, {"seed", 5}, {"max_tokens", 300}});
  body["parallel_tool_calls"] = false;
  const std::string call = std::to_string(engine_->tokenizer().require("<|tool_call>"));
  int calls = 0, shapes = 0;
  for (const int bias : {0, -8, -16, -24}) {  // the model likes to call
    body["logit_bias"][call] = bias;
    const Json answer = good("/v1/chat/completions", body);
    for (const Json& choice : answer["choices"]) {
      if (choice["finish_reason"] == "length") continue;  // white space, for long
      const Json& message = choice["message"];
      if (message.contains("tool_calls")) {
        ++calls;
        const std::string arguments = message["tool_calls"][0]["function"]["arguments"];
        EXPECT_TRUE(read_json<Json>(arguments).at("minutes").is_number_integer()) << arguments;
      } else {
        ++shapes;
        expect_shape(message["content"]);
      }
    }
  }
  EXPECT_GT(calls, 0);
  EXPECT_GT(shapes, 0);
}

TEST_F(ServerCalls, AForcedCallWinsOverAFormat) {
  Json body = tool_chat();
  body["response_format"] = {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", kShape}}}};
  for (const Json& choice : {Json("required"), Json{{"type", "function"}, {"function", {{"name", "set_timer"}}}}}) {
    body["tool_choice"] = choice;
    EXPECT_TRUE(good("/v1/chat/completions", body)["choices"][0]["message"].contains("tool_calls"));
  }
  Json responses = {{"model", "demo"}, {"temperature", 0}, {"input", "Set a timer for 6 minutes."}};
  responses["tools"] = Json::array({kTimer["function"]});
  responses["tools"][0]["type"] = "function";
  responses["text"]["format"] = {{"type", "json_schema"}, {"name", "x"}, {"schema", kShape}};
  responses["tool_choice"] = {{"type", "function"}, {"name", "set_timer"}};
  EXPECT_EQ(good("/v1/responses", responses)["output"][0]["type"], "function_call");
  Json messages = words_messages("Who are you?", {{"type", "any"}});
  messages["output_config"] = {{"format", {{"type", "json_schema"}, {"schema", kShape}}}};
  EXPECT_EQ(good("/v1/messages", messages)["content"][0]["type"], "tool_use");
}

// Clients send back what they got, and go on.
TEST_F(ServerCalls, AConversationWithACallThatWasCutGoesOn) {
  Json body = words_chat(kCount, "required");
  body["max_tokens"] = 20;
  const Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
  const Json call = message["tool_calls"][0];
  ASSERT_FALSE(Json::accept(call["function"]["arguments"].get<std::string>())) << call;
  body["messages"].push_back(message);
  body["messages"].push_back({{"role", "tool"}, {"tool_call_id", call["id"]}, {"content", "not JSON"}});
  body["tool_choice"] = "auto";
  EXPECT_THAT(good("/v1/chat/completions", body)["warnings"][0], testing::HasSubstr("were cut"));

  Json asked = words_responses(kCount, "required");
  asked["max_output_tokens"] = 20;
  const Json response = good("/v1/responses", asked);
  asked["tool_choice"] = "auto";
  asked["previous_response_id"] = response["id"];
  asked["input"] = Json::array(
      {{{"type", "function_call_output"}, {"call_id", response["output"][0]["call_id"]}, {"output", "not JSON"}}});
  EXPECT_THAT(good("/v1/responses", asked)["warnings"][0], testing::HasSubstr("were cut"));
}

}  // namespace
}  // namespace gemma4
