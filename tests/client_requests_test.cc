// Requests as real clients sent them (tests/golden/clients, recorded and shortened), replayed against the server: none
// is turned away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "serving_testing.h"

namespace gemma4 {
namespace {

struct RecordedRequest {
  std::string name, path;
  Headers headers;
  Json body;
};

std::vector<RecordedRequest> recorded_requests() {
  std::vector<RecordedRequest> all;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot / "tests/golden/clients")) {
    if (entry.path().extension() != ".json") continue;
    const Json json = read_json<Json>(read_file(entry.path()));
    RecordedRequest request{entry.path().stem().string(), json["path"], {}, json["body"]};
    for (const auto& [name, value] : json["headers"].items()) request.headers.emplace_back(name, value);
    all.push_back(std::move(request));
  }
  std::ranges::sort(all, {}, &RecordedRequest::name);
  return all;
}

bool is_ollama(const RecordedRequest& request) { return request.path.starts_with("/api/"); }

// Answers are short here: what is tested is the request. (A tool, a thought or a schema may then be cut.)
void shorten_answer(RecordedRequest& request) {
  Json& body = request.body;
  if (is_ollama(request)) {
    body["options"]["num_predict"] = 8;
    return;
  }
  for (const char* name : {"max_tokens", "max_completion_tokens", "max_output_tokens"}) {
    if (body.contains(name)) body[name] = std::min(body[name].get<int>(), 8);
  }
  if (body.contains("input")) body["max_output_tokens"] = 8;
  if (body.contains("messages")) body["max_tokens"] = 8;
}

// What the last event of a stream is called; of Ollama's, whose events are lines, "done" where it is.
std::string last_event(const RecordedRequest& request, const std::string& answer) {
  if (is_ollama(request)) {
    const size_t line = answer.rfind('\n', answer.size() - 2);
    return read_json<Json>(answer.substr(line + 1)).value("done", false) ? "done" : "";
  }
  const std::vector<SseEvent> events = events_of(answer);
  return events.empty() ? "" : events.back().name;
}

class ClientRequests : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    EngineOptions options = served_model();
    options.max_seq_len = 4096;
    engine_ = new Engine(options);
    server_ = new Server(*engine_, server_options());
  }
  static void TearDownTestSuite() {
    delete server_;
    delete engine_;
  }
  static Response replay(const RecordedRequest& request) {
    return ask(server_->port(), "POST", request.path, request.body.dump(), request.headers);
  }

  static inline Engine* engine_ = nullptr;
  static inline Server* server_ = nullptr;
};

TEST_F(ClientRequests, AreAnswered) {
  std::vector<RecordedRequest> requests = recorded_requests();
  EXPECT_GE(requests.size(), 100u);
  for (RecordedRequest& request : requests) {
    shorten_answer(request);
    const Response response = replay(request);
    EXPECT_EQ(response.status, 200) << request.name << ": " << response.body;
    if (response.status != 200) continue;
    EXPECT_EQ(response.body.find("\"error\":{"), std::string::npos) << request.name << ": " << response.body;
    if (request.body.value("stream", is_ollama(request))) {
      EXPECT_THAT(last_event(request, response.body),
                  testing::AnyOf("DONE", "message_stop", "response.completed", "response.incomplete", "done"))
          << request.name;
    } else {
      EXPECT_TRUE(read_json<Json>(response.body).is_object());
    }
  }
}

// The same requests with a member that nobody knows are refused, so that the test above tells something.
TEST_F(ClientRequests, AreReadStrictly) {
  for (RecordedRequest& request : recorded_requests()) {
    shorten_answer(request);
    request.body["frobnicate"] = 1;
    const Response response = replay(request);
    EXPECT_EQ(response.status, 400) << request.name;
    EXPECT_THAT(response.body, testing::HasSubstr("frobnicate")) << request.name;
  }
}

}  // namespace
}  // namespace gemma4
