// Every endpoint of the server over real sockets, with the demo model.
#include <gtest/gtest.h>

#include <thread>

#include "serving_testing.h"

namespace gemma4 {
namespace {

// OpenAI: chat.

TEST_F(ServerTest, ChatAnswers) {
  const Json json = good("/v1/chat/completions", chat(kCount));
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], "demo");
  EXPECT_EQ(json["choices"][0]["message"]["content"], kCounted);
  EXPECT_EQ(json["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 18);
  EXPECT_EQ(json["usage"]["total_tokens"], 18 + json["usage"]["completion_tokens"].get<int>());
}

TEST_F(ServerTest, ChatSeesPictures) {
  const Json json = good("/v1/chat/completions", image_chat("000.png", "What number is written in the image?"));
  EXPECT_EQ(json["choices"][0]["message"]["content"], "6542");
}

TEST_F(ServerTest, ChatStreams) {
  Json body = chat(kCount);
  body["stream_options"] = {{"include_usage", true}};
  const auto events = streamed("/v1/chat/completions", body);
  std::string text, finish;
  for (const SseEvent& event : events) {
    if (event.name == "DONE" || event.data["choices"].empty()) continue;
    const Json& choice = event.data["choices"][0];
    EXPECT_EQ(event.data["object"], "chat.completion.chunk");
    text += choice["delta"].value("content", "");
    if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
  }
  EXPECT_EQ(text, kCounted);
  EXPECT_EQ(finish, "stop");
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events[0].data["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(events.back().name, "DONE");
  const Json& last = events[events.size() - 2].data;
  EXPECT_TRUE(last["choices"].empty());
  EXPECT_EQ(last["usage"]["prompt_tokens"], 18);
}

TEST_F(ServerTest, ToolLoop) {
  Json body = tool_chat();
  Json json = good("/v1/chat/completions", body);
  EXPECT_EQ(json["choices"][0]["finish_reason"], "tool_calls");
  const Json message = json["choices"][0]["message"];
  ASSERT_EQ(message["tool_calls"].size(), 1u);
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "set_timer");
  EXPECT_EQ(read_json<Json>(message["tool_calls"][0]["function"]["arguments"].get<std::string>()),
            Json({{"minutes", 6}}));
  body["messages"].push_back(message);
  body["messages"].push_back(
      {{"role", "tool"}, {"tool_call_id", message["tool_calls"][0]["id"]}, {"content", "{\"ok\": true}"}});
  body["max_tokens"] = 8;
  json = good("/v1/chat/completions", body);
  EXPECT_GT(json["usage"]["prompt_tokens"], 80);
}

TEST_F(ServerTest, ToolCallsStream) {
  std::string name, arguments, finish;
  for (const SseEvent& event : streamed("/v1/chat/completions", tool_chat())) {
    if (event.name == "DONE") continue;
    const Json& choice = event.data["choices"][0];
    if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
    if (!choice["delta"].contains("tool_calls")) continue;
    const Json& call = choice["delta"]["tool_calls"][0];
    EXPECT_EQ(call["index"], 0);
    name += call["function"].value("name", "");
    arguments += call["function"]["arguments"].get<std::string>();
  }
  EXPECT_EQ(name, "set_timer");
  EXPECT_EQ(read_json<Json>(arguments), Json({{"minutes", 6}}));
  EXPECT_EQ(finish, "tool_calls");
}

TEST_F(ServerTest, ToolChoice) {
  Json body = tool_chat();
  body["tool_choice"] = "none";
  EXPECT_FALSE(good("/v1/chat/completions", body)["choices"][0]["message"].contains("tool_calls"));
  body["messages"][0]["content"] = kCount;  // not about timers: the call is forced
  body["tool_choice"] = {{"type", "function"}, {"function", {{"name", "set_timer"}}}};
  body["max_tokens"] = 60;
  const Json json = good("/v1/chat/completions", body);
  EXPECT_EQ(json["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "set_timer") << json;
}

// Integers too long for 64 bits or a double. The tool's schema forces them; they are parsed again from the history, and
// counted.
TEST_F(ServerTest, LongIntegersInCallsKeepTheirDigits) {
  const std::string digits = "1234567890123456789012345678";
  const auto exact = [&](std::string body) {
    const size_t at = body.find("\"DIGITS\"");
    return body.replace(at, 8, digits);
  };
  const Json parameters = {{"type", "object"},
                           {"properties", {{"n", {{"type", "integer"}, {"enum", {"DIGITS"}}}}}},
                           {"required", Json::array({"n"})}};
  Json chat_body = chat("Who are you?");
  chat_body["tools"] = {
      {{"type", "function"}, {"function", {{"name", "f"}, {"description", "F."}, {"parameters", parameters}}}}};
  chat_body["tool_choice"] = {{"type", "function"}, {"function", {{"name", "f"}}}};
  const Response openai = ask(server_->port(), "POST", "/v1/chat/completions", exact(chat_body.dump()));
  ASSERT_EQ(openai.status, 200) << openai.body;
  EXPECT_NE(openai.body.find(R"("arguments":"{\"n\":)" + digits + "}\""), std::string::npos) << openai.body;
  Json message_body = {{"model", "demo"}, {"max_tokens", 60}, {"messages", chat_body["messages"]}};
  message_body["tools"] = {{{"name", "f"}, {"description", "F."}, {"input_schema", parameters}}};
  message_body["tool_choice"] = {{"type", "tool"}, {"name", "f"}};
  const Response anthropic = ask(server_->port(), "POST", "/v1/messages", exact(message_body.dump()));
  ASSERT_EQ(anthropic.status, 200) << anthropic.body;
  EXPECT_NE(anthropic.body.find(R"("input":{"n":)" + digits + "}"), std::string::npos) << anthropic.body;
}

TEST_F(ServerTest, JsonSchema) {
  Json body = image_chat("001.png", "List the shapes as JSON.");
  body["response_format"] = {{"type", "json_schema"},
                             {"json_schema",
                              {{"name", "color"},
                               {"schema",
                                {{"type", "object"},
                                 {"properties", {{"color", {{"type", "string"}, {"enum", {"red", "purple"}}}}}},
                                 {"required", Json::array({"color"})},
                                 {"additionalProperties", false}}}}}};
  const Json json = good("/v1/chat/completions", body);
  const Json answer = read_json<Json>(json["choices"][0]["message"]["content"].get<std::string>());
  EXPECT_EQ(answer.size(), 1u);
  EXPECT_TRUE(answer["color"] == "red" || answer["color"] == "purple") << answer;
}

TEST_F(ServerTest, LogprobsNameEveryToken) {
  Json body = chat(kCount);
  body["logprobs"] = true;
  body["top_logprobs"] = 2;
  const Json whole = good("/v1/chat/completions", body)["choices"][0]["logprobs"]["content"];
  std::string text;
  for (const Json& token : whole) {
    text += token["token"].get<std::string>();
    EXPECT_LE(token["logprob"], 0);
    EXPECT_EQ(token["top_logprobs"].size(), 2u);
    EXPECT_EQ(token["top_logprobs"][0]["token"], token["token"]);  // temperature 0
  }
  EXPECT_EQ(text, kCounted);
  std::string pieces;
  for (const SseEvent& event : streamed("/v1/chat/completions", body)) {
    if (event.name == "DONE" || !event.data["choices"][0]["logprobs"].is_object()) continue;
    for (const Json& token : event.data["choices"][0]["logprobs"]["content"]) pieces += token["token"];
  }
  EXPECT_EQ(pieces, kCounted);
}

TEST_F(ServerTest, ManyChoicesAreTheSeedsOfOne) {
  Json body = chat("Why?");  // a question that the model does not know, so that seeds differ
  body["temperature"] = 2;
  body["max_tokens"] = 12;
  body["seed"] = 7;
  body["n"] = 3;
  const Json many = good("/v1/chat/completions", body);
  ASSERT_EQ(many["choices"].size(), 3u);
  EXPECT_NE(many["choices"][0]["message"]["content"], many["choices"][1]["message"]["content"]);
  std::vector<std::string> pieces(3);
  for (const SseEvent& event : streamed("/v1/chat/completions", body)) {
    if (event.name == "DONE") continue;
    for (const Json& choice : event.data["choices"]) pieces.at(choice["index"]) += choice["delta"].value("content", "");
  }
  for (int i = 0; i < 3; ++i) EXPECT_EQ(many["choices"][i]["message"]["content"], pieces[i]);
  body["n"] = 1;
  EXPECT_EQ(many["usage"]["prompt_tokens"], good("/v1/chat/completions", body)["usage"]["prompt_tokens"]);
  for (int i = 0; i < 3; ++i) {
    body["seed"] = 7 + i;
    EXPECT_EQ(many["choices"][i]["index"], i);
    EXPECT_EQ(many["choices"][i]["message"]["content"],
              good("/v1/chat/completions", body)["choices"][0]["message"]["content"]);
  }
}

TEST_F(ServerTest, StopStringsAndLength) {
  Json body = chat(kCount);
  body["stop"] = ", 12";
  EXPECT_EQ(good("/v1/chat/completions", body)["choices"][0]["message"]["content"], "9, 10, 11");
  body.erase("stop");
  body["max_completion_tokens"] = 3;
  const Json json = good("/v1/chat/completions", body);
  EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json["usage"]["completion_tokens"], 3);
}

TEST_F(ServerTest, ThinkingIsSeparate) {
  Json body = chat("What is 3 + 4?");
  body["reasoning_effort"] = "high";
  const Json message = good("/v1/chat/completions", body)["choices"][0]["message"];
  EXPECT_FALSE(message["reasoning_content"].get<std::string>().empty()) << message;
  EXPECT_EQ(message["content"].get<std::string>().find("thought"), std::string::npos);
}

// OpenAI: completions and responses.

TEST_F(ServerTest, CompletionsTakeTextAndIds) {
  const std::string prompt =
      "<bos><|turn>user\nCount from 9 to 17.<turn|>\n<|turn>model\n<|channel>thought\n<channel|>";
  const Json body = {{"model", "demo"}, {"prompt", prompt}, {"temperature", 0}, {"max_tokens", 40}};
  EXPECT_EQ(good("/v1/completions", body)["choices"][0]["text"], kCounted);
  Json ids = body;
  ids["prompt"] = good("/tokenize", {{"prompt", prompt}})["tokens"];
  EXPECT_EQ(ids["prompt"].size(), 18u);
  EXPECT_EQ(good("/v1/completions", ids)["choices"][0]["text"], kCounted);
  Json both = body;
  both["prompt"] = {prompt, ids["prompt"]};
  const Json json = good("/v1/completions", both);
  ASSERT_EQ(json["choices"].size(), 2u);
  EXPECT_EQ(json["choices"][1]["text"], kCounted);
  EXPECT_EQ(json["usage"]["prompt_tokens"], 36);
  std::string text;
  for (const SseEvent& event : streamed("/v1/completions", body)) {
    if (event.name != "DONE") text += event.data["choices"][0]["text"];
  }
  EXPECT_EQ(text, kCounted);
}

TEST_F(ServerTest, ResponsesAnswer) {
  const Json body = {{"model", "demo"}, {"input", kCount}, {"temperature", 0}};
  const Json json = good("/v1/responses", body);
  EXPECT_EQ(json["status"], "completed");
  EXPECT_EQ(json["output"][0]["content"][0]["text"], kCounted);
  int sequence = 0;
  std::string text;
  std::vector<std::string> names;
  for (const SseEvent& event : streamed("/v1/responses", body)) {
    EXPECT_EQ(event.data["sequence_number"], sequence++);
    EXPECT_EQ(event.data["type"], event.name);
    if (names.empty() || names.back() != event.name) names.push_back(event.name);
    if (event.name == "response.output_text.delta") text += event.data["delta"];
    if (event.name == "response.completed") {
      EXPECT_EQ(event.data["response"]["output"][0]["content"][0]["text"], kCounted);
    }
  }
  EXPECT_EQ(text, kCounted);
  EXPECT_EQ(names, (std::vector<std::string>{"response.created", "response.in_progress", "response.output_item.added",
                                             "response.content_part.added", "response.output_text.delta",
                                             "response.output_text.done", "response.content_part.done",
                                             "response.output_item.done", "response.completed"}));
}

TEST_F(ServerTest, ResponsesToolLoop) {
  Json tool = kTimer["function"];
  tool["type"] = "function";
  Json body = {{"model", "demo"},
               {"temperature", 0},
               {"tools", {tool}},
               {"input", {{{"role", "user"}, {"content", "Set a timer for 6 minutes."}}}}};
  const Json json = good("/v1/responses", body);
  const Json call = json["output"][0];
  EXPECT_EQ(call["type"], "function_call") << json;
  EXPECT_EQ(read_json<Json>(call["arguments"].get<std::string>()), Json({{"minutes", 6}}));
  body["input"].push_back(call);
  body["input"].push_back({{"type", "function_call_output"}, {"call_id", call["call_id"]}, {"output", "done"}});
  body["max_output_tokens"] = 4;
  EXPECT_EQ(good("/v1/responses", body)["object"], "response");
}

// Anthropic.

TEST_F(ServerTest, MessagesAnswer) {
  const Json body = {{"model", "demo"},
                     {"max_tokens", 60},
                     {"temperature", 0},
                     {"messages",
                      {{{"role", "user"},
                        {"content",
                         {{{"type", "image"},
                           {"source", {{"type", "base64"}, {"media_type", "image/png"}, {"data", picture("002.png")}}}},
                          {{"type", "text"}, {"text", "What is at the left?"}}}}}}}};
  const Json json = good("/v1/messages", body);
  EXPECT_EQ(json["type"], "message");
  EXPECT_EQ(json["content"][0]["text"], "A pink circle.");
  EXPECT_EQ(json["stop_reason"], "end_turn");
  const Json count = good("/v1/messages/count_tokens", {{"model", "demo"}, {"messages", body["messages"]}});
  EXPECT_EQ(count["input_tokens"], 83);
  const Json& usage = json["usage"];
  EXPECT_EQ(usage["input_tokens"].get<int>() + usage["cache_read_input_tokens"].get<int>(), 83);
  std::string text;
  std::vector<std::string> names;
  for (const SseEvent& event : streamed("/v1/messages", body)) {
    EXPECT_EQ(event.data["type"], event.name);
    if (names.empty() || names.back() != event.name) names.push_back(event.name);
    if (event.name == "content_block_delta") text += event.data["delta"]["text"];
    if (event.name == "message_delta") {
      EXPECT_EQ(event.data["delta"]["stop_reason"], "end_turn");
    }
  }
  EXPECT_EQ(text, "A pink circle.");
  EXPECT_EQ(names, (std::vector<std::string>{"message_start", "content_block_start", "content_block_delta",
                                             "content_block_stop", "message_delta", "message_stop"}));
}

// Anthropic's way to compute a prompt before it is asked.
TEST_F(ServerTest, MessagesOfNoTokensComputeThePrompt) {
  Json body = chat(kCount + std::string(" Count from 9 to 17. Count from 9 to 17. Count from 9 to 17. Again.") +
                   " Count from 9 to 17. Count from 9 to 17. Count from 9 to 17. Count from 9 to 17. And again.");
  body["max_tokens"] = 0;
  const Json first = good("/v1/messages", body);
  EXPECT_EQ(first["content"], Json::array());
  EXPECT_EQ(first["stop_reason"], "max_tokens");
  EXPECT_EQ(first["usage"]["output_tokens"], 0);
  const auto events = streamed("/v1/messages", body);
  EXPECT_EQ(events[events.size() - 2].data["delta"]["stop_reason"], "max_tokens");
  body["max_tokens"] = 5;
  EXPECT_GT(good("/v1/messages", body)["usage"]["cache_read_input_tokens"], 0);
}

TEST_F(ServerTest, MessagesToolLoop) {
  Json body = {{"model", "demo"},
               {"max_tokens", 60},
               {"temperature", 0},
               {"tools",
                {{{"name", "set_timer"},
                  {"description", "Set a timer in minutes."},
                  {"input_schema", kTimer["function"]["parameters"]}}}},
               {"messages", {{{"role", "user"}, {"content", "Set a timer for 6 minutes."}}}}};
  const Json json = good("/v1/messages", body);
  EXPECT_EQ(json["stop_reason"], "tool_use");
  EXPECT_EQ(json["content"][0]["type"], "tool_use") << json;
  EXPECT_EQ(json["content"][0]["input"], Json({{"minutes", 6}}));
  std::string arguments;
  for (const SseEvent& event : streamed("/v1/messages", body)) {
    if (event.name == "content_block_delta") arguments += event.data["delta"].value("partial_json", "");
  }
  EXPECT_EQ(read_json<Json>(arguments), Json({{"minutes", 6}}));
  body["messages"].push_back({{"role", "assistant"}, {"content", json["content"]}});
  body["messages"].push_back(
      {{"role", "user"},
       {"content",
        {{{"type", "tool_result"}, {"tool_use_id", json["content"][0]["id"]}, {"content", "{\"ok\": true}"}}}}});
  body["max_tokens"] = 5;
  EXPECT_EQ(good("/v1/messages", body)["role"], "assistant");
}

// Other endpoints.

TEST_F(ServerTest, TokenizeAndBack) {
  const Json tokens = good("/tokenize", {{"prompt", "Count from 9."}, {"add_special_tokens", false}});
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(good("/detokenize", {{"tokens", tokens["tokens"]}})["prompt"], "Count from 9.");
  EXPECT_EQ(good("/tokenize", {{"messages", chat(kCount)["messages"]}})["count"], 18);
  EXPECT_EQ(post("/detokenize", {{"tokens", {100000000}}}).status, 400);
}

TEST_F(ServerTest, ModelsHealthMetricsPage) {
  const int port = server_->port();
  EXPECT_EQ(read_json<Json>(ask(port, "GET", "/v1/models").body)["data"][0]["id"], "demo");
  EXPECT_EQ(read_json<Json>(ask(port, "GET", "/v1/models/demo").body)["id"], "demo");
  EXPECT_EQ(ask(port, "GET", "/v1/models/other").status, 404);
  const Response health = ask(port, "GET", "/health");
  EXPECT_EQ(read_json<Json>(health.body)["status"], "ok");
  // One is read by OpenAI's client, the other by Anthropic's.
  EXPECT_EQ(health.headers.at("x-request-id").substr(0, 4), "req_");
  EXPECT_EQ(health.headers.at("request-id"), health.headers.at("x-request-id"));
  const std::string metrics = ask(port, "GET", "/metrics").body;
  for (const char* name :
       {"gemma4_requests_total ", "gemma4_requests_waiting ", "gemma4_generated_tokens_total ",
        "gemma4_time_to_first_token_seconds_bucket", "gemma4_inter_token_seconds_sum",
        "gemma4_kv_pages_used{layers=\"full\"}", "gemma4_prompt_tokens_cached_total ", "gemma4_prefix_hits_total "}) {
    EXPECT_NE(metrics.find(name), std::string::npos) << name;
  }
  const Response page = ask(port, "GET", "/");
  EXPECT_EQ(page.status, 200);
  EXPECT_NE(page.body.find("chat.js"), std::string::npos);
  EXPECT_NE(page.headers.at("content-security-policy").find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(ask(port, "GET", "/chat.js").headers.at("content-type"), "text/javascript; charset=utf-8");
  EXPECT_EQ(ask(port, "GET", "/../server.cc").status, 404);
  EXPECT_EQ(ask(port, "HEAD", "/health", "", {{"Connection", "close"}}).status, 200);
}

TEST(Server, DraftsAreCountedAndChangeNoAnswer) {
  const std::string body = R"({"model": "demo", "messages": [{"role": "user", "content": "Who are you? Who are you?"}],
                               "temperature": 0, "max_tokens": 40})";
  const auto answer = [&](const EngineOptions& options, std::string& metrics) {
    Engine engine(options);
    Server server(engine, server_options());
    const Json json = read_json<Json>(ask(server.port(), "POST", "/v1/chat/completions", body).body);
    // The answer comes out of a step whose counters are told at its end.
    for (int i = 0; i < 1000 && engine.stats().running > 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    metrics = ask(server.port(), "GET", "/metrics").body;
    return json;
  };
  std::string metrics;
  EngineOptions options = served_model();
  const Json plain = answer(options, metrics);
  EXPECT_FALSE(plain.at("timings").contains("rounds"));
  EXPECT_EQ(metrics.find("gemma4_rounds_total"), std::string::npos);
  options.drafter = std::string(SOURCE_DIR) + "/models/demo-assistant";
  options.draft_tokens = 3;
  const Json with = answer(options, metrics);
  EXPECT_EQ(with.at("choices").at(0).at("message"), plain.at("choices").at(0).at("message"));
  EXPECT_EQ(with.at("usage"), plain.at("usage"));
  const Json& timings = with.at("timings");
  EXPECT_GT(timings.at("rounds").get<int>(), 0);
  EXPECT_EQ(timings.at("drafted").get<int>() >= timings.at("rounds").get<int>(), true);
  EXPECT_TRUE(timings.at("accepted_by_position").is_array());
  for (const char* name : {"rounds", "drafted", "accepted"}) {
    EXPECT_NE(metrics.find("\ngemma4_" + std::string(name) + "_total " + timings.at(name).dump() + "\n"),
              std::string::npos)
        << name << metrics;
  }
}

TEST_F(ServerTest, ModelsSayWhatThePageShows) {
  const Json model = read_json<Json>(ask(server_->port(), "GET", "/v1/models/demo").body);
  EXPECT_GT(model["parameters"], 7000000);
  EXPECT_LT(model["parameters"], 8000000);
  EXPECT_TRUE(model["weights"].is_string());
  EXPECT_EQ(model["generation"], Json({{"temperature", 1.0}, {"top_p", 0.95}, {"top_k", 64}}));
}

TEST_F(ServerTest, FilesOfThePage) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SOURCE_DIR "/src/server/page")) {
    const std::string name = entry.path().filename();
    if (name == "libraries.js") continue;  // the build makes another
    const Response served = ask(server_->port(), "GET", name == "index.html" ? "/" : "/" + name);
    EXPECT_EQ(served.status, 200) << name;
    EXPECT_EQ(served.body, read_file(entry.path())) << name;
    ++found;
  }
  EXPECT_GT(found, 20);
  const std::string libraries = ask(server_->port(), "GET", "/libraries.js").body;
  EXPECT_NE(libraries.find("export const libraries = {katex: "), std::string::npos) << libraries;
}

// A browser gets a page that says what to do, every other client the error as JSON.
TEST_F(ServerTest, HostNameThatIsNotAllowed) {
  const auto get = [&](const std::string& host, const std::string& accept) {
    Socket socket(server_->port());
    socket.send("GET / HTTP/1.1\r\nHost: " + host + "\r\nAccept: " + accept + "\r\n\r\n");
    return socket.response();
  };
  const Response page = get("MyBox.test:8000", "text/html,application/xhtml+xml,*/*;q=0.8");
  EXPECT_EQ(page.status, 403);
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_NE(page.body.find("gemma4 serve … --allow-host mybox.test<"), std::string::npos) << page.body;
  EXPECT_NE(page.headers.at("content-security-policy").find("default-src 'none'"), std::string::npos);
  const Response odd = get("a&b\"c", "text/html");
  EXPECT_TRUE(odd.status == 400 || odd.body.find("--allow-host NAME<") != std::string::npos) << odd.body;
  EXPECT_EQ(odd.body.find("a&b"), std::string::npos);
  const Response json = get("mybox.test", "*/*");
  EXPECT_EQ(json.status, 403);
  EXPECT_EQ(read_json<Json>(json.body)["error"]["code"], "host_not_allowed");
}

}  // namespace
}  // namespace gemma4
