// The server over real sockets, with the demo model behind it.
#include "server/server.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.h"
#include "engine/watched_backend.h"
#include "server/testing.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
using test::ask;
using test::Headers;
using test::http_text;
using test::Response;
using test::Socket;

const std::filesystem::path kRoot = SOURCE_DIR;

EngineOptions demo_options() {
  EngineOptions options;
  options.model = kRoot / "models/demo";
  options.backend = "cpu";
  options.threads = 1;
  options.max_seq_len = 1024;
  options.max_seqs = 4;
  return options;
}

ServerOptions server_options() {
  ServerOptions options;
  options.http.port = 0;
  options.models = {"demo"};
  return options;
}

std::string base64(const std::string& bytes) {
  const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t bits = 0;
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    for (size_t k = 0; k < 3; ++k) bits = bits << 8 | (k < count ? static_cast<uint8_t>(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= count ? alphabet[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

std::string picture(const std::string& name) {
  return base64(read_file(kRoot / "tests/golden/demo_eval/images" / name));
}

struct SseEvent {
  std::string name;
  Json data;
};

std::vector<SseEvent> events_of(const std::string& body) {
  std::vector<SseEvent> all;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) ADD_FAILURE() << "an event is cut: " << body.substr(at);
    const std::string event = body.substr(at, end - at);
    at = end == std::string::npos ? body.size() : end + 2;
    const size_t data = event.find("data: ");
    if (event.starts_with("event: ")) {
      all.push_back({event.substr(7, event.find('\n') - 7), Json::parse(event.substr(data + 6))});
    } else if (event != "data: [DONE]") {
      all.push_back({"", Json::parse(event.substr(data + 6))});
    } else {
      all.push_back({"DONE", Json()});
    }
  }
  return all;
}

class ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = new Engine(demo_options());
    server_ = new Server(*engine_, server_options());
  }
  static void TearDownTestSuite() {
    delete server_;
    delete engine_;
    server_ = nullptr;
    engine_ = nullptr;
  }

  static Response post(const std::string& path, const Json& body, const Headers& headers = {}) {
    return ask(server_->port(), "POST", path, body.dump(), headers);
  }
  static Json good(const std::string& path, const Json& body, const Headers& headers = {}) {
    const Response response = post(path, body, headers);
    EXPECT_EQ(response.status, 200) << response.body;
    return response.status == 200 ? Json::parse(response.body) : Json();
  }
  static std::vector<SseEvent> streamed(const std::string& path, Json body) {
    body["stream"] = true;
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(response.headers.at("content-type"), "text/event-stream");
    return events_of(response.body);
  }

  static Engine* engine_;
  static Server* server_;
};
Engine* ServerTest::engine_ = nullptr;
Server* ServerTest::server_ = nullptr;

Json chat(const std::string& text) {
  return {{"model", "demo"}, {"temperature", 0}, {"messages", {{{"role", "user"}, {"content", text}}}}};
}

Json image_chat(const std::string& file, const std::string& question) {
  Json body = chat("");
  body["messages"][0]["content"] = {
      {{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64," + picture(file)}}}},
      {{"type", "text"}, {"text", question}}};
  return body;
}

const Json kTimer = {{"type", "function"},
                     {"function",
                      {{"name", "set_timer"},
                       {"description", "Set a timer in minutes."},
                       {"parameters",
                        {{"type", "object"},
                         {"properties", {{"minutes", {{"type", "integer"}, {"description", "The minutes."}}}}},
                         {"required", Json::array({"minutes"})}}}}}};

Json tool_chat() {
  Json body = chat("Set a timer for 6 minutes.");
  body["tools"] = Json::array({kTimer});
  return body;
}

constexpr const char* kCount = "Count from 9 to 17.";
constexpr const char* kCounted = "9, 10, 11, 12, 13, 14, 15, 16, 17.";

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
  EXPECT_EQ(Json::parse(message["tool_calls"][0]["function"]["arguments"].get<std::string>()), Json({{"minutes", 6}}));
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
  EXPECT_EQ(Json::parse(arguments), Json({{"minutes", 6}}));
  EXPECT_EQ(finish, "tool_calls");
}

TEST_F(ServerTest, ToolChoice) {
  Json body = tool_chat();
  body["tool_choice"] = "none";
  EXPECT_FALSE(good("/v1/chat/completions", body)["choices"][0]["message"].contains("tool_calls"));
  body["messages"][0]["content"] = kCount;  // nothing about timers: the call is forced
  body["tool_choice"] = {{"type", "function"}, {"function", {{"name", "set_timer"}}}};
  body["max_tokens"] = 60;
  const Json json = good("/v1/chat/completions", body);
  EXPECT_EQ(json["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "set_timer") << json;
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
  const Json answer = Json::parse(json["choices"][0]["message"]["content"].get<std::string>());
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
  Json body = chat("Spell the word ladder.");
  body["temperature"] = 2;
  body["max_tokens"] = 12;
  body["seed"] = 7;
  body["n"] = 3;
  const Json many = good("/v1/chat/completions", body);
  ASSERT_EQ(many["choices"].size(), 3u);
  body["n"] = 1;
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

TEST_F(ServerTest, ThinkingIsApart) {
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
  EXPECT_EQ(Json::parse(call["arguments"].get<std::string>()), Json({{"minutes", 6}}));
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
  EXPECT_EQ(Json::parse(arguments), Json({{"minutes", 6}}));
  body["messages"].push_back({{"role", "assistant"}, {"content", json["content"]}});
  body["messages"].push_back(
      {{"role", "user"},
       {"content",
        {{{"type", "tool_result"}, {"tool_use_id", json["content"][0]["id"]}, {"content", "{\"ok\": true}"}}}}});
  body["max_tokens"] = 5;
  EXPECT_EQ(good("/v1/messages", body)["role"], "assistant");
}

// The rest.

TEST_F(ServerTest, TokenizeAndBack) {
  const Json tokens = good("/tokenize", {{"prompt", "Count from 9."}, {"add_special_tokens", false}});
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(good("/detokenize", {{"tokens", tokens["tokens"]}})["prompt"], "Count from 9.");
  EXPECT_EQ(good("/tokenize", {{"messages", chat(kCount)["messages"]}})["count"], 18);
  EXPECT_EQ(post("/detokenize", {{"tokens", {100000000}}}).status, 400);
}

TEST_F(ServerTest, ModelsHealthMetricsPage) {
  const int port = server_->port();
  EXPECT_EQ(Json::parse(ask(port, "GET", "/v1/models").body)["data"][0]["id"], "demo");
  EXPECT_EQ(Json::parse(ask(port, "GET", "/v1/models/demo").body)["id"], "demo");
  EXPECT_EQ(ask(port, "GET", "/v1/models/other").status, 404);
  EXPECT_EQ(Json::parse(ask(port, "GET", "/health").body)["status"], "ok");
  const std::string metrics = ask(port, "GET", "/metrics").body;
  for (const char* name : {"gemma4_requests_total ", "gemma4_requests_waiting ", "gemma4_generated_tokens_total ",
                           "gemma4_time_to_first_token_seconds_bucket", "gemma4_inter_token_seconds_sum",
                           "gemma4_kv_pages_used{layers=\"full\"}", "gemma4_prompt_tokens_cached_total "}) {
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

TEST_F(ServerTest, RefusesByName) {
  const auto refused = [](const std::string& path, const Json& change, const std::string& word, Json body) {
    body.update(change);
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 400) << change << response.body;
    const Json error = Json::parse(response.body)["error"];
    EXPECT_NE(error["message"].get<std::string>().find(word), std::string::npos) << word << ": " << error;
    EXPECT_TRUE(error["type"] == "invalid_request_error");
  };
  const Json base = chat("hi");
  const auto chat_refused = [&](const Json& change, const std::string& word) {
    refused("/v1/chat/completions", change, word, base);
  };
  chat_refused({{"frobnicate", 1}}, "frobnicate");
  chat_refused({{"audio", {{"voice", "x"}}}}, "audio");
  chat_refused({{"messages", Json::array()}}, "messages");
  chat_refused({{"messages", {{{"role", "wizard"}, {"content", "x"}}}}}, "messages[0].role");
  chat_refused({{"messages", {{{"role", "user"}, {"content", 5}}}}}, "messages[0].content");
  chat_refused({{"temperature", -1}}, "temperature");
  chat_refused({{"temperature", "warm"}}, "temperature");
  chat_refused({{"n", 0}}, "n must");
  chat_refused({{"n", 1000}}, "n must");
  chat_refused({{"max_tokens", -5}}, "max_tokens");
  chat_refused({{"top_logprobs", 3}}, "top_logprobs");
  chat_refused({{"logit_bias", {{"x", 1}}}}, "logit_bias");
  chat_refused({{"logit_bias", {{"99999999", 1}}}}, "logit_bias");
  chat_refused({{"tool_choice", "required"}}, "tool_choice");
  chat_refused({{"response_format", {{"type", "xml"}}}}, "response_format");
  chat_refused({{"stream_options", {{"include_usage", true}}}}, "stream_options");
  refused("/v1/completions", {{"echo", true}}, "echo", {{"model", "demo"}, {"prompt", "x"}});
  refused("/v1/completions", {{"best_of", 3}}, "best_of", {{"model", "demo"}, {"prompt", "x"}});
  refused("/v1/responses", {{"previous_response_id", "resp_1"}}, "previous_response_id",
          {{"model", "demo"}, {"input", "x"}});
  const Json message = {{"model", "demo"}, {"max_tokens", 5}, {"messages", {{{"role", "user"}, {"content", "x"}}}}};
  refused("/v1/messages", {{"mcp_servers", {1}}}, "mcp_servers", message);
  refused("/v1/messages", {{"max_tokens", nullptr}}, "max_tokens", message);
  Json other = base;
  other["model"] = "gpt-4o";
  EXPECT_EQ(post("/v1/chat/completions", other).status, 404);
  EXPECT_EQ(ask(server_->port(), "POST", "/v1/chat/completions", "{\"model\": ").status, 400);
  EXPECT_EQ(ask(server_->port(), "POST", "/v1/chat/completions", std::string(100000, '[')).status, 400);
  EXPECT_EQ(ask(server_->port(), "GET", "/v1/chat/completions").status, 405);
  EXPECT_EQ(Json::parse(ask(server_->port(), "POST", "/v1/messages", "x").body)["type"], "error");
}

TEST_F(ServerTest, RefusesBadPictures) {
  const auto status = [](const std::string& url) {
    Json body = image_chat("000.png", "?");
    body["messages"][0]["content"][0]["image_url"]["url"] = url;
    const Response response = post("/v1/chat/completions", body);
    return std::pair(response.status, Json::parse(response.body)["error"]["message"].get<std::string>());
  };
  EXPECT_EQ(status("http://example.com/a.png").first, 400);
  EXPECT_NE(status("https://example.com/a.png").second.find("example.com"), std::string::npos);
  EXPECT_EQ(status("file:///etc/passwd").first, 400);
  EXPECT_EQ(status("data:image/png;base64,!!!!").first, 400);
  EXPECT_EQ(status("data:image/png;base64,").first, 400);
  EXPECT_EQ(status("data:image/png,abc").first, 400);
  EXPECT_EQ(status("data:text/html;base64,AAAA").first, 400);
  // Files that are damaged, cut, of other kinds, or promise more pixels than anybody has.
  const std::filesystem::path folder = kRoot / "tests/golden/decode";
  std::vector<std::string> files = {std::string(1000, '\0'), "GIF89a" + std::string(100, 'x'),
                                    read_file(folder / "rgb.png.ppm")};
  for (const char* name : {"rgb.png", "rgb_420.jpg", "lossy.webp", "interlaced.png", "progressive.jpg"}) {
    const std::string whole = read_file(folder / name);
    for (const size_t part : {size_t{1}, size_t{8}, size_t{20}, whole.size() / 2})
      files.push_back(whole.substr(0, part));
  }
  std::string vast = read_file(folder / "rgb.png");
  for (int i = 16; i < 24; ++i) vast[i] = '\x7f';  // width and height in IHDR
  files.push_back(vast);
  for (size_t i = 0; i < files.size(); ++i) {
    const auto [code, message] = status("data:image/png;base64," + base64(files[i]));
    EXPECT_EQ(code, 400) << i << ": " << message;
    EXPECT_FALSE(message.empty());
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
  EXPECT_EQ(good("/v1/chat/completions",
                 image_chat("000.png", "What number is written in the image?"))["choices"][0]["message"]["content"],
            "6542");
}

TEST_F(ServerTest, AClientThatLeavesCostsNothing) {
  const uint64_t before = engine_->stats().cancelled;
  // 32 long answers for each, four at a time: seconds of work.
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"n", 32}};
  const auto busy = [] {
    const EngineStats stats = engine_->stats();
    return stats.running + stats.waiting;
  };
  {
    Socket streaming(server_->port()), waiting(server_->port());
    waiting.send(http_text("POST", "/v1/completions", body.dump()));
    body["stream"] = true;
    streaming.send(http_text("POST", "/v1/completions", body.dump()));
    streaming.receive();
    while (busy() < 34) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  for (int i = 0; i < 2000 && busy() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(busy(), 0);
  EXPECT_GE(engine_->stats().cancelled, before + 34);
}

// With an engine or options of their own.

TEST(Server, KeysHostsAndOrigins) {
  Engine engine(demo_options());
  ServerOptions options = server_options();
  options.api_keys = {"sesame", "other"};
  options.cors_origins = {"https://good.example"};
  Server server(engine, options);
  const int port = server.port();
  EXPECT_EQ(ask(port, "GET", "/v1/models").status, 401);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"Authorization", "Bearer sesam"}}).status, 401);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"Authorization", "Bearer sesame"}}).status, 200);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"x-api-key", "other"}}).status, 200);
  EXPECT_EQ(Json::parse(ask(port, "POST", "/v1/messages", "{}").body)["error"]["type"], "authentication_error");
  EXPECT_EQ(ask(port, "GET", "/health").status, 200);
  EXPECT_EQ(ask(port, "GET", "/").status, 200);
  const Response flight = ask(port, "OPTIONS", "/v1/models", "", {{"Origin", "https://good.example"}});
  EXPECT_EQ(flight.status, 204);
  EXPECT_EQ(flight.headers.at("access-control-allow-origin"), "https://good.example");
  EXPECT_EQ(ask(port, "GET", "/health", "", {{"Origin", "https://evil.example"}}).status, 403);
  EXPECT_EQ(ask(port, "GET", "/health", "", {{"Origin", "http://localhost"}}).status, 200);  // the page itself

  Server open(engine, server_options());
  const auto named = [&](const std::string& host) {
    Socket socket(open.port());
    socket.send("GET /health HTTP/1.1\r\nHost: " + host + "\r\n\r\n");
    return socket.response().status;
  };
  EXPECT_EQ(named("localhost:8000"), 200);
  EXPECT_EQ(named("127.0.0.1"), 200);
  EXPECT_EQ(named("[::1]:8000"), 200);
  EXPECT_EQ(named("rebound.example:8000"), 403);
  EXPECT_EQ(named("127.evil.example"), 403);
}

TEST(Server, SecretsAreComparedWhole) {
  EXPECT_TRUE(same_secret("abc", "abc"));
  EXPECT_FALSE(same_secret("ab", "abc"));
  EXPECT_FALSE(same_secret("abcabc", "abc"));
  EXPECT_FALSE(same_secret("", "abc"));
  EXPECT_FALSE(same_secret("abd", "abc"));
}

TEST(Server, AFullQueueIs429) {
  EngineOptions small = demo_options();
  small.max_seqs = 1;
  small.max_queue = 1;
  Engine engine(small);
  Server server(engine, server_options());
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"stream", true}};
  Socket running(server.port()), waiting(server.port());
  running.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().running < 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  waiting.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().waiting < 1) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const Response response = ask(server.port(), "POST", "/v1/completions", body.dump());
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 200);
}

TEST(Server, StoppingTellsEveryStream) {
  Engine engine(demo_options());
  Server server(engine, server_options());
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"stream", true}};
  Socket streaming(server.port()), waiting(server.port());
  streaming.send(http_text("POST", "/v1/completions", body.dump()));
  body["stream"] = false;
  waiting.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().running < 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  server.refuse_new();
  EXPECT_EQ(ask(server.port(), "POST", "/v1/completions", body.dump()).status, 503);
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 503);
  server.stop(0);
  const Response told = streaming.response();
  EXPECT_EQ(told.status, 200);
  EXPECT_EQ(events_of(told.body).back().data["error"]["code"], "stopping");
  EXPECT_EQ(waiting.response().status, 503);
}

TEST(Server, AFailingDeviceIsToldToEveryClient) {
  const auto watch = std::make_shared<Watch>();
  watch->fail_at_sample = 20;
  Engine engine(demo_options(), std::make_unique<WatchedBackend>(make_ref(), watch));
  Server server(engine, server_options());
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"stream", true}};
  Socket streaming(server.port()), waiting(server.port());
  streaming.send(http_text("POST", "/v1/completions", body.dump()));
  body["stream"] = false;
  waiting.send(http_text("POST", "/v1/completions", body.dump()));
  EXPECT_EQ(events_of(streaming.response().body).back().data["error"]["code"], "device_failed");
  const Response told = waiting.response();
  EXPECT_EQ(told.status, 500);
  EXPECT_NE(told.body.find("fell off the bus"), std::string::npos) << told.body;
  EXPECT_EQ(ask(server.port(), "POST", "/v1/completions", body.dump()).status, 500);
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 503);
  EXPECT_TRUE(server.device_failed());
}

}  // namespace
}  // namespace gemma4
