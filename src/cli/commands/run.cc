// gemma4 run: answers one prompt, or chats on a terminal.
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/utf8.h"
#include "checkpoint/recognise.h"
#include "cli/cli.h"
#include "cli/commands/answer_printer.h"
#include "cli/commands/chat.h"
#include "cli/commands/processes.h"
#include "cli/engine_flags.h"
#include "cli/numbers.h"
#include "cli/other_names.h"
#include "cli/terminal/history.h"
#include "engine/check_request.h"
#include "image/decode.h"
#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

struct RunFlags {
  EngineOptions engine;
  std::vector<std::string> images;
  std::optional<std::string> first, second;  // without a name: MODEL and PROMPT, or PROMPT beside --model
  std::optional<std::string> prompt, prompt_file;
  std::string system, tools_file, schema_file, why_backend;
  bool think = false, raw = false, json = false, ignore_eos = false, no_stats = false, no_history = false;
  ProcessesFlags processes;
  int max_new_tokens = 0, min_new_tokens = 0;
  std::vector<std::string> stop, logit_bias;
  RequestSampling sampling;
};

constexpr const char* kRunAbout =
    "Answers one prompt, or chats where there is no prompt and standard input is a terminal.\n\n"
    "  gemma4 run MODEL \"What is this?\" -i photo.jpg\n"
    "  echo question | gemma4 run MODEL            what is piped in is the prompt\n"
    "  cat notes | gemma4 run MODEL -p Summarise   or is put after it\n\n"
    "Of what is piped in at most 64 MiB are taken, and none beside a prompt with --raw-prompt or "
    "--one-process-per-gpu.\n"
    "Standard output carries the answer and nothing else: its text, and each tool call as one line of JSON\n"
    "({\"tool_call\": {\"name\": ..., \"arguments\": {...}}}). Thoughts, progress and the report go to standard "
    "error.\n"
    "Exit codes: 0 answered, 1 the answer is not what --schema asks for, 2 bad input, 3 the device failed.";

// Flags that exclude others declared later.
struct PromptOptions {
  CommandLine::Option image, raw;
};

PromptOptions add_prompt_flags(CommandLine& line, RunFlags& flags) {
  line.option("MODEL", flags.first, "The checkpoint, in place of --model").file();
  line.option("PROMPT", flags.second, "What to ask, in place of --prompt").may_be_empty();
  CommandLine::Option image =
      line.option("-i,--image,--image-path", flags.images,
                  "A picture (JPEG, PNG, WebP, GIF, BMP, HEIC, AVIF), before the prompt; may be repeated");
  image.file().may_repeat();
  line.option("-p,--prompt", flags.prompt, "What to ask").may_be_empty();
  line.option("--prompt-file", flags.prompt_file, "A file that holds what to ask; - is standard input")
      .file()
      .excludes("--prompt");
  line.option("--system", flags.system, "A system message").may_be_empty();
  line.option("--tools", flags.tools_file, "A JSON file with an array of tools, as OpenAI's API takes them").file();
  line.option("--schema", flags.schema_file, "A file with a JSON schema: the answer is JSON that it describes").file();
  line.flag("--think", flags.think, "Let the model think first; thoughts go to standard error");
  line.option("--thinking-budget", flags.engine.thinking_budget,
              "Tokens that thoughts may take; then the answer begins. Without it: no limit")
      .not_negative();
  CommandLine::Option raw =
      line.flag("--raw-prompt", flags.raw,
                "The prompt is the model's input as it stands: control tokens in it count, <|image|> is a picture");
  raw.excludes("--system").excludes("--tools").excludes("--think");
  return {image, raw};
}

void add_sampling_flags(CommandLine& line, RunFlags& flags) {
  RequestSampling& sampling = flags.sampling;
  line.option("--temperature", sampling.temperature, "0: always the likeliest token")
      .between(0.0, static_cast<double>(kTemperatureMax));
  line.option("--top-k", sampling.top_k, "Choose among this many; 0: all").not_negative();
  line.option("--top-p", sampling.top_p, "Choose among the likeliest that make up this share").between(0.0, 1.0);
  line.option("--min-p", sampling.min_p, "Drop tokens less likely than this share of the likeliest").between(0.0, 1.0);
  line.option("--repetition-penalty", sampling.repetition_penalty, "Over prompt and answer; 1: none").positive();
  line.option("--presence-penalty", sampling.presence_penalty, "Over the answer").between(-2.0, 2.0);
  line.option("--frequency-penalty", sampling.frequency_penalty, "Over the answer").between(-2.0, 2.0);
  line.option("--logit-bias", flags.logit_bias, "ID=BIAS: added to a token's logit, from -100 to 100; may be repeated")
      .may_repeat();
  line.option("--seed", sampling.seed, "Of the random choices; without it one is drawn and reported");
  line.option("--stop", flags.stop, "The answer ends before this text; may be repeated").may_repeat();
  line.option("--max-new-tokens", flags.max_new_tokens, "Stop after this many; 0: when the context is full")
      .not_negative();
  line.option("--min-new-tokens", flags.min_new_tokens, "Do not stop before so many").not_negative();
  line.flag("--ignore-eos", flags.ignore_eos, "Do not stop at end tokens (for benchmarks)");
}

void add_flags(CommandLine& line, RunFlags& flags) {
  line.option(kModelNames, flags.engine.model, kEngineModelHelp);
  PromptOptions prompt = add_prompt_flags(line, flags);
  add_sampling_flags(line, flags);
  add_engine_flags(line, flags.engine);
  prompt.image.excludes("--no-vision");
  prompt.raw.excludes("--chat-template");
  add_processes_flags(line, flags.processes);
  line.flag("--json", flags.json, "Report as one line of JSON (on standard error)");
  line.flag("--no-stats", flags.no_stats, "No report").excludes("--json");
  line.flag("--no-history", flags.no_history, "A chat does not keep what is typed ($XDG_STATE_HOME/gemma4/history)");
}

// Words without a name: the model comes first, unless it has its name.
void name_words(RunFlags& flags) {
  std::optional<std::string>& prompt = flags.engine.model.empty() ? flags.second : flags.first;
  if (flags.engine.model.empty()) {
    if (!flags.first) throw Error(no_model("gemma4 run"));
    flags.engine.model = *flags.first;
  } else if (flags.second) {
    throw Error("'" + *flags.second + "' was not expected: --model names the model, and the prompt is '" +
                *flags.first + "' (put quotes around what holds spaces)");
  }
  if (!prompt) return;
  std::error_code ignored;
  if (names_picture(*prompt) && std::filesystem::is_regular_file(*prompt, ignored)) {
    throw Error("'" + *prompt + "' is a picture and stands where the prompt does: a picture is given with -i");
  }
  if (flags.prompt || flags.prompt_file) {
    throw Error("there are two prompts: '" + *prompt + "', and that of " +
                (flags.prompt ? "--prompt" : "--prompt-file"));
  }
  flags.prompt = *prompt;
}

std::string checked_utf8(std::string text, const std::string& what) {
  if (!utf8_valid(text)) throw Error(what + " is not valid UTF-8");
  return text;
}

// Says after three seconds what is waited for: a program that starts this one may leave it a pipe that stays open.
void wait_for_stdin() {
  constexpr int kSilentMs = 3000;
  pollfd input = {STDIN_FILENO, POLLIN, 0};
  if (poll(&input, 1, kSilentMs) != 0) return;
  std::fputs("gemma4: waiting for standard input (Ctrl-D ends it; </dev/null gives none)\n", stderr);
}

std::string read_stdin() {
  constexpr size_t kMost = size_t{64} << 20;  // the limit for files, too
  wait_for_stdin();
  std::string text;
  char buffer[1 << 16];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), stdin)) {
    text.append(buffer, n);
    if (text.size() > kMost) throw Error("standard input is larger than " + std::to_string(kMost) + " bytes");
  }
  return checked_utf8(std::move(text), "standard input");
}

// Whether something was piped in, or is read from a file: "gemma4 run ... < notes".
bool stdin_is_piped() {
  struct stat status = {};
  return fstat(STDIN_FILENO, &status) == 0 &&
         (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode) || S_ISSOCK(status.st_mode));
}

bool is_blank(const std::string& text) { return text.find_first_not_of(" \t\r\n") == std::string::npos; }

std::string with_attachment(const std::string& prompt) {
  const std::string text = read_stdin();
  return is_blank(text) ? prompt : prompt + "\n\n" + text;
}

// The prompt; none for a chat.
std::optional<std::string> prompt_text(const RunFlags& flags) {
  std::optional<std::string> prompt;
  if (flags.prompt) prompt = checked_utf8(*flags.prompt, "the prompt");
  if (flags.prompt_file) {
    if (*flags.prompt_file == "-") return read_stdin();
    prompt = checked_utf8(read_file_or_pipe(*flags.prompt_file), "the prompt in " + *flags.prompt_file);
  }
  // A launcher of several processes gives them a pipe that stays open.
  const bool attached = stdin_is_piped() && !flags.raw && !flags.processes.wanted;
  if (prompt) return attached ? with_attachment(*prompt) : *prompt;
  if (isatty(STDIN_FILENO)) return std::nullopt;
  if (stdin_is_piped()) prompt = read_stdin();
  if (prompt && !is_blank(*prompt)) return prompt;
  throw Error(
      "there is no prompt: give --prompt TEXT or --prompt-file FILE, or pipe it in (on a terminal a chat starts)");
}

// A raw prompt without placeholders for its pictures gets them in front, as in the chat template.
std::string place_images(const std::string& raw, size_t images) {
  if (images == 0 || raw.find("<|image|>") != std::string::npos) return raw;
  std::string places;
  for (size_t i = 0; i < images; ++i) places += "<|image|>";
  const size_t at = raw.starts_with("<bos>") ? 5 : 0;
  return raw.substr(0, at) + places + raw.substr(at);
}

// "ID=BIAS"
std::pair<int32_t, float> parse_bias(const std::string& text) {
  int32_t id = 0;
  float bias = 0;
  const std::string_view whole = text;
  const size_t middle = whole.find('=');
  const bool good = middle != std::string::npos && read_number(whole.substr(0, middle), id) == NumberText::kGood &&
                    read_number(whole.substr(middle + 1), bias) == NumberText::kGood;
  if (good) return {id, bias};
  throw Error("--logit-bias is ID=BIAS, as 1234=-5, not " + text);
}

Request make_request(const RunFlags& flags, const std::optional<std::string>& prompt) {
  Request request;
  for (const std::string& path : flags.images) request.images.push_back(read_file(path, kMaxImageFileBytes));
  request.sampling = flags.sampling;
  request.max_new_tokens = flags.max_new_tokens;
  request.min_new_tokens = flags.min_new_tokens;
  request.stop = flags.stop;
  for (const std::string& text : flags.logit_bias) request.sampling.logit_bias.push_back(parse_bias(text));
  if (!flags.schema_file.empty()) {
    request.format.type = ResponseFormat::kSchema;
    request.format.schema = checked_utf8(read_file_or_pipe(flags.schema_file), flags.schema_file);
  }
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
        "[%s, load %.2f s | images %.0f ms, %d tokens | prompt %d tokens, %d of them cached, %.0f tok/s | first token "
        "%.0f ms | answer %d tokens, %.1f tok/s, %s | seed %llu | peak memory %.0f MiB, backend %.0f MiB]\n",
        engine.options().backend.c_str(), stats.load_ms / 1000, usage.image_ms, usage.image_tokens, usage.prompt_tokens,
        usage.cached_tokens, prefill_rate, usage.first_token_ms, usage.generated_tokens, decode_rate,
        finish_name(answer.finish), static_cast<unsigned long long>(usage.seed), peak_mb, device_mb);
    if (usage.drafts.wanted) {
      std::fprintf(stderr, "[drafts: %llu of %llu accepted in %llu rounds]\n",
                   static_cast<unsigned long long>(usage.drafts.accepted),
                   static_cast<unsigned long long>(usage.drafts.drafted),
                   static_cast<unsigned long long>(usage.drafts.rounds));
    }
    return;
  }
  nlohmann::ordered_json line = {{"backend", engine.options().backend},
                                 {"load_ms", stats.load_ms},
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

// One short line after each answer of a chat.
void report_turn(const Answer& answer) {
  const TerminalStyle style = TerminalStyle::of(STDERR_FILENO);
  const Usage& usage = answer.usage;
  std::fprintf(stderr, "%s[prompt %d, %d of them cached | answer %d tokens, %.1f tok/s, %s | seed %llu]%s\n", style.dim,
               usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens,
               rate(usage.decode_tokens, usage.decode_ms), finish_name(answer.finish),
               static_cast<unsigned long long>(usage.seed), style.plain);
}

int chat(Engine& engine, const Request& request, const RunFlags& flags) {
  ChatFlags chat_flags;
  chat_flags.view.stats = !flags.no_stats;
  if (!flags.no_history) chat_flags.history = LineHistory::default_file();
  chat_flags.report = [&](const Answer& answer) { flags.json ? report(engine, answer, true) : report_turn(answer); };
  return chat(engine, request, chat_flags);
}

// What the masks of a schema did not keep is said, and is a bad result.
int check_answer(const Request& request, const Answer& answer) {
  if (request.format.type != ResponseFormat::kSchema || !answer.tool_calls.empty()) return kExitOk;
  if (answer.finish != Finish::kStop) {
    std::fputs("gemma4: the answer was cut before its JSON was complete\n", stderr);
    return kExitFailed;
  }
  WorkBudget budget("the check of the answer against its schema", {.steps = 1'000'000'000});
  const std::vector<std::string> broken = check_json(answer.text, request.format.schema, budget);
  for (const std::string& sentence : broken) std::fprintf(stderr, "gemma4: %s\n", sentence.c_str());
  return broken.empty() ? kExitOk : kExitFailed;
}

int run(RunFlags& flags) {
  std::error_code ignored;
  if (!std::filesystem::exists(flags.engine.model, ignored)) refuse_missing(flags.engine.model);  // before a prompt is
  const std::optional<std::string> prompt = prompt_text(flags);
  if (prompt && is_blank(*prompt) && flags.images.empty()) {
    throw Error("the prompt is blank, and there is no picture (-i) to answer about");
  }
  const Request request = make_request(flags, prompt);
  flags.engine.image_budget_max = -1;               // reserve memory only for the sizes of the given images
  flags.engine.prefix_cache = !prompt.has_value();  // a single answer has no next turn
  const bool terminal = isatty(STDERR_FILENO) && !flags.json;
  if (terminal && !flags.why_backend.empty()) report_backend(flags.engine, flags.why_backend);
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
  if (terminal) std::fputs(is_smart_terminal(STDERR_FILENO) ? "\r\033[K" : "\n", stderr);
  report_placement(engine.placement());
  if (!flags.raw) warn_of_template(engine);
  if (!prompt) return chat(engine, request, flags);
  const Answer answer = print_answer(engine, request, true, nullptr, TerminalStyle::of(STDERR_FILENO));
  if (!flags.no_stats) report(engine, answer, flags.json);
  return check_answer(request, answer);
}

}  // namespace

int run_command(int argc, char** argv) {
  RunFlags flags;
  CommandLine line("gemma4 run", kRunAbout);
  add_flags(line, flags);
  if (const auto code = line.parse(argc, argv)) return *code;
  name_words(flags);
  if (flags.max_new_tokens > 0 && flags.min_new_tokens > flags.max_new_tokens) {
    throw Error("--min-new-tokens " + std::to_string(flags.min_new_tokens) + " is more than --max-new-tokens " +
                std::to_string(flags.max_new_tokens));
  }
  flags.why_backend = choose_backend(flags.engine);
  return run_on_rank_0(flags.processes, flags.engine, [&] { return run(flags); });
}

}  // namespace gemma4
