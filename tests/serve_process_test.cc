// gemma4 serve as a process: signals, a failing device, kill -9.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <optional>
#include <thread>

#include "cli/commands/serve.h"
#include "cli/exit_code.h"
#include "engine/watched_backend_testing.h"
#include "program_testing.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

const std::string kServed = std::filesystem::absolute(kDemo).string();

// A child process that serves. Its standard output is read until it prints its address.
class Serving {
 public:
  explicit Serving(const std::function<int()>& body) {
    int out[2];
    if (pipe(out) != 0) throw Error("no pipe");
    child_ = fork();
    if (child_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      close(out[0]);
      close(out[1]);
      _exit(body());
    }
    close(out[1]);
    out_ = out[0];
  }
  explicit Serving(std::vector<std::string> options, const std::filesystem::path& folder = ".")
      : Serving([&]() -> int {
          const std::string binary = std::filesystem::absolute(GEMMA4_BINARY).string();
          options.insert(options.begin(),
                         {binary, "serve", "--model", kServed, "--threads", "1", "--max-seq-len", "1024"});
          std::vector<char*> argv;
          for (std::string& option : options) argv.push_back(option.data());
          argv.push_back(nullptr);
          std::filesystem::current_path(folder);
          execv(binary.c_str(), argv.data());
          return 98;
        }) {}
  ~Serving() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
    close(out_);
  }
  Serving(const Serving&) = delete;
  Serving& operator=(const Serving&) = delete;

  // 0 if it ended before it listened.
  int port() {
    std::string said;
    for (char c; said.find('\n') == std::string::npos && ::read(out_, &c, 1) == 1;) said += c;
    const size_t colon = said.rfind(':');
    return colon == std::string::npos ? 0 : std::stoi(said.substr(colon + 1));
  }
  void send(int signal) const { kill(child_, signal); }
  int code() {  // exit code; -signal if a signal ended it
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t child_ = -1;
  int out_ = -1;
};

TEST(ServeProcess, ASignalLetsAnswersFinish) {
  Serving serving({"--port", "0", "--grace", "300"});
  const int port = serving.port();
  ASSERT_GT(port, 0);
  Socket socket(port);
  socket.send(http_text("POST", "/v1/completions", long_stream(port, 900).dump()));
  ASSERT_NE(socket.peek(), "");
  serving.send(SIGTERM);
  const auto events = events_of(socket.response().body);
  EXPECT_EQ(events.back().name, "DONE");
  EXPECT_EQ(events[events.size() - 2].data["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(serving.code(), 0);
}

// The end of its terminal stops a server as SIGTERM does. It ended it at once.
TEST(ServeProcess, AHangupStopsItInOrderUnlessItIsIgnored) {
  Serving serving({"--port", "0", "--grace", "300"});
  Socket socket(serving.port());
  socket.send(http_text("POST", "/v1/completions", R"({"prompt": "x", "max_tokens": 900, "ignore_eos": true})"));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  serving.send(SIGHUP);
  EXPECT_EQ(socket.response().status, 200);
  EXPECT_EQ(serving.code(), 0);

  const auto before = std::signal(SIGHUP, SIG_IGN);  // as nohup does
  Serving ignoring({"--port", "0"});
  std::signal(SIGHUP, before);
  const int port = ignoring.port();
  ignoring.send(SIGHUP);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_EQ(ask(port, "GET", "/health").status, 200);
  ignoring.send(SIGTERM);
  EXPECT_EQ(ignoring.code(), 0);
}

TEST(ServeProcess, ASecondSignalTellsAnswersAndEnds) {
  Serving serving({"--port", "0", "--grace", "1000", "--max-seqs", "1"});
  const int port = serving.port();
  Json body = long_stream(port, 900);
  body["n"] = 30;  // minutes of work
  Socket socket(port);
  socket.send(http_text("POST", "/v1/completions", body.dump()));
  ASSERT_NE(socket.peek(), "");
  serving.send(SIGTERM);
  while (ask(port, "GET", "/health").status == 200) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  serving.send(SIGINT);
  EXPECT_EQ(events_of(socket.response().body).back().data["error"]["code"], "stopping");
  EXPECT_EQ(serving.code(), 0);
}

TEST(ServeProcess, AFailedDeviceIsExitCode3) {
  const auto watch = std::make_shared<Watch>();
  watch->fail_at_sample = 20;
  Serving serving([&] {
    return exit_code_of([&] {
      block_stop_signals();
      Engine engine(served_model(), Ranks(std::make_unique<WatchedBackend>(make_ref(), watch)));
      return serve_until_stopped(engine, server_options(), 30);
    });
  });
  const int port = serving.port();
  ASSERT_GT(port, 0);
  Socket socket(port);
  socket.send(http_text("POST", "/v1/completions", long_stream(port, 900).dump()));
  EXPECT_EQ(events_of(socket.response().body).back().data["error"]["code"], "device_failed");
  EXPECT_EQ(serving.code(), kExitDevice);
}

// On standard error: what was loaded, a line for each request, and a warning where everyone may ask.
TEST(ServeProcess, SaysWhatItLoadedAndWarnsWhereEveryoneMayAsk) {
  const Scratch scratch;
  const std::string errors = scratch.path / "errors", binary = std::filesystem::absolute(GEMMA4_BINARY).string();
  const auto said = [&](std::vector<const char*> options) {
    Serving serving([&]() -> int {
      options.insert(options.begin(), {binary.c_str(), "serve", "--model", kServed.c_str(), "--port", "0"});
      options.push_back(nullptr);
      if (std::freopen(errors.c_str(), "w", stderr) == nullptr) return 97;
      execv(binary.c_str(), const_cast<char**>(options.data()));
      return 98;
    });
    const int port = serving.port();
    EXPECT_GT(port, 0);
    EXPECT_EQ(ask(port, "GET", "/v1/models").status, 200);
    serving.send(SIGTERM);
    EXPECT_EQ(serving.code(), 0);
    return read_file(errors);
  };
  const auto has = [](const std::string& text, const std::string& part) { return text.find(part) != text.npos; };
  const std::string usual = said({});
  EXPECT_TRUE(has(usual, "bf16, 7.4 million parameters, with pictures")) << usual;
  EXPECT_TRUE(has(usual, "backend cpu (")) << usual;
  EXPECT_TRUE(has(usual, "up to 4096 tokens of prompt and answer, up to 16 answers at a time")) << usual;
  EXPECT_TRUE(has(usual, " 127.0.0.1 GET /v1/models 200 ms=")) << usual;
  EXPECT_FALSE(has(usual, "warning")) << usual;
  const std::string open = said({"--host", "0.0.0.0", "--log", "off"});
  EXPECT_TRUE(has(open, "warning: everyone who reaches 0.0.0.0 can use this server")) << open;
  EXPECT_FALSE(has(open, "parameters")) << open;
  EXPECT_FALSE(has(open, "/v1/models")) << open;
  EXPECT_TRUE(has(said({"--log", "errors"}), "parameters"));
}

// A server over an exported program, whose weights are mapped.
struct ServedProgram {
  ServedProgram() {
    const Ran made = run_gemma4({"export", "--format", "program", "--model-dir", kServed, "--output-dir",
                                 scratch.path / "program", "--max-seq-len", "1024"});
    EXPECT_EQ(made.code, 0) << made.err;
    serving.emplace([&]() -> int {
      return execl(GEMMA4_BINARY, GEMMA4_BINARY, "serve", "--model", (scratch.path / "program").c_str(), "--threads",
                   "1", "--port", "0", "--model-name", "demo", nullptr);
    });
    port = serving->port();
    EXPECT_GT(port, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the clock of files has steps of some milliseconds
  }
  std::filesystem::path weights() const { return scratch.path / "program/program.weights"; }
  void expect_failed_answer() {
    const Response response = ask(port, "POST", "/v1/chat/completions", chat(kCount).dump());
    ASSERT_EQ(response.status, 500) << response.body;
    EXPECT_EQ(read_json<Json>(response.body)["error"]["code"], "device_failed") << response.body;
    EXPECT_NE(response.body.find("program.weights"), std::string::npos) << response.body;
    EXPECT_EQ(serving->code(), kExitDevice);
  }
  const Scratch scratch;
  std::optional<Serving> serving;
  int port = 0;
};

TEST(ServeProcess, WeightsCutShortEndStreamsWithAnError) {
  ServedProgram served;
  Socket socket(served.port);
  socket.send(http_text("POST", "/v1/completions", long_stream(served.port, 900).dump()));
  ASSERT_NE(socket.peek(), "");
  std::filesystem::resize_file(served.weights(), 4096);
  EXPECT_EQ(events_of(socket.response().body).back().data["error"]["code"], "device_failed");
  EXPECT_EQ(served.serving->code(), kExitDevice);
}

TEST(ServeProcess, WeightsCutShortWhileIdleFailTheNextRequest) {
  ServedProgram served;
  std::filesystem::resize_file(served.weights(), 0);
  served.expect_failed_answer();
}

TEST(ServeProcess, WeightsRewrittenInPlaceFailTheNextRequest) {
  ServedProgram served;
  const std::string bytes = slurp(served.weights());
  spill(served.weights(), std::string(bytes.size(), '\x11'));
  served.expect_failed_answer();
}

TEST(ServeProcess, WeightsReplacedByRenamingServeOn) {
  ServedProgram served;
  const Ran again = run_gemma4({"export", "--format", "program", "--model-dir", kTiny, "--output-dir",
                                served.scratch.path / "program", "--force"});
  EXPECT_EQ(again.code, 0) << again.err;
  std::filesystem::remove(served.weights());
  const Response response = ask(served.port, "POST", "/v1/chat/completions", chat(kCount).dump());
  EXPECT_EQ(read_json<Json>(response.body)["choices"][0]["message"]["content"], kCounted) << response.body;
  served.serving->send(SIGTERM);
  EXPECT_EQ(served.serving->code(), 0);
}

TEST(ServeProcess, BadInputIsExitCode2) {
  Serving first({"--port", "0"});
  const std::string port = std::to_string(first.port());
  const Ran taken = run_gemma4({"serve", "--model", kServed, "--port", port});
  EXPECT_EQ(taken.code, 2);
  EXPECT_NE(taken.err.find("cannot listen on 127.0.0.1 port " + port), std::string::npos) << taken.err;
  EXPECT_EQ(run_gemma4({"serve", "--model", "/no/such/folder"}).code, 2);
  EXPECT_EQ(run_gemma4({"serve", "--model", kServed, "--api-key-file", "/no/such/file"}).code, 2);
}

std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) all[entry.path().string()] = slurp(entry.path());
  }
  return all;
}

// Killed while it loads, computes or writes: the next one starts on the same port at once and gives the same answers,
// and no file is new or changed.
TEST(ServeProcess, KilledAtAnyTimeLeavesNothingToRepair) {
  const Scratch folder;
  const auto before = contents(kServed);
  const auto next_port = [&] {
    Serving serving({"--port", "0"}, folder.path);
    const int port = serving.port();
    return std::to_string(port);
  };
  const std::string port = next_port();
  for (const int wait_ms : {0, 20, 100}) {
    Serving loading({"--port", port}, folder.path);
    std::this_thread::sleep_for(std::chrono::milliseconds(wait_ms));
    loading.send(SIGKILL);
    EXPECT_EQ(loading.code(), -SIGKILL);
  }
  for (const size_t bytes : {1, 5000, 50000}) {
    Serving serving({"--port", port}, folder.path);
    ASSERT_EQ(std::to_string(serving.port()), port);
    Socket socket(std::stoi(port)), idle(std::stoi(port));
    socket.send(http_text("POST", "/v1/completions", long_stream(std::stoi(port), 900).dump()));
    for (size_t seen = 0, size = 1; seen < bytes; seen += size) {
      size = socket.receive().size();
      ASSERT_GT(size, 0u);
    }
    serving.send(SIGKILL);
    EXPECT_EQ(serving.code(), -SIGKILL);
  }
  Serving last({"--port", port}, folder.path);
  ASSERT_EQ(std::to_string(last.port()), port);
  const Response response = ask(std::stoi(port), "POST", "/v1/chat/completions", chat(kCount).dump());
  EXPECT_EQ(read_json<Json>(response.body)["choices"][0]["message"]["content"], kCounted);
  last.send(SIGTERM);
  EXPECT_EQ(last.code(), 0);
  EXPECT_TRUE(contents(folder.path).empty());
  EXPECT_TRUE(contents(kServed) == before) << "a file of the checkpoint changed";
}

}  // namespace
}  // namespace gemma4
