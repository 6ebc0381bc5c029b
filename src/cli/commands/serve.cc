// gemma4 serve: the HTTP server.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/mapped_file.h"
#include "cli/cli.h"
#include "cli/commands/processes.h"
#include "cli/commands/serve.h"
#include "cli/engine_flags.h"
#include "server/access.h"
#include "server/allocator.h"

namespace gemma4 {
namespace {

struct ServeFlags {
  EngineOptions engine;
  ServerOptions server;
  std::optional<std::string> api_key;
  std::string api_key_file;
  double body_mb = 32, grace = 30;
  int prepared_mb = 1024;
  ProcessesFlags processes;
  std::string log = "requests";
};

constexpr std::chrono::seconds kSilenceAfterSignal{5};
constexpr double kSecondsMost = 1e9;  // clocks count nanoseconds in 64 bits

constexpr const char* kServeAbout =
    "Serves OpenAI's API (/v1/chat/completions, /v1/completions, /v1/responses, /v1/models), Anthropic's\n"
    "(/v1/messages) and Ollama's (/api/chat, /api/generate), /tokenize, /detokenize, /health, /metrics, and a page to "
    "chat on\n"
    "at /.\n"
    "Prints one line with its address on standard output when it is ready. SIGINT, SIGTERM or SIGHUP stops it: new "
    "requests "
    "get\n503, running answers may finish; a second signal ends them at once. A signal before that line ends the "
    "program.\n"
    "Exit codes: 0 stopped, 2 bad input, 3 the device failed.";

void add_limits(CommandLine& line, ServeFlags& flags) {
  ServerOptions& server = flags.server;
  line.option("--max-body-mb", flags.body_mb, "Largest request body").between(0.001, 4096.0).show_default();
  line.option("--max-connections", server.http.connections,
              "Open at a time; one more takes the place of one that waits for its request, or gets 503")
      .between(1, 65536)
      .show_default();
  line.option(
          "--connections-per-address", server.http.connections_per_address,
          "Of one client's address, or of one /64 network; 0: half of --max-connections. Behind a proxy, which has one "
          "address, give as many as --max-connections")
      .between(0, 65536)
      .show_default();
  line.option("--max-images", flags.engine.images_max, "Images of one request").between(0, 65536).show_default();
  line.option("--timeout", server.request_seconds, "Seconds for one answer")
      .between(0.001, kSecondsMost)
      .show_default();
  line.option("--grace", flags.grace, "Seconds that running answers have after a signal to stop")
      .between(0.0, kSecondsMost)
      .show_default();
}

void add_flags(CommandLine& line, ServeFlags& flags) {
  flags.engine.max_seqs = 16;
  flags.engine.share_cache = false;
  flags.engine.warm_up = true;
  add_model_argument(line, flags.engine.model, kEngineModelHelp);
  add_engine_flags(line, flags.engine);
  add_processes_flags(line, flags.processes);
  ServerOptions& server = flags.server;
  line.option("--host", server.http.host, "The address to listen on; 0.0.0.0 is every one of this machine")
      .show_default();
  line.option("--port", server.http.port, "0: any that is free").between(0, 65535).show_default();
  line.option("--model-name", server.models,
              "A name for requests' `model`; may be repeated; the first is reported; '*' takes any")
      .may_repeat();
  line.option("--max-seqs", flags.engine.max_seqs, "Answers that are computed at a time; others wait")
      .between(1, 65536)
      .show_default();
  line.option("--max-queue", flags.engine.max_queue, "Requests that wait at a time; one more gets 429")
      .between(1, 1 << 20)
      .show_default();
  line.option(
          "--thinking-budget", flags.engine.thinking_budget,
          "Tokens that thoughts may take where a request names no budget; then the answer begins. Without it: no limit")
      .not_negative();
  line.option("--prepared-mb", flags.prepared_mb,
              "Memory for the pictures of requests that wait; one more waits to be prepared")
      .between(1, 1 << 20)
      .show_default();
  line.option("--step-timeout", flags.engine.step_timeout,
              "Seconds after which a step of the engine is reported, and /health says stalled; 0: never")
      .between(0.0, kSecondsMost)
      .show_default();
  line.flag("--share-cache", flags.engine.share_cache,
            "Prompts and pictures are reused across API keys, and to a token: users can find out each other's prompts");
  line.option("--api-key", flags.api_key,
              "Requests must carry it. Other users of this machine can see it here; "
              "prefer --api-key-file or GEMMA4_API_KEY");
  line.option("--api-key-file", flags.api_key_file, "A file with one key on each line").file();
  line.option("--cors-origin", server.cors_origins,
              "An origin (https://example.com, no path) whose pages may use this server; * is all; may be repeated")
      .may_repeat();
  line.option("--mcp", server.mcp_servers,
              "The URL of an MCP server (Streamable HTTP) whose tools the page may call; may be repeated")
      .may_repeat();
  line.option("--allow-host", server.allowed_hosts,
              "A host name under which a server on a loopback address may be asked; * is every name; may be repeated")
      .may_repeat();
  line.option("--allow-image-host", server.fetch.hosts,
              "A host that image URLs may name (pictures.example, pictures.example:8080, 10.0.0.7:9000); a private "
              "address only where it is named itself; no redirects; may be repeated")
      .may_repeat()
      .excludes("--no-vision");
  line.option(
          "--log", flags.log,
          "On standard error: a line for each of these requests (requests, errors), and what was loaded; off: neither")
      .one_of({"requests", "errors", "off"})
      .show_default();
  add_limits(line, flags);
}

void read_keys(const ServeFlags& flags, std::vector<std::string>& keys) {
  if (flags.api_key) keys.push_back(*flags.api_key);
  if (const char* key = std::getenv("GEMMA4_API_KEY")) keys.emplace_back(key);
  // As --api-key "": a server without keys is not what was meant.
  if (std::ranges::find(keys, "") != keys.end()) {
    throw Error("the API key of GEMMA4_API_KEY is empty; leave it away for a server without keys");
  }
  if (flags.api_key_file.empty()) return;
  const std::vector<std::string> listed = keys_of(read_file_or_pipe(flags.api_key_file), flags.api_key_file);
  keys.insert(keys.end(), listed.begin(), listed.end());
}

// Each connection takes a file descriptor, and the usual limit of 1024 is low.
void raise_descriptor_limit(int connections) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = static_cast<rlim_t>(connections) + 256;
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string default_name(const std::filesystem::path& model) {
  const std::filesystem::path whole = std::filesystem::absolute(model).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).stem().string();
}

// The terminal's end is one, too, unless it is ignored (nohup).
sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  struct sigaction hangup = {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);
  return set;
}

// Takes the signals on a thread of its own while the one that serves is busy. Blocks them, also in threads that start
// later.
class SignalWatch {
 public:
  explicit SignalWatch(void (*then)(int signal)) : then_(then) {
    block_stop_signals();
    watcher_ = std::thread([this] { watch(); });
  }
  ~SignalWatch() {
    done_ = true;
    watcher_.join();
  }
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

 private:
  void watch() const {
    const sigset_t signals = stop_signals();
    const timespec tick = {0, 20'000'000};
    while (!done_) {
      const int signal = sigtimedwait(&signals, nullptr, &tick);
      if (signal > 0) then_(signal);
    }
  }

  void (*const then_)(int signal);
  std::atomic<bool> done_{false};
  std::thread watcher_;
};

// Until the server can answer a signal in good order, one ends the process as if nobody handled it.
void end_by_signal(int signal) {
  std::fputs("gemma4: stopped by a signal before it was ready\n", stderr);
  const sigset_t signals = stop_signals();
  std::signal(signal, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  raise(signal);
  _exit(128 + signal);  // the system gives the first process of a container no default action
}

// Waits for a signal (returns true) or a failure of the device (false).
bool wait_for_signal(const Engine& engine, const Server& server) {
  const sigset_t signals = stop_signals();
  const timespec tick = {0, 200'000'000};
  while (sigtimedwait(&signals, nullptr, &tick) < 0) {
    if (server.device_failed() || engine.stats().dead) return false;
  }
  return true;
}

// Waits for running answers and those that are prepared; a second signal ends the wait.
void finish_answers(Engine& engine, const Server& server, double seconds) {
  using Clock = std::chrono::steady_clock;
  const sigset_t signals = stop_signals();
  const timespec tick = {0, 100'000'000};
  const auto end = Clock::now() + std::chrono::ceil<Clock::duration>(std::chrono::duration<double>(seconds));
  while (Clock::now() < end) {
    const EngineStats stats = engine.stats();
    if (stats.dead || (server.preparing() == 0 && stats.waiting == 0 && stats.running == 0)) return;
    if (sigtimedwait(&signals, nullptr, &tick) >= 0) return;
  }
}

// Does not wait for threads that still compute: nobody waits for what they make.
[[noreturn]] void end_process(int code) {
  std::fflush(nullptr);
  _exit(code);
}

}  // namespace

void block_stop_signals() {
  const sigset_t signals = stop_signals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

namespace {

std::string gigabytes(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / 1e9);
  return text;
}

// What was loaded, and where to.
void report_start(const Engine& engine, const ServerOptions& options) {
  const EngineOptions& e = engine.options();
  const EngineStats stats = engine.stats();
  std::fprintf(stderr, "gemma4: model %s: %s, %s, %.1f million parameters%s\n", options.models.front().c_str(),
               engine.model_kind().c_str(), engine.weights_format().c_str(),
               static_cast<double>(engine.parameters()) / 1e6, e.vision ? ", with pictures" : "");
  const std::string device = engine.device();
  std::fprintf(stderr, "gemma4: backend %s%s; %s of weights, %s of key-value cache for %lld tokens\n",
               e.backend.c_str(),
               device.empty() ? "" : (" (" + device + (e.gpus > 1 ? " x " + std::to_string(e.gpus) : "") + ")").c_str(),
               gigabytes(stats.weights_bytes).c_str(), gigabytes(stats.cache_bytes).c_str(),
               static_cast<long long>(e.cache_tokens));
  std::fprintf(stderr, "gemma4: up to %d tokens of prompt and answer, up to %d answers at a time\n", e.max_seq_len,
               e.max_seqs);
}

void warn_if_open(const ServerOptions& options) {
  if (!options.api_keys.empty() || is_loopback(options.http.host)) return;
  std::fprintf(stderr,
               "gemma4: warning: everyone who reaches %s can use this server: there is no API key (--api-key-file)\n",
               options.http.host.c_str());
}

}  // namespace

int serve_until_stopped(Engine& engine, const ServerOptions& options, double grace, ControlChannel* channel) {
  Server server(engine, options);
  if (options.log != RequestLog::kOff) report_start(engine, options);
  warn_if_open(options);
  const bool v6 = options.http.host.find(':') != std::string::npos;
  std::printf("gemma4 serves %s at http://%s:%d/\n", options.models.front().c_str(),
              (v6 ? "[" + options.http.host + "]" : options.http.host).c_str(), server.port());
  std::fflush(stdout);
  if (!wait_for_signal(engine, server)) {
    server.stop(0);
    check_mapped_files();  // names the file, where that was why
    throw DeviceError("the device failed; the server has stopped");
  }
  std::fprintf(stderr, "gemma4: stopping; running answers have %g s, a second signal ends them\n", grace);
  server.refuse_new();
  if (channel != nullptr) channel->limit_silence(kSilenceAfterSignal);
  finish_answers(engine, server, grace);
  const bool failed = server.device_failed() || engine.stats().dead;
  constexpr const char* kFailed = "the device failed while the server stopped";
  const SignalWatch at_once([](int) { end_process(kExitOk); });
  if (!server.stop(0)) {
    if (failed) std::fprintf(stderr, "gemma4: %s\n", kFailed);
    end_process(failed ? kExitDevice : kExitOk);
  }
  if (failed) throw DeviceError(kFailed);
  return kExitOk;
}

namespace {

int serve(ServeFlags& flags) {
  ServerOptions& options = flags.server;
  read_keys(flags, options.api_keys);
  check_options(options);
  if (options.http.connections_per_address > options.http.connections) {
    throw Error("--connections-per-address " + std::to_string(options.http.connections_per_address) +
                " is more than --max-connections " + std::to_string(options.http.connections));
  }
  options.any_model = std::erase(options.models, "*") > 0;
  if (options.models.empty()) options.models.push_back(default_name(flags.engine.model));
  options.log = flags.log == "off"      ? RequestLog::kOff
                : flags.log == "errors" ? RequestLog::kErrors
                                        : RequestLog::kRequests;
  options.http.body_bytes = static_cast<size_t>(flags.body_mb * (1 << 20));
  options.http.bodies_bytes = 8 * options.http.body_bytes;
  flags.engine.several_salts = options.api_keys.size() > 1;
  flags.engine.prepared_bytes = int64_t{flags.prepared_mb} << 20;
  raise_descriptor_limit(options.http.connections);
  std::optional<SignalWatch> loading(std::in_place, end_by_signal);
  handle_lost_pages(LostPages::kZeros);  // so that every stream ends with an error event
  Engine engine(flags.engine);
  report_placement(engine.placement());
  warn_of_template(engine);
  loading.reset();
  return serve_until_stopped(engine, options, flags.grace, flags.engine.channel.get());
}

}  // namespace

int serve_command(int argc, char** argv) {
  keep_little_free_memory();
  ServeFlags flags;
  CommandLine line("gemma4 serve", kServeAbout);
  add_flags(line, flags);
  if (const auto code = line.parse(argc, argv)) return *code;
  choose_backend(flags.engine);  // report_start() says which
  return run_on_rank_0(flags.processes, flags.engine, [&] { return serve(flags); });
}

}  // namespace gemma4
