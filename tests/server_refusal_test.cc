// Requests, pictures and picture URLs that the server refuses, each with one sentence. It keeps serving.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "image/golden_testing.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

TEST_F(ServerTest, RefusesByName) {
  const auto refused = [](const std::string& path, const Json& change, const std::string& word, Json body) {
    body.update(change);
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 400) << change << response.body;
    const Json error = read_json<Json>(response.body)["error"];
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
  chat_refused({{"modalities", {"text", "audio"}}}, "modalities");
  chat_refused({{"include_stop_str_in_output", true}}, "include_stop_str_in_output");
  refused("/v1/completions", {{"suffix", "y"}}, "suffix", {{"model", "demo"}, {"prompt", "x"}});
  refused("/v1/completions", {{"best_of", 1}, {"n", 2}}, "best_of", {{"model", "demo"}, {"prompt", "x"}});
  refused("/v1/completions", {{"best_of", 3}, {"stream", true}}, "best_of", {{"model", "demo"}, {"prompt", "x"}});
  refused("/v1/responses", {{"background", true}}, "background", {{"model", "demo"}, {"input", "x"}});
  refused("/v1/responses", {{"previous_response_id", "resp_1"}}, "'resp_1' not found",
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
  EXPECT_EQ(read_json<Json>(ask(server_->port(), "POST", "/v1/messages", "x").body)["type"], "error");
}

TEST_F(ServerTest, RefusesBadPictures) {
  const auto status = [](const std::string& url) {
    Json body = image_chat("000.png", "?");
    body["messages"][0]["content"][0]["image_url"]["url"] = url;
    const Response response = post("/v1/chat/completions", body);
    return std::pair(response.status, read_json<Json>(response.body)["error"]["message"].get<std::string>());
  };
  EXPECT_EQ(status("http://example.com/a.png").first, 400);
  EXPECT_NE(status("https://example.com/a.png").second.find("example.com"), std::string::npos);
  EXPECT_EQ(status("file:///etc/passwd").first, 400);
  EXPECT_EQ(status("data:image/png;base64,!!!!").first, 400);
  EXPECT_EQ(status("data:image/png;base64,").first, 400);
  EXPECT_EQ(status("data:image/png,abc").first, 400);
  EXPECT_EQ(status("data:text/html;base64,AAAA").first, 400);
  // Files that are damaged, truncated, of other formats, or whose header has absurdly many pixels.
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

std::vector<std::filesystem::path> files_of(const std::string& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot / "tests/golden" / folder)) {
    if (entry.path().extension() != ".ppm") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

// Bad and extreme files (tools/make_image_corpus.py) through both APIs: each gives one sentence or an answer, and
// quickly.
TEST_F(ServerTest, EveryFileOfTheImageCorpusIsRefusedOrAnswered) {
  const auto ask_about = [](const std::filesystem::path& file) {
    const std::string data = base64(read_file(file));
    Json chat_body = chat("");
    chat_body["max_tokens"] = 2;
    chat_body["messages"][0]["content"] = {
        {{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64," + data}}}},
        {{"type", "text"}, {"text", "?"}}};
    Json messages_body = {{"model", "demo"}, {"max_tokens", 2}};
    messages_body["messages"][0] = {
        {"role", "user"},
        {"content",
         {{{"type", "image"}, {"source", {{"type", "base64"}, {"media_type", "image/png"}, {"data", data}}}},
          {{"type", "text"}, {"text", "?"}}}}};
    const std::clock_t start = std::clock();  // CPU time of this process, so that a busy machine does not matter
    const std::vector<Response> both = {post("/v1/chat/completions", chat_body), post("/v1/messages", messages_body)};
    EXPECT_LT((std::clock() - start) / CLOCKS_PER_SEC, 60) << file;
    return both;
  };
  int refused = 0, seen = 0;
  for (const auto& file : files_of("image_corpus/refused")) {
    for (const Response& response : ask_about(file)) {
      EXPECT_EQ(response.status, 400) << file << response.body;
      const std::string sentence = read_json<Json>(response.body)["error"]["message"];
      EXPECT_GT(sentence.size(), 10u) << file;
      EXPECT_LT(sentence.size(), 300u) << file << sentence;
      EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
      ++refused;
    }
  }
  for (const char* folder : {"image_corpus/shown", "decode", "decode_heif"}) {
    for (const auto& file : files_of(folder)) {
      const int status = file.extension() == ".gif" && !gif_is_read() ? 400 : 200;
      for (const Response& response : ask_about(file)) EXPECT_EQ(response.status, status) << file << response.body;
      ++seen;
    }
  }
  EXPECT_GE(refused, 80);
  EXPECT_GE(seen, 50);
  EXPECT_EQ(ask(server_->port(), "GET", "/health").status, 200);
  EXPECT_EQ(good("/v1/chat/completions",
                 image_chat("000.png", "What number is written in the image?"))["choices"][0]["message"]["content"],
            "6542");
}

// Pictures by URL.

// A host that answers /000.png with that picture of demo_eval, and /never not at all.
HttpHandlers picture_host(std::atomic<int>& waiting) {
  HttpHandlers handlers;
  handlers.gate = [](const HttpRequest&) { return std::nullopt; };
  handlers.refuse = [](const HttpRequest&, int status, const std::string&) {
    HttpResponse response;
    response.status = status;
    return response;
  };
  handlers.handle = [&waiting](HttpRequest& request) {
    HttpResponse response;
    if (request.path == "/never") {
      ++waiting;
      while (request.alive()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } else {
      response.content_type = "image/png";
      response.body = read_file(kImages + request.path.substr(1));
    }
    return response;
  };
  return handlers;
}

Json url_chat(int port, const std::string& path) {
  Json body = image_chat("000.png", "What number is written in the image?");
  body["messages"][0]["content"][0]["image_url"]["url"] = "http://127.0.0.1:" + std::to_string(port) + path;
  return body;
}

TEST(ServerFetch, PicturesOfAllowedHostsAreSeenByEveryApi) {
  std::atomic<int> waiting = 0;
  HttpServer host(server_options().http, picture_host(waiting));
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.fetch.hosts = {"127.0.0.1:" + std::to_string(host.port())};
  Server server(engine, options);
  const auto asked = [&](const std::string& path, const Json& body) {
    const Response response = ask(server.port(), "POST", path, body.dump());
    EXPECT_EQ(response.status, 200) << response.body;
    return response.status == 200 ? read_json<Json>(response.body) : Json();
  };
  const Json body = url_chat(host.port(), "/000.png");
  const std::string url = body["messages"][0]["content"][0]["image_url"]["url"];
  EXPECT_EQ(asked("/v1/chat/completions", body)["choices"][0]["message"]["content"], "6542");
  const Json text = body["messages"][0]["content"][1];
  const Json source = {{"type", "url"}, {"url", url}};
  Json messages = {{"model", "demo"}, {"messages", Json::array()}};
  messages["messages"].push_back(
      {{"role", "user"}, {"content", Json::array({{{"type", "image"}, {"source", source}}, text})}});
  EXPECT_GT(asked("/v1/messages/count_tokens", messages)["input_tokens"], 60);
  messages["max_tokens"] = 20;
  messages["temperature"] = 0;
  EXPECT_EQ(asked("/v1/messages", messages)["content"][0]["text"], "6542");
  const Json parts = Json::array({{{"type", "input_image"}, {"image_url", url}},
                                  {{"type", "input_text"}, {"text", "What number is written in the image?"}}});
  const Json responses = {
      {"model", "demo"}, {"temperature", 0}, {"input", Json::array({{{"role", "user"}, {"content", parts}}})}};
  EXPECT_EQ(asked("/v1/responses", responses)["output"][0]["content"][0]["text"], "6542");
}

TEST(ServerFetch, SlowHostsDoNotDelayOtherRequests) {
  std::atomic<int> waiting = 0;
  auto host = std::make_unique<HttpServer>(server_options().http, picture_host(waiting));
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.fetch.hosts = {"127.0.0.1:" + std::to_string(host->port())};
  options.fetch.seconds = 100;
  Server server(engine, options);
  const std::string never = url_chat(host->port(), "/never").dump();
  std::vector<std::unique_ptr<Socket>> stuck;
  for (int i = 0; i < 8; ++i) {
    stuck.push_back(std::make_unique<Socket>(server.port()));
    stuck.back()->send(http_text("POST", "/v1/chat/completions", never));
  }
  while (waiting < 8) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  // More requests than can be prepared at a time; the others are still served.
  EXPECT_EQ(ask(server.port(), "POST", "/v1/chat/completions", chat(kCount).dump()).status, 200);
  EXPECT_EQ(ask(server.port(), "POST", "/v1/chat/completions", never).status, 503);
  host.reset();
  for (auto& socket : stuck) EXPECT_EQ(socket->response().status, 400);
}

}  // namespace
}  // namespace gemma4
