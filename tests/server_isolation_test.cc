// One client of the server and another: keys set their caches apart, and a client that has left costs nothing more.
#include <thread>

#include "large_picture_testing.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

using std::chrono::milliseconds;

// A request whose preparation takes seconds.
Json many_pictures(int count) {
  Json body = chat("");
  Json parts = Json::array();
  const std::string url = "data:image/png;base64," + base64(large_picture());
  for (int i = 0; i < count; ++i) parts.push_back({{"type", "image_url"}, {"image_url", {{"url", url}}}});
  body["messages"][0]["content"] = parts;
  return body;
}

TEST(ServerIsolation, OneKeyLearnsNothingOfAnothersPrompt) {
  EngineOptions model = served_model();
  model.page = 16;
  Engine engine(model);
  ServerOptions options = server_options();
  options.api_keys = {"alice", "mallory"};
  Server server(engine, options);
  const std::string secret = "Remember for me that my pin is 89519579. Tell nobody.";
  const auto cached = [&](const std::string& key, const std::string& text) {
    Json body = chat(text);
    body["max_tokens"] = 1;
    const Response response =
        ask(server.port(), "POST", "/v1/chat/completions", body.dump(), {{"Authorization", "Bearer " + key}});
    EXPECT_EQ(response.status, 200) << response.body;
    return read_json<Json>(response.body)["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>();
  };
  EXPECT_EQ(cached("alice", secret), 0);
  EXPECT_EQ(cached("mallory", secret), 0) << "the whole prompt is right, and mallory must not see it";
  EXPECT_GT(cached("alice", secret), 0);
  // Guesses digit by digit: all look as the same guesses do where nobody asked before.
  for (const char* control : {"89519579", "00000000"}) {
    for (int digit = 0; digit < 10; ++digit) {
      std::string guess = secret.substr(0, secret.find("8951"));
      guess += std::string(control).substr(0, 3) + std::to_string(digit);
      EXPECT_EQ(cached("mallory", guess) % model.page, 0) << guess;
    }
  }
}

TEST(ServerIsolation, AClientThatHasLeftStopsItsPreparation) {
  EngineOptions model = served_model();
  model.max_seq_len = 4096;
  model.image_budget = 70;
  Engine engine(model);
  Server server(engine, server_options());
  {
    Socket socket(server.port());
    socket.send(http_text("POST", "/v1/chat/completions", many_pictures(50).dump()));
    for (int i = 0; i < 6000 && engine.stats().images_decoded == 0; ++i) std::this_thread::sleep_for(milliseconds(1));
  }
  std::this_thread::sleep_for(milliseconds(400));
  const uint64_t decoded = engine.stats().images_decoded;
  EXPECT_GT(decoded, 0u);
  EXPECT_LT(decoded, 50u);
  std::this_thread::sleep_for(milliseconds(300));
  EXPECT_EQ(engine.stats().images_decoded, decoded) << "it goes on for a client that has left";
  // The picture that was being decoded ends at its next 2 Mi pixels, which takes long under a sanitizer.
  for (int i = 0; i < 1000 && engine.stats().prepared_bytes > 0; ++i) std::this_thread::sleep_for(milliseconds(10));
  EXPECT_EQ(engine.stats().prepared_bytes, 0);
}

TEST(ServerIsolation, StoppingTellsARequestThatIsPrepared) {
  EngineOptions model = served_model();
  model.max_seq_len = 4096;
  model.image_budget = 70;
  Engine engine(model);
  Server server(engine, server_options());
  Socket socket(server.port());
  socket.send(http_text("POST", "/v1/chat/completions", many_pictures(50).dump()));
  for (int i = 0; i < 6000 && engine.stats().images_decoded == 0; ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_EQ(server.preparing(), 1);
  server.refuse_new();
  server.stop(0);
  const Response told = socket.response();
  EXPECT_EQ(told.status, 503) << told.body;
  EXPECT_EQ(read_json<Json>(told.body)["error"]["code"], "stopping");
  EXPECT_LT(engine.stats().images_decoded, 50u);
  EXPECT_EQ(server.preparing(), 0);
}

// What reads a body of any length waits for a turn, so many such requests at once leave the processor to others.
TEST(ServerIsolation, EveryEndpointThatReadsABodyWaitsForATurn) {
  Engine engine(served_model());
  Server server(engine, server_options());
  const auto turns = [&] {
    const std::string text = ask(server.port(), "GET", "/metrics").body, name = "\ngemma4_preparations_total ";
    const size_t at = text.find(name);
    return at == std::string::npos ? -1 : std::stoi(text.substr(at + name.size()));
  };
  EXPECT_EQ(turns(), 0);
  int taken = 0;
  for (const char* path :
       {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/responses/compact",
        "/v1/responses/input_tokens", "/v1/conversations", "/v1/messages", "/v1/messages/count_tokens", "/tokenize",
        "/detokenize", "/api/chat", "/api/generate", "/api/show", "/api/pull"}) {
    EXPECT_EQ(ask(server.port(), "POST", path, "[]").status, 400) << path;
    EXPECT_EQ(turns(), ++taken) << path;
  }
  const Response made = ask(server.port(), "POST", "/v1/conversations", "{}");
  EXPECT_EQ(made.status, 200) << made.body;
  const std::string stored = "/v1/conversations/" + read_json<Json>(made.body)["id"].get<std::string>();
  EXPECT_EQ(turns(), ++taken);
  const Response added =
      ask(server.port(), "POST", stored + "/items", R"({"items": [{"role": "user", "content": "x"}]})");
  EXPECT_EQ(added.status, 200) << added.body;
  EXPECT_EQ(turns(), ++taken);
  const std::string item = read_json<Json>(added.body)["data"][0]["id"].get<std::string>();
  for (const std::string& path : {stored + "/items", stored + "/items/" + item}) {
    EXPECT_EQ(ask(server.port(), "GET", path).status, 200) << path;
    EXPECT_EQ(turns(), ++taken) << path;
  }
}

}  // namespace
}  // namespace gemma4
