// Ollama's API over sockets, against the demo model; the log of requests; embeddings, which are refused.
#include <algorithm>
#include <thread>

#include "base/mutex.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

class ServeOllama : public ServerTest {
 protected:
  static std::vector<Json> lines(const std::string& path, const Json& body) {
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(response.headers.at("content-type"), "application/x-ndjson");
    std::vector<Json> all;
    for (size_t at = 0; at < response.body.size();) {
      const size_t end = response.body.find('\n', at);
      if (end == std::string::npos) ADD_FAILURE() << "a line is cut";
      all.push_back(read_json<Json>(response.body.substr(at, end - at)));
      at = end == std::string::npos ? response.body.size() : end + 1;
    }
    return all;
  }
  static Json ollama_chat(const std::string& text) {
    return {{"model", "demo:latest"},
            {"messages", {{{"role", "user"}, {"content", text}}}},
            {"options", {{"temperature", 0}}}};
  }
};

TEST_F(ServeOllama, Chat) {
  Json body = ollama_chat(kCount);
  body["stream"] = false;
  const Json whole = good("/api/chat", body);
  EXPECT_EQ(whole["model"], "demo:latest");
  EXPECT_EQ(whole["message"]["role"], "assistant");
  EXPECT_EQ(whole["message"]["content"], kCounted);
  EXPECT_EQ(whole["done"], true);
  EXPECT_EQ(whole["done_reason"], "stop");
  for (const char* name : {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration", "eval_count"}) {
    EXPECT_GT(whole[name].get<int64_t>(), 0) << name;
  }
  EXPECT_EQ(whole["prompt_eval_count"], good("/v1/chat/completions", chat(kCount))["usage"]["prompt_tokens"]);
  body.erase("stream");
  std::string text;
  const std::vector<Json> streamed = lines("/api/chat", body);
  for (const Json& line : streamed) {
    text += line["message"]["content"].get<std::string>();
    EXPECT_EQ(line["done"], &line == &streamed.back());
  }
  EXPECT_EQ(text, kCounted);
  EXPECT_EQ(streamed.back()["eval_count"], whole["eval_count"]);
  // A begun answer is continued.
  Json begun = body, same = chat(kCount);
  for (Json* one : {&begun, &same}) (*one)["messages"].push_back({{"role", "assistant"}, {"content", "9, 10,"}});
  begun["stream"] = false;
  const Json rest = good("/api/chat", begun);
  EXPECT_EQ(rest["message"]["content"], good("/v1/chat/completions", same)["choices"][0]["message"]["content"]);
  EXPECT_LT(rest["message"]["content"].get<std::string>().size(), std::string(kCounted).size());
  body["options"]["num_predict"] = 3;
  EXPECT_EQ(lines("/api/chat", body).back()["done_reason"], "length");
}

TEST_F(ServeOllama, PicturesToolsAndFormats) {
  Json body = ollama_chat("What is at the left?");
  body["messages"][0]["images"] = Json::array({picture("002.png")});
  body["stream"] = false;
  Json same = image_chat("002.png", "What is at the left?");
  EXPECT_EQ(good("/api/chat", body)["message"]["content"],
            good("/v1/chat/completions", same)["choices"][0]["message"]["content"]);
  body["messages"][0]["images"] = {"data:image/png;base64," + picture("002.png")};
  EXPECT_EQ(post("/api/chat", body).status, 200);

  body = ollama_chat("Set a timer for 6 minutes.");
  body["tools"] = Json::array({kTimer});
  const std::vector<Json> streamed = lines("/api/chat", body);
  Json calls = Json::array();
  for (const Json& line : streamed) {
    if (line["message"].contains("tool_calls")) calls.push_back(line["message"]["tool_calls"][0]);
  }
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0]["function"]["name"], "set_timer");
  EXPECT_EQ(calls[0]["function"]["arguments"], (Json{{"minutes", 6}}));
  EXPECT_EQ(streamed.back()["done_reason"], "stop");
  body["stream"] = false;
  Json message = good("/api/chat", body)["message"];
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"]["minutes"], 6);
  body["messages"].push_back(message);
  body["messages"].push_back({{"role", "tool"}, {"tool_name", "set_timer"}, {"content", "started"}});
  EXPECT_FALSE(good("/api/chat", body)["message"]["content"].get<std::string>().empty());

  body = ollama_chat("Give me a number.");
  body["stream"] = false;
  body["format"] = read_json<Json>(R"({"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],
                                   "additionalProperties":false})");
  const Json answer = read_json<Json>(good("/api/chat", body)["message"]["content"].get<std::string>());
  EXPECT_TRUE(answer["n"].is_number_integer());
}

TEST_F(ServeOllama, Generate) {
  Json body = {{"model", "demo"}, {"prompt", kCount}, {"options", {{"temperature", 0}}}, {"stream", false}};
  const Json whole = good("/api/generate", body);
  EXPECT_EQ(whole["response"], kCounted);
  ASSERT_TRUE(whole["context"].is_array());
  body.erase("stream");
  std::string text;
  for (const Json& line : lines("/api/generate", body)) text += line["response"].get<std::string>();
  EXPECT_EQ(text, kCounted);
  // The context is the conversation.
  body["stream"] = false, body["context"] = whole["context"], body["prompt"] = "What is 16 + 3?";
  Json same = chat(kCount);
  same["messages"].push_back({{"role", "assistant"}, {"content", kCounted}});
  same["messages"].push_back({{"role", "user"}, {"content", "What is 16 + 3?"}});
  const Json next = good("/api/generate", body), other = good("/v1/chat/completions", same);
  EXPECT_EQ(next["response"], other["choices"][0]["message"]["content"]);
  EXPECT_EQ(next["prompt_eval_count"], other["usage"]["prompt_tokens"]);
  EXPECT_EQ(good("/api/generate", {{"model", "demo"}})["done_reason"], "load");
  // The body is JSON; what the numbers spell is not.
  for (const Json& wrong : {Json{whole["context"][0], 120}, Json{whole["context"][0], 91, 91}, Json{1, 2}}) {
    body["context"] = wrong;
    const Response refused = post("/api/generate", body);
    EXPECT_EQ(refused.status, 400);
    EXPECT_EQ(read_json<Json>(refused.body)["error"], "context is not one that this server has returned") << wrong;
  }
}

TEST_F(ServeOllama, WhatIsServed) {
  const auto get = [](const std::string& path) { return read_json<Json>(ask(server_->port(), "GET", path, "").body); };
  const Json model = get("/api/tags")["models"][0];
  EXPECT_EQ(model["name"], "demo:latest");
  EXPECT_EQ(model["details"]["family"], "gemma4");
  EXPECT_EQ(model["details"]["quantization_level"], "BF16");
  EXPECT_GT(model["size"].get<int64_t>(), 1 << 20);
  EXPECT_EQ(model["digest"].get<std::string>().size(), 64u);
  EXPECT_EQ(get("/api/ps")["models"][0]["context_length"], 1024);
  EXPECT_TRUE(get("/api/version")["version"].is_string());
  const Json shown = good("/api/show", {{"model", "demo"}});
  EXPECT_EQ(shown["capabilities"], (Json{"completion", "tools", "thinking", "vision"}));
  EXPECT_EQ(shown["model_info"]["gemma4.context_length"], 1024);
  EXPECT_EQ(post("/api/show", {{"model", "other"}}).status, 404);
}

TEST_F(ServeOllama, NoModelIsFetchedOrChanged) {
  EXPECT_EQ(good("/api/pull", {{"model", "demo:latest"}, {"stream", false}}), Json({{"status", "success"}}));
  EXPECT_EQ(good("/api/pull", {{"name", "demo"}})["status"], "success");
  const Response other = post("/api/pull", {{"model", "llama3"}});
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(read_json<Json>(other.body)["error"], "model 'llama3' not found; this server has 'demo'");
  for (const auto& [method, path] : {std::pair("POST", "/api/create"), std::pair("POST", "/api/copy"),
                                     std::pair("POST", "/api/push"), std::pair("DELETE", "/api/delete")}) {
    const Response response = ask(server_->port(), method, path, R"({"model":"demo"})");
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_NE(read_json<Json>(response.body)["error"].get<std::string>().find("of its --model"), std::string::npos);
  }
}

TEST_F(ServeOllama, ErrorsHaveItsForm) {
  const auto error = [](const std::string& path, const Json& body, int status) {
    const Response response = post(path, body);
    EXPECT_EQ(response.status, status) << response.body;
    const Json json = read_json<Json>(response.body);
    EXPECT_EQ(json.size(), 1u);
    return json["error"].get<std::string>();
  };
  EXPECT_NE(error("/api/chat", {{"model", "other"}}, 404).find("model 'other' not found"), std::string::npos);
  Json body = ollama_chat("x");
  body["options"]["temperature"] = "hot";
  EXPECT_NE(error("/api/chat", body, 400).find("options.temperature must be a number"), std::string::npos);
  EXPECT_NE(error("/api/nothing", {{"model", "demo"}}, 404).find("nothing at '/api/nothing'"), std::string::npos);
  for (const char* path : {"/api/embed", "/api/embeddings"}) {
    EXPECT_NE(error(path, {{"model", "demo"}, {"input", "x"}}, 400).find("makes no embeddings"), std::string::npos);
  }
  const Response openai = post("/v1/embeddings", {{"model", "demo"}, {"input", "x"}});
  EXPECT_EQ(openai.status, 400);
  EXPECT_EQ(read_json<Json>(openai.body)["error"]["code"], "embeddings_not_supported");
}

// Keys are asked for, and cancelling reaches the engine, as in the other APIs.
TEST(ServeOllamaAccess, KeysAndClientsThatLeave) {
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.api_keys = {"sesame"};
  Server server(engine, options);
  const std::string body = R"({"model":"demo","messages":[{"role":"user","content":"x"}]})";
  const Response refused = ask(server.port(), "POST", "/api/chat", body);
  EXPECT_EQ(refused.status, 401);
  EXPECT_TRUE(read_json<Json>(refused.body)["error"].is_string());
  EXPECT_EQ(ask(server.port(), "POST", "/api/chat", body, {{"Authorization", "Bearer sesame"}}).status, 200);
  const std::string endless =
      R"({"model":"demo","prompt":"x","raw":true,"options":{"seed":1,"temperature":2,"num_predict":900}})";
  {
    Socket socket(server.port());
    socket.send(http_text("POST", "/api/generate", endless, {{"Authorization", "Bearer sesame"}}));
    socket.peek();
  }
  for (int i = 0; i < 100 && engine.stats().running > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_EQ(engine.stats().running, 0);
}

// A line for each request: tokens and status, and nothing that was said.
TEST(ServeAccess, EachRequestIsALineOfTheLog) {
  for (const RequestLog which : {RequestLog::kRequests, RequestLog::kErrors, RequestLog::kOff}) {
    Engine engine(served_model());
    ServerOptions options = server_options();
    options.api_keys = {"sesame-key"};
    options.log = which;
    Mutex mutex;
    std::vector<std::string> log;
    options.log_line = [&](const std::string& line) {
      const MutexLock lock(mutex);
      log.push_back(line);
    };
    {
      Server server(engine, options);
      const Headers key = {{"Authorization", "Bearer sesame-key"}};
      Json body = chat("What is 16 + 3?");
      const Json whole = read_json<Json>(ask(server.port(), "POST", "/v1/chat/completions", body.dump(), key).body);
      body["stream"] = true;
      ask(server.port(), "POST", "/v1/chat/completions", body.dump(), key);
      const Response wrong = ask(server.port(), "POST", "/v1/chat/completions", "{}", key);
      ask(server.port(), "GET", "/v1/models", "", {{"Authorization", "Bearer guess"}});
      ask(server.port(), "GET", "/nothing?key=sesame-key", "", key);
      server.stop(5);
      const std::string id = wrong.headers.at("x-request-id");
      const MutexLock lock(mutex);
      for (const std::string& line : log) {
        EXPECT_EQ(line.find("sesame"), std::string::npos) << line;
        EXPECT_EQ(line.find("16 + 3"), std::string::npos) << line;
        EXPECT_NE(line.find(" 127.0.0.1 "), std::string::npos) << line;
        EXPECT_NE(line.find(" id=req_"), std::string::npos) << line;
      }
      const auto has = [&](const std::string& part) {
        return std::ranges::any_of(log, [&](const auto& line) { return line.find(part) != line.npos; });
      };
      if (which == RequestLog::kOff) {
        EXPECT_TRUE(log.empty());
        continue;
      }
      const Json& usage = whole["usage"];
      const std::string answered = " POST /v1/chat/completions 200 in=" + usage["prompt_tokens"].dump() + " cached=";
      EXPECT_EQ(log.size(), which == RequestLog::kRequests ? 5u : 3u);
      EXPECT_EQ(std::ranges::count_if(log, [&](const auto& line) { return line.find(answered) != line.npos; }),
                which == RequestLog::kRequests ? 2 : 0);
      EXPECT_EQ(has(" out=" + usage["completion_tokens"].dump() + " ms="), which == RequestLog::kRequests);
      EXPECT_TRUE(has(" POST /v1/chat/completions 400 ms=")) << "with the id of the answer";
      EXPECT_TRUE(has(id));
      EXPECT_TRUE(has(" GET /v1/models 401 "));
      EXPECT_TRUE(has(" GET /nothing 404 "));
    }
  }
}

}  // namespace
}  // namespace gemma4
