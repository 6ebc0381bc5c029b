// The server over time: access, queues, clients that disconnect or do not read, stopping, a failing device.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>

#include "engine/watched_backend_testing.h"
#include "server/access.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

// Half bodies on every connection that the server has: they make room for others.
TEST(Server, HalfBodiesDoNotLockOthersOut) {
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;  // both ends of each connection are in this process
  setrlimit(RLIMIT_NOFILE, &files);
  ASSERT_GT(files.rlim_cur, 1300u);
  Engine engine(served_model());
  Server server(engine, server_options());
  const std::string half = http_text("POST", "/v1/chat/completions", chat(kCount).dump());
  std::vector<std::unique_ptr<Socket>> open;
  const auto seconds = [&](const std::string& method, const std::string& path, const std::string& body) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(ask(server.port(), method, path, body).status, 200) << path;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  Json one = chat("hi");
  one["max_tokens"] = 1;
  double health = 100, answer = 100;
  for (int round = 0; round < 5; ++round) {  // the best of five, as the machine may be busy
    for (int i = 0; i < 520; ++i) {
      open.push_back(std::make_unique<Socket>(server.port()));
      open.back()->send(half.substr(0, half.size() - 5));
      if (open.size() > 520) open.erase(open.begin());
    }
    health = std::min(health, seconds("GET", "/health", ""));
    answer = std::min(answer, seconds("POST", "/v1/chat/completions", one.dump()));
  }
  std::printf("with 520 half bodies: /health %.1f ms, a chat of one token %.1f ms\n", health * 1e3, answer * 1e3);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(health, 0.05);
  EXPECT_LT(answer, 1);
#endif
}

TEST(Server, AKeyWithPercentSignsIsItself) {
  ServerOptions options = server_options();
  options.api_keys = {"abc%20def"};
  Engine engine(served_model());
  Server server(engine, options);
  const auto status = [&](const std::string& key) {
    return ask(server.port(), "GET", "/v1/models", "", {{"Authorization", "Bearer " + key}}).status;
  };
  EXPECT_EQ(status("abc%20def"), 200);
  EXPECT_EQ(status("abc%2520def"), 401);
  EXPECT_EQ(status("abc def"), 401);
}

TEST_F(ServerTest, AClientThatLeavesCostsNothing) {
  const uint64_t before = engine_->stats().cancelled;
  // 32 long answers for each client, four at a time: seconds of work.
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
  for (int i = 0; i < 30000 && busy() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(busy(), 0);
  EXPECT_GE(engine_->stats().cancelled, before + 34);
}

double metric(int port, const std::string& name) {
  const std::string text = ask(port, "GET", "/metrics").body, line = "\n" + name + " ";
  const size_t at = text.find(line);
  if (at == std::string::npos) ADD_FAILURE() << "no metric " << name;
  return at == std::string::npos ? 0 : std::stod(text.substr(at + line.size()));
}

// A conversation of two thousand tokens, with and without a picture in its first turn. The counters of /metrics say how
// many tokens the second turn computes. The first answer is prefilled again from where the template renders it
// differently than it was generated.
TEST(Server, ASecondTurnOfALongConversationComputesOnlyWhatIsNew) {
  EngineOptions long_model = served_model();
  long_model.max_seq_len = 3000;
  Engine engine(long_model);
  Server server(engine, server_options());
  const auto post = [&](const std::string& path, const Json& body) {
    const Response response = ask(server.port(), "POST", path, body.dump());
    EXPECT_EQ(response.status, 200) << response.body;
    return read_json<Json>(response.body);
  };
  const auto ids_of = [&](const Json& body) {
    return post("/tokenize", {{"messages", body["messages"]}})["tokens"].get<std::vector<int>>();
  };
  std::string story = "Describe this.";
  for (int i = 0; i < 950; ++i) story += i % 3 ? " the circle" : " a square";
  for (Json body : {chat(story), image_chat("002.png", story)}) {
    body["max_tokens"] = 20;
    const std::vector<int> first = ids_of(body);
    ASSERT_GT(first.size(), 1900u);
    const Json answer = post("/v1/chat/completions", body);
    EXPECT_LT(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 10);
    body["messages"].push_back({{"role", "assistant"}, {"content", answer["choices"][0]["message"]["content"]}});
    body["messages"].push_back({{"role", "user"}, {"content", "What is at the left?"}});
    const std::vector<int> second = ids_of(body);
    auto parting = std::ranges::mismatch(first, second).in1 - first.begin();
    EXPECT_LE(static_cast<int>(first.size()) - parting, 4);  // the empty thought before the answer
    parting -= parting % engine.options().page;              // whole pages are shared
    const int port = server.port();
    const std::vector<std::string> names = {"gemma4_computed_tokens_total", "gemma4_images_encoded_total",
                                            "gemma4_prefix_hits_total", "gemma4_requests_finished_total",
                                            "gemma4_time_to_first_token_seconds_count"};
    while (metric(port, "gemma4_requests_running") > 0) std::this_thread::yield();
    std::vector<double> before;
    for (const std::string& name : names) before.push_back(metric(port, name));
    const Json usage = post("/v1/chat/completions", body)["usage"];
    while (metric(port, "gemma4_requests_running") > 0) std::this_thread::yield();
    EXPECT_EQ(usage["prompt_tokens"], second.size());
    EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], parting);
    const double fresh = static_cast<double>(second.size() - parting), answered = usage["completion_tokens"];
    EXPECT_LT(fresh, 60 + engine.options().page);
    const double computed = metric(port, names[0]) - before[0];
    EXPECT_TRUE(computed == fresh + answered || computed == fresh + answered - 1) << computed << " for " << fresh;
    EXPECT_EQ(metric(port, names[1]) - before[1], 0) << "the picture was encoded again";
    for (size_t i = 2; i < names.size(); ++i) EXPECT_EQ(metric(port, names[i]) - before[i], 1) << names[i];
  }
}

TEST(Server, AReaderThatDoesNotReadLosesItsStreamAndSlowsNobody) {
  EngineOptions model = served_model();
  model.max_seq_len = 4096;
  model.max_seqs = 8;
  Engine engine(model);
  ServerOptions options = server_options();
  options.http.write_seconds = 0.1;
  Server server(engine, options);
  // A stream of some 16 MB, more than all buffers in between hold.
  Json body = long_stream(server.port(), 4000);
  body.update({{"n", 6}, {"logprobs", 20}});
  Socket reader(server.port(), 4096);
  reader.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().running < 6) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const Response other = ask(server.port(), "POST", "/v1/chat/completions", chat(kCount).dump());
  EXPECT_EQ(read_json<Json>(other.body)["choices"][0]["message"]["content"], kCounted);
  const auto busy = [&] { return engine.stats().running + engine.stats().waiting > 0; };
  for (int i = 0; i < 30000 && busy(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_FALSE(busy());
  EXPECT_EQ(engine.stats().cancelled, 6u);  // the client is gone, and nothing is computed for it
  EXPECT_EQ(engine.stats().finished, 1u);
}

// Tests with their own engine or options.

TEST(Server, ThePageMayReachTheListedMcpServers) {
  Engine engine(served_model());
  ServerOptions options = server_options();
  {
    Server server(engine, options);
    EXPECT_NE(ask(server.port(), "GET", "/").headers.at("content-security-policy").find("; connect-src 'self'; "),
              std::string::npos);
    EXPECT_FALSE(read_json<Json>(ask(server.port(), "GET", "/v1/models").body).contains("mcp_servers"));
  }
  options.mcp_servers = {"http://127.0.0.1:9000/mcp", "https://tools.example/a?b"};
  Server server(engine, options);
  for (const char* path : {"/", "/chat.js"}) {
    EXPECT_NE(ask(server.port(), "GET", path)
                  .headers.at("content-security-policy")
                  .find("; connect-src 'self' http://127.0.0.1:9000 https://tools.example; worker-src"),
              std::string::npos);
  }
  EXPECT_EQ(read_json<Json>(ask(server.port(), "GET", "/v1/models").body)["mcp_servers"], Json(options.mcp_servers));
}

TEST(Server, KeysHostsAndOrigins) {
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.api_keys = {"sesame", "other"};
  options.cors_origins = {"https://good.example"};
  Server server(engine, options);
  const int port = server.port();
  EXPECT_EQ(ask(port, "GET", "/v1/models").status, 401);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"Authorization", "Bearer sesam"}}).status, 401);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"Authorization", "Bearer sesame"}}).status, 200);
  EXPECT_EQ(ask(port, "GET", "/v1/models", "", {{"x-api-key", "other"}}).status, 200);
  EXPECT_EQ(read_json<Json>(ask(port, "POST", "/v1/messages", "{}").body)["error"]["type"], "authentication_error");
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
  // By default only our own page has access, not even another page of this machine.
  for (const char* origin : {"https://evil.example", "http://localhost:3000", "null"}) {
    const Response refused = ask(open.port(), "GET", "/health", "", {{"Origin", origin}});
    EXPECT_EQ(refused.status, 403) << origin;
    EXPECT_EQ(refused.headers.count("access-control-allow-origin"), 0u) << origin;
    EXPECT_EQ(ask(open.port(), "OPTIONS", "/v1/models", "", {{"Origin", origin}}).status, 403) << origin;
  }
}

TEST(Server, SecretsAreComparedWhole) {
  EXPECT_TRUE(same_secret("abc", "abc"));
  EXPECT_FALSE(same_secret("ab", "abc"));
  EXPECT_FALSE(same_secret("abcabc", "abc"));
  EXPECT_FALSE(same_secret("", "abc"));
  EXPECT_FALSE(same_secret("abd", "abc"));
  // A difference at the first letter must take as long as one at the last. A comparison that stops early is a thousand
  // times faster at the first.
  const std::string secret(4 << 20, 'x');
  std::string first = secret, last = secret;
  first.front() = last.back() = 'y';
  const auto least_seconds = [&](const std::string& given) {
    double least = 1e9;
    for (int i = 0; i < 9; ++i) {
      const auto start = std::chrono::steady_clock::now();
      EXPECT_FALSE(same_secret(given, secret));
      least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
  };
  EXPECT_GT(least_seconds(first), 0.2 * least_seconds(last));
}

TEST(Server, AnAnswerThatTakesTooLongIsCut) {
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.request_seconds = 0.5;
  Server server(engine, options);
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 1000}, {"ignore_eos", true}, {"n", 30}};
  EXPECT_EQ(ask(server.port(), "POST", "/v1/completions", body.dump()).status, 504);
  body["stream"] = true;
  const auto events = events_of(ask(server.port(), "POST", "/v1/completions", body.dump()).body);
  EXPECT_NE(events.back().data["error"]["message"].get<std::string>().find("longer"), std::string::npos);
  const auto busy = [&] { return engine.stats().running + engine.stats().waiting > 0; };
  for (int i = 0; i < 30000 && busy(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_FALSE(busy());
}

TEST(Server, AFullQueueIs429) {
  EngineOptions small = served_model();
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

TEST(Server, AWaitingStreamSendsPings) {
  EngineOptions one = served_model();
  one.max_seqs = 1;
  Engine engine(one);
  ServerOptions options = server_options();
  options.ping_seconds = 0.01;
  Server server(engine, options);
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"n", 32}};
  Socket before(server.port()), openai(server.port()), anthropic(server.port());
  before.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().waiting < 31) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  body = chat(kCount);
  body.update({{"stream", true}, {"max_tokens", 9}});
  openai.send(http_text("POST", "/v1/chat/completions", body.dump()));
  anthropic.send(http_text("POST", "/v1/messages", body.dump()));
  const auto wait_for = [](Socket& socket, const std::string& ping) {
    std::string got;
    while (got.find(ping) == std::string::npos) {
      const std::string part = socket.receive();
      if (part.empty()) return false;
      got += part;
    }
    return true;
  };
  EXPECT_TRUE(wait_for(openai, "\r\n: still working\n\n"));
  EXPECT_TRUE(wait_for(anthropic, "\r\nevent: ping\n"));
}

TEST(Server, AStreamThatLeavesBeforeItsTurnIsNotComputed) {
  EngineOptions one = served_model();
  one.max_seqs = 1;
  Engine engine(one);
  Server server(engine, server_options());
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"n", 8}};
  Socket before(server.port());
  before.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().waiting < 7) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  {
    Socket leaving(server.port());
    body.update({{"stream", true}, {"n", 1}});
    leaving.send(http_text("POST", "/v1/completions", body.dump()));
    while (engine.stats().requests < 9) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  while (engine.stats().cancelled == 0 && engine.stats().waiting > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_EQ(engine.stats().cancelled, 1u);
  EXPECT_GT(engine.stats().waiting, 0);
}

TEST(Server, StoppingTellsEveryStream) {
  Engine engine(served_model());
  ServerOptions options = server_options();
  options.log = RequestLog::kRequests;
  Mutex mutex;
  std::string log;
  options.log_line = [&](const std::string& line) {
    const MutexLock lock(mutex);
    log += line + "\n";
  };
  Server server(engine, options);
  Json body = {{"model", "demo"}, {"prompt", "x"}, {"max_tokens", 900}, {"ignore_eos", true}, {"stream", true}};
  Socket streaming(server.port()), waiting(server.port());
  streaming.send(http_text("POST", "/v1/completions", body.dump()));
  body["stream"] = false;
  waiting.send(http_text("POST", "/v1/completions", body.dump()));
  while (engine.stats().running < 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  server.refuse_new();
  const Response refused = ask(server.port(), "POST", "/v1/completions", body.dump());
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_EQ(ask(server.port(), "GET", "/health").status, 503);
  server.stop(0);
  const Response told = streaming.response();
  EXPECT_EQ(told.status, 200);
  EXPECT_EQ(events_of(told.body).back().data["error"]["code"], "stopping");
  EXPECT_EQ(waiting.response().status, 503);
  const MutexLock lock(mutex);
  EXPECT_EQ(log.find("in=0"), std::string::npos) << log;  // of the stream: what it had cost by then
}

TEST(Server, AFailingDeviceIsToldToEveryClient) {
  const auto watch = std::make_shared<Watch>();
  watch->fail_at_sample = 20;
  Engine engine(served_model(), Ranks(std::make_unique<WatchedBackend>(make_ref(), watch)));
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
