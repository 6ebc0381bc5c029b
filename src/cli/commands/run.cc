// gemma4 run: answers one prompt, or chats on a terminal.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

#include "base/file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/commands/answer_printer.h"
#include "cli/commands/chat.h"
#include "cli/commands/processes.h"
#include "cli/engine_flags.h"
#include "image/decode.h"

namespace gemma4 {
namespace {

struct RunFlags {
  EngineOptions engine;
  std::vector<std::string> images;
  std::optional<std::string> prompt, prompt_file;
  std::string system, tools_file;
  bool think = false, raw = false, json = false, ignore_eos = false;
  ProcessesFlags processes;
  int max_new_tokens = 0;
  RequestSampling sampling;
};

constexpr const char* kRunAbout =
    "Answers one prompt, or chats where there is no prompt and standard input is a terminal.\n\n"
    "Standard output carries the answer and nothing else: its text, and each tool call as one line of JSON\n"
    "({\"tool_call\": {\"name\": ..., \"arguments\": {...}}}). Thoughts, progress and the report go to standard "
    "error.\n"
    "Exit codes: 0 answered, 2 bad input, 3 the device failed.";

void add_flags(CommandLine& line, RunFlags& flags) {
  add_engine_flags(line, flags.engine);
  add_processes_flags(line, flags.processes);
  line.option("--image,--image-path", flags.images,
              "A picture (JPEG, PNG, WebP, GIF, BMP, HEIC, AVIF), before the prompt; may be repeated")
      .may_repeat();
  line.option("--prompt", flags.prompt, "What to ask");
  line.option("--prompt-file", flags.prompt_file, "A file that holds what to ask; - is standard input")
      .excludes("--prompt");
  line.option("--system", flags.system, "A system message");
  line.option("--tools", flags.tools_file, "A JSON file with an array of tools, as OpenAI's API takes them");
  line.flag("--think", flags.think, "Let the model think first; thoughts go to standard error");
  line.option("--thinking-budget", flags.engine.thinking_budget,
              "Tokens that thoughts may take; then the answer begins. Without it: no limit")
      .not_negative();
  line.flag("--raw-prompt", flags.raw,
            "The prompt is the model's input as it stands: control tokens in it count, <|image|> is a picture");
  line.option("--max-new-tokens", flags.max_new_tokens, "Stop after this many; 0: when the context is full")
      .not_negative();
  line.option("--temperature", flags.sampling.temperature, "0: always the likeliest token");
  line.option("--top-k", flags.sampling.top_k, "Choose among this many; 0: all");
  line.option("--top-p", flags.sampling.top_p, "Choose among the likeliest that make up this share");
  line.option("--seed", flags.sampling.seed, "Of the random choices; without it one is drawn and reported");
  line.flag("--ignore-eos", flags.ignore_eos, "Do not stop at end tokens (for benchmarks)");
  line.flag("--json", flags.json, "Report as one line of JSON (on standard error)");
}

std::string checked_utf8(std::string text, const std::string& what) {
  if (!utf8_valid(text)) throw Error(what + " is not valid UTF-8");
  return text;
}

std::string read_stdin() {
  constexpr size_t kMost = size_t{64} << 20;  // the limit for files, too
  std::string text;
  char buffer[1 << 16];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), stdin)) {
    text.append(buffer, n);
    if (text.size() > kMost) throw Error("standard input is larger than " + std::to_string(kMost) + " bytes");
  }
  return text;
}

// The prompt; none for a chat.
std::optional<std::string> prompt_text(const RunFlags& flags) {
  if (flags.prompt) return checked_utf8(*flags.prompt, "the prompt");
  if (flags.prompt_file) {
    const std::string text = *flags.prompt_file == "-" ? read_stdin() : read_file_or_pipe(*flags.prompt_file);
    return checked_utf8(text, "the prompt in " + *flags.prompt_file);
  }
  if (isatty(STDIN_FILENO)) return std::nullopt;
  throw Error("there is no prompt: give --prompt TEXT or --prompt-file FILE (without one, a terminal starts a chat)");
}

// A raw prompt without placeholders for its pictures gets them in front, as in the chat template.
std::string place_images(const std::string& raw, size_t images) {
  if (images == 0 || raw.find("<|image|>") != std::string::npos) return raw;
  std::string places;
  for (size_t i = 0; i < images; ++i) places += "<|image|>";
  const size_t at = raw.starts_with("<bos>") ? 5 : 0;
  return raw.substr(0, at) + places + raw.substr(at);
}

Request make_request(const RunFlags& flags, const std::optional<std::string>& prompt) {
  Request request;
  for (const std::string& path : flags.images) request.images.push_back(read_file(path, kMaxImageFileBytes));
  request.sampling = flags.sampling;
  request.max_new_tokens = flags.max_new_tokens;
  request.ignore_eos = flags.ignore_eos;
  if (flags.raw) {
    if (!prompt) throw Error("--raw-prompt needs a prompt");
    request.raw = place_images(*prompt, request.images.size());
    return request;
  }
  if (!flags.tools_file.empty()) request.tools = checked_utf8(read_file_or_pipe(flags.tools_file), flags.tools_file);
  request.chat.enable_thinking = flags.think;
  if (!flags.system.empty()) {
    request.messages.push_back(Message::text("system", checked_utf8(flags.system, "the system message")));
  }
  if (!prompt) return request;
  Message user;
  user.role = "user";
  for (size_t i = 0; i < request.images.size(); ++i) user.content.push_back({ContentPart::kImage, ""});
  user.content.push_back({ContentPart::kText, *prompt});
  request.messages.push_back(std::move(user));
  return request;
}

double rate(double count, double ms) { return ms > 0 ? count * 1000 / ms : 0; }

void report(const Engine& engine, const Answer& answer, bool json) {
  rusage used = {};
  getrusage(RUSAGE_SELF, &used);
  const EngineStats stats = engine.stats();
  const Usage& usage = answer.usage;
  const double peak_mb = used.ru_maxrss / 1024.0;
  const double device_mb = static_cast<double>(stats.memory_bytes) / (1 << 20);
  const int read = usage.prompt_tokens - usage.cached_tokens;
  const double prefill_rate = rate(read, usage.prefill_ms);
  const double decode_rate = rate(usage.decode_tokens, usage.decode_ms);
  if (!json) {
    std::fprintf(
        stderr,
        "[load %.2f s | images %.0f ms, %d tokens | prompt %d tokens, %d of them cached, %.0f tok/s | first token "
        "%.0f ms | answer %d tokens, %.1f tok/s, %s | seed %llu | peak memory %.0f MiB, backend %.0f MiB]\n",
        stats.load_ms / 1000, usage.image_ms, usage.image_tokens, usage.prompt_tokens, usage.cached_tokens,
        prefill_rate, usage.first_token_ms, usage.generated_tokens, decode_rate, finish_name(answer.finish),
        static_cast<unsigned long long>(usage.seed), peak_mb, device_mb);
    if (usage.drafts.wanted) {
      std::fprintf(stderr, "[drafts: %llu of %llu accepted in %llu rounds]\n",
                   static_cast<unsigned long long>(usage.drafts.accepted),
                   static_cast<unsigned long long>(usage.drafts.drafted),
                   static_cast<unsigned long long>(usage.drafts.rounds));
    }
    return;
  }
  nlohmann::ordered_json line = {{"load_ms", stats.load_ms},
                                 {"prepare_ms", usage.prepare_ms},
                                 {"image_ms", usage.image_ms},
                                 {"image_tokens", usage.image_tokens},
                                 {"prompt_tokens", usage.prompt_tokens},
                                 {"cached_tokens", usage.cached_tokens},
                                 {"prefill_ms", usage.prefill_ms},
                                 {"prefill_tokens_per_second", prefill_rate},
                                 {"first_token_ms", usage.first_token_ms},
                                 {"generated_tokens", usage.generated_tokens},
                                 {"thinking_tokens", usage.thinking_tokens},
                                 {"decode_ms", usage.decode_ms},
                                 {"decode_tokens_per_second", decode_rate},
                                 {"finish", finish_name(answer.finish)},
                                 {"seed", usage.seed},
                                 {"peak_memory_mib", peak_mb},
                                 {"backend_memory_mib", device_mb}};
  const DraftStats& drafts = usage.drafts;
  if (drafts.wanted) {
    line["rounds"] = drafts.rounds;
    line["drafted"] = drafts.drafted;
    line["accepted"] = drafts.accepted;
    line["accepted_by_position"] = drafts.accepted_by_position;
  }
  std::fprintf(stderr, "%s\n", line.dump().c_str());
}

int run(RunFlags& flags) {
  const std::optional<std::string> prompt = prompt_text(flags);
  const Request request = make_request(flags, prompt);
  flags.engine.image_budget_max = -1;               // reserve memory only for the sizes of the given images
  flags.engine.prefix_cache = !prompt.has_value();  // a single answer has no next turn
  const bool terminal = isatty(STDERR_FILENO) && !flags.json;
  if (terminal) std::fprintf(stderr, "loading %s ...", flags.engine.model.c_str());
  handle_lost_pages(LostPages::kZeros);  // so that a chat on a terminal ends in order
  std::optional<Engine> opened;
  try {
    opened.emplace(flags.engine);
  } catch (...) {
    if (terminal) std::fputc('\n', stderr);
    throw;
  }
  Engine& engine = *opened;
  if (terminal) std::fputs("\r\033[K", stderr);
  report_placement(engine.placement());
  if (!flags.raw) warn_of_template(engine);
  if (!prompt) return chat(engine, request, [&](const Answer& answer) { report(engine, answer, flags.json); });
  const Answer answer = print_answer(engine, request, true, nullptr);
  report(engine, answer, flags.json);
  return kExitOk;
}

}  // namespace

int run_command(int argc, char** argv) {
  RunFlags flags;
  CommandLine line("gemma4 run", kRunAbout);
  add_flags(line, flags);
  if (const auto code = line.parse(argc, argv)) return *code;
  return run_on_rank_0(flags.processes, flags.engine, [&] { return run(flags); });
}

}  // namespace gemma4
