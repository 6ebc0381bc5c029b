// Test support for the server: the demo model behind a server, and requests with known answers.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/json.h"
#include "base/models_testing.h"
#include "server/server.h"
#include "server/server_testing.h"

namespace gemma4 {

using Json = nlohmann::ordered_json;
using test::ask;
using test::Headers;
using test::http_text;
using test::Response;
using test::Socket;

inline const std::filesystem::path kRoot = SOURCE_DIR;

inline EngineOptions served_model() {
  EngineOptions options;
  options.model = kDemo;
  options.backend = "cpu";
  options.threads = 1;
  options.max_seq_len = 1024;
  options.max_seqs = 4;
  options.share_cache = false;
  return options;
}

inline ServerOptions server_options() {
  ServerOptions options;
  options.http.port = 0;
  options.models = {"demo"};
  return options;
}

inline std::string base64(const std::string& bytes) {
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

inline std::string picture(const std::string& name) { return base64(read_file(kImages + name)); }

struct SseEvent {
  std::string name;
  Json data;
};

inline std::vector<SseEvent> events_of(const std::string& body) {
  std::vector<SseEvent> all;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) ADD_FAILURE() << "an event is cut: " << body.substr(at);
    const std::string event = body.substr(at, end - at);
    at = end == std::string::npos ? body.size() : end + 2;
    if (event.starts_with(":")) continue;  // a comment: still working
    const size_t data = event.find("data: ");
    if (event.starts_with("event: ")) {
      all.push_back({event.substr(7, event.find('\n') - 7), read_json<Json>(event.substr(data + 6))});
    } else if (event != "data: [DONE]") {
      all.push_back({"", read_json<Json>(event.substr(data + 6))});
    } else {
      all.push_back({"DONE", Json()});
    }
  }
  return all;
}

// The demo model behind one server for all tests of a suite.
class ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = new Engine(served_model());
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
    return response.status == 200 ? read_json<Json>(response.body) : Json();
  }
  static std::vector<SseEvent> streamed(const std::string& path, Json body) {
    body["stream"] = true;
    const Response response = post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(response.headers.at("content-type"), "text/event-stream");
    return events_of(response.body);
  }

  static inline Engine* engine_ = nullptr;
  static inline Server* server_ = nullptr;
};

inline Json chat(const std::string& text) {
  return {{"model", "demo"}, {"temperature", 0}, {"messages", {{{"role", "user"}, {"content", text}}}}};
}

inline Json image_chat(const std::string& file, const std::string& question) {
  Json body = chat("");
  body["messages"][0]["content"] = {
      {{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64," + picture(file)}}}},
      {{"type", "text"}, {"text", question}}};
  return body;
}

inline const Json kTimer = {{"type", "function"},
                            {"function",
                             {{"name", "set_timer"},
                              {"description", "Set a timer in minutes."},
                              {"parameters",
                               {{"type", "object"},
                                {"properties", {{"minutes", {{"type", "integer"}, {"description", "The minutes."}}}}},
                                {"required", Json::array({"minutes"})}}}}}};

inline Json tool_chat() {
  Json body = chat("Set a timer for 6 minutes.");
  body["tools"] = Json::array({kTimer});
  return body;
}

// A stream that repeats one word. Without the bias the model would end its answer and then generate only tokens without
// text.
inline Json long_stream(int port, int tokens) {
  const Json word = {{"prompt", "the"}, {"add_special_tokens", false}};
  const int id = read_json<Json>(ask(port, "POST", "/tokenize", word.dump()).body)["tokens"][0];
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", tokens}, {"ignore_eos", true}, {"stream", true}};
  body["logit_bias"][std::to_string(id)] = 100;
  return body;
}

constexpr const char* kCount = "Count from 9 to 17.";
constexpr const char* kCounted = "9, 10, 11, 12, 13, 14, 15, 16, 17.";

}  // namespace gemma4
