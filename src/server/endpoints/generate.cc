// The endpoints that generate text: /v1/chat/completions, /v1/completions, /v1/responses, /v1/responses/compact and
// /v1/messages. Each API's parser makes a CompletionRequest; all of them run here alike, streamed or not.
#include <algorithm>
#include <chrono>
#include <iterator>
#include <optional>

#include "server/access.h"
#include "server/answer_check.h"
#include "server/api/anthropic.h"
#include "server/api/build_request.h"
#include "server/api/ollama.h"
#include "server/api/openai.h"
#include "server/background.h"
#include "server/endpoint.h"
#include "server/response_stream.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kAliveCheck(200);  // how often a waiting thread checks that its client is still connected
constexpr size_t kWriteBytes = 64 << 10;  // events that are ready are joined to one write of about so many bytes

Clock::duration seconds(double count) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
}

// Throws ApiError if the event says that there will be no complete answer.
void check_end(ServerState& server, const Event& event) {
  if (event.type == Event::kError) {
    server.device_failed = server.device_failed || event.device;
    if (event.budget) throw ApiError(400, event.text, "", "budget_exceeded");
    throw ApiError(500, event.text, "", event.device ? "device_failed" : "engine_failed");
  }
  if (event.type == Event::kDone && event.finish == Finish::kCancelled) {
    throw ApiError(503, "the server is stopping; this answer is not complete", "", "stopping");
  }
}

void add_event(Choice& choice, Event event) {
  if (event.type == Event::kPromptLogprobs) {
    std::ranges::move(event.logprobs, std::back_inserter(choice.prompt_logprobs));
    return;
  }
  if (event.type != Event::kThinking) {
    std::ranges::move(event.logprobs, std::back_inserter(choice.logprobs));
  }
  switch (event.type) {
    case Event::kText:
      choice.text += event.text;
      break;
    case Event::kThinking:
      choice.thinking += event.text;
      break;
    case Event::kToolCallBegin:
    case Event::kToolCallArguments:
      break;  // kToolCall has all of it
    case Event::kToolCall:
      choice.tool_calls.push_back(std::move(event.tool_call));
      choice.cut_call = event.cut;
      break;
    default:
      choice.finish = event.finish;
      choice.stop = event.stop;
      choice.usage = event.usage;
  }
}

// Throws if nobody waits for the answer any more, or for too long.
void check_client(const HttpRequest& request, Clock::time_point deadline) {
  if (!request.alive()) throw ApiError(499, "the client has gone");
  if (Clock::now() > deadline) throw ApiError(504, "the answer took longer than this server allows");
}

std::vector<Choice> collect(ServerState& server, ResponseStream& answers, size_t count, const HttpRequest& request,
                            Clock::time_point deadline) {
  std::vector<Choice> choices(count);
  auto checked = Clock::now();
  while (!answers.over()) {
    if (auto next = answers.next(kAliveCheck)) {
      check_end(server, next->second);
      add_event(choices[next->first], std::move(next->second));
    }
    if (Clock::now() - checked < kAliveCheck) continue;
    checked = Clock::now();
    check_client(request, deadline);
  }
  return choices;
}

// Adds the usage of a choice that has ended. The choices of one prompt share it; it counts once.
void count_tokens(RequestTokens& tokens, const Usage& usage, int choice, int per_prompt) {
  tokens.generated += usage.generated_tokens;
  if (choice % per_prompt != 0) return;
  tokens.prompt += usage.prompt_tokens;
  tokens.cached += usage.cached_tokens;
}

// Draws answers again that break their schema, or that of a tool they call, where masks do not keep it: twice at most,
// with other seeds. What is still broken becomes a warning.
class Repair {
 public:
  Repair(ServerState& server, const HttpRequest& request, Clock::time_point deadline, bool one_tool_call,
         const AnswerCheck& check, const std::shared_ptr<Warnings>& warnings)
      : server_(server),
        request_(request),
        deadline_(deadline),
        one_tool_call_(one_tool_call),
        check_(check),
        warnings_(warnings) {}

  // `requests` made `choices`; empty where the masks keep all of the schema, so that drawing again would be no use.
  void run(std::vector<Request>& requests, std::vector<Choice>& choices) {
    for (size_t i = 0; i < choices.size(); ++i) {
      check_client(request_, deadline_);
      std::vector<std::string> broken = check_.broken(choices[i]);
      const size_t per_prompt = requests.empty() ? 1 : static_cast<size_t>(requests.front().n);
      for (uint64_t attempt = 1; !broken.empty() && attempt <= kAttempts && !requests.empty(); ++attempt) {
        Request& one = requests[i / per_prompt];
        if (one.sampling.temperature == 0.0f) break;  // it would say the same
        check_client(request_, deadline_);
        std::optional<Choice> other = again(one, choices[i].usage.seed + attempt * kSeedStep);
        if (!other) break;
        std::vector<std::string> still = check_.broken(*other);
        const bool whole = other->finish == Finish::kStop || other->finish == Finish::kToolCalls;
        if (!whole || still.size() > broken.size()) continue;
        choices[i] = *std::move(other);
        broken = std::move(still);
      }
      for (std::string& sentence : broken) warn(warnings_, std::move(sentence));
    }
  }

 private:
  static constexpr uint64_t kAttempts = 2, kSeedStep = 1'000'003;

  // Nothing where the queue is full: the answer that is there is better than none.
  std::optional<Choice> again(const Request& original, uint64_t seed) {
    std::vector<Request> one = {original};
    one[0].n = 1;
    one[0].sampling.seed = seed;
    std::shared_ptr<ResponseStream> answers;
    try {
      prepare(server_, request_, [&](const ApiContext&, const Preparation& preparation) {
        answers = std::make_shared<ResponseStream>(server_.engine, server_.metrics, one, one_tool_call_, preparation);
      });
    } catch (const BusyError&) {
      return std::nullopt;
    }
    return std::move(collect(server_, *answers, 1, request_, deadline_)[0]);
  }

  ServerState& server_;
  const HttpRequest& request_;
  const Clock::time_point deadline_;
  const bool one_tool_call_;
  const AnswerCheck& check_;
  const std::shared_ptr<Warnings> warnings_;
};

void stream(ServerState& server, const CompletionRequest& completion, ResponseStream& answers, AnswerCheck& check,
            const std::shared_ptr<Warnings>& warnings, HttpWriter& writer, Clock::time_point deadline,
            RequestTokens& tokens) {
  const ResponseSerializer& serializer = completion.serializer;
  tokens.failed = 499;  // unless it comes to its end
  ++server.metrics->streams;
  const std::shared_ptr<void> count(nullptr, [&server](void*) { --server.metrics->streams; });
  auto wrote = Clock::now();
  try {
    std::string out = serializer.begin();
    while (!answers.over()) {
      // Events that are ready already are sent in one write.
      auto next = answers.next(out.empty() ? kAliveCheck : milliseconds(0));
      if (next) {
        if (next->second.type == Event::kDone) {  // one that was cut, too
          count_tokens(tokens, next->second.usage, next->first, completion.per_prompt);
        }
        check_end(server, next->second);
        check.take(next->first, next->second, warnings);
        out += serializer.piece(next->first, next->second);
        if (!out.empty() && out.size() < kWriteBytes) continue;  // an event may give nothing to send
      }
      const auto now = Clock::now();
      if (now > deadline) throw ApiError(504, "the answer took longer than this server allows");
      if (out.empty() && now - wrote > seconds(server.options.ping_seconds)) out = serializer.ping;
      if (out.empty() && !writer.alive()) return;
      if (out.empty()) continue;
      if (!writer.write(out)) return;
      out.clear();
      wrote = now;
    }
    if (writer.write(out + serializer.end())) tokens.failed = 0;
  } catch (const ApiError& error) {
    tokens.failed = error.status;
    writer.write(serializer.error(error));
  }
}

// One request that generates, prepared or not.
struct Generation {
  ServerState& server;
  HttpRequest request;  // its own: a stream may begin, and the connection's be gone, before it is prepared
  CompletionRequest (*parse)(const Json&, const ApiContext&);
  const Clock::time_point deadline;  // preparation included
  CompletionRequest completion;
  std::unique_ptr<ResponseStream> answers;
  std::vector<Request> kept;  // to draw answers again
  AnswerCheck check;
  const std::shared_ptr<Warnings> warnings = std::make_shared<Warnings>();
  const std::shared_ptr<RequestTokens> tokens = std::make_shared<RequestTokens>();

  void prepare();
  void prepared();
  void stream_all(HttpWriter& writer);
};

void Generation::prepare() {
  const auto unenforced = std::make_shared<std::atomic<bool>>(false);
  gemma4::prepare(server, request, [&](const ApiContext& context, const Preparation& preparation) {
    ApiContext warned = context;
    warned.warnings = warnings;
    warned.client = client_of(request, server.options);
    warned.responses = &server.responses;
    {
      const Json body = parse_body(request.body);
      std::string().swap(request.body);
      preparation.check_and_make_way();  // reading a long conversation takes as long again
      completion = parse(body, warned);
    }
    preparation.check_and_make_way();
    if (!completion.requests.empty()) warn_of_lost_results(completion.requests.front(), warnings);
    for (Request& prompt : completion.requests) {
      prompt.cache_salt = client_of(request, server.options);
      prompt.warnings = warnings;
      completion.per_prompt = prompt.n;
      prompt.unenforced = unenforced;
    }
    check = AnswerCheck(completion.requests);
    answers = std::make_unique<ResponseStream>(server.engine, server.metrics, completion.requests,
                                               completion.one_tool_call, preparation);
    if (*unenforced && !completion.stream) kept.swap(completion.requests);
    std::vector<Request>().swap(completion.requests);
  });
}

void Generation::prepared() {
  request.held.reset();
  server.warnings.log(request.path, warnings);
}

void Generation::stream_all(HttpWriter& writer) {
  stream(server, completion, *answers, check, warnings, writer, deadline, *tokens);
  server.warnings.log(request.path, warnings);
}

HttpResponse event_stream(const std::string& content_type, const std::shared_ptr<RequestTokens>& tokens,
                          std::function<void(HttpWriter&)> write) {
  HttpResponse response;
  response.content_type = content_type;
  response.tokens = tokens;
  response.headers.emplace_back("Cache-Control", "no-cache");
  response.headers.emplace_back("X-Accel-Buffering", "no");  // proxies must not buffer the stream
  response.stream = std::move(write);
  return response;
}

// An answer that begins before its request is prepared: signs of life, then the stream or an error event.
void stream_late(const std::shared_ptr<Generation>& generation, BackgroundWork& preparation, HttpWriter& writer) {
  ServerState& server = generation->server;
  const std::string& path = generation->request.path;
  const std::string ping = path == "/v1/messages" ? sse({{"type", "ping"}}, "ping") : ResponseSerializer().ping;
  bool good = writer.write(ping);
  auto wrote = Clock::now();
  while (!preparation.wait_until(Clock::now() + kAliveCheck)) {  // it ends soon where the client has gone
    if (!good || Clock::now() - wrote < seconds(server.options.ping_seconds)) continue;
    good = writer.write(ping);
    wrote = Clock::now();
  }
  try {
    preparation.get();
  } catch (const std::exception& error) {
    if (dynamic_cast<const DeviceError*>(&error) != nullptr) server.device_failed = true;
    const HttpResponse refusal = server.refusal(generation->request, error);
    generation->tokens->failed = refusal.status;
    Json body = read_json<Json>(refusal.body);
    if (path == "/v1/responses") {  // OpenAI's form of an error event there
      body = body["error"];
      body.update({{"type", "error"}, {"sequence_number", 0}});
    }
    writer.write(sse(body, path == "/v1/messages" || path == "/v1/responses" ? "error" : ""));
    return;
  }
  generation->prepared();
  generation->stream_all(writer);
}

// A copy, with the body itself and its place in the memory of bodies.
HttpRequest take(HttpRequest& request) {
  std::string body;
  body.swap(request.body);
  HttpRequest own = request;
  own.body.swap(body);
  request.held.reset();
  return own;
}

HttpResponse generate(ServerState& server, HttpRequest& request,
                      CompletionRequest (*parse)(const Json&, const ApiContext&)) {
  if (server.stopping) throw StoppingError("the server is stopping and takes no new requests");
  const auto start = Clock::now();
  const std::shared_ptr<Generation> generation(
      new Generation{server, take(request), parse, start + seconds(server.options.request_seconds), {}, {}, {}, {}});
  // Streams of these can say that they wait.
  if (request.path.starts_with("/v1/") && wants_stream(generation->request.body)) {
    const auto preparation = std::make_shared<BackgroundWork>([generation] { generation->prepare(); });
    if (!preparation->wait_until(start + seconds(server.options.ping_seconds))) {
      return event_stream(
          ResponseSerializer().content_type, generation->tokens,
          [generation, preparation](HttpWriter& writer) { stream_late(generation, *preparation, writer); });
    }
    preparation->get();
  } else {
    generation->prepare();
  }
  generation->prepared();
  if (generation->completion.stream) {
    return event_stream(generation->completion.serializer.content_type, generation->tokens,
                        [generation](HttpWriter& writer) { generation->stream_all(writer); });
  }
  std::vector<Choice> choices =
      collect(server, *generation->answers, generation->answers->choices(), request, generation->deadline);
  Repair(server, request, generation->deadline, generation->completion.one_tool_call, generation->check,
         generation->warnings)
      .run(generation->kept, choices);
  HttpResponse response;
  response.tokens = generation->tokens;
  for (size_t i = 0; i < choices.size(); ++i) {
    count_tokens(*response.tokens, choices[i].usage, static_cast<int>(i), generation->completion.per_prompt);
  }
  response.body = generation->completion.serializer.whole(choices);
  server.warnings.log(request.path, generation->warnings);
  return response;
}

}  // namespace

namespace endpoints {

HttpResponse chat_completions(ServerState& server, HttpRequest& request) {
  return generate(server, request, parse_chat);
}
HttpResponse completions(ServerState& server, HttpRequest& request) {
  return generate(server, request, parse_completions);
}
HttpResponse responses(ServerState& server, HttpRequest& request) { return generate(server, request, parse_responses); }
HttpResponse compact(ServerState& server, HttpRequest& request) { return generate(server, request, parse_compact); }
HttpResponse messages(ServerState& server, HttpRequest& request) { return generate(server, request, parse_messages); }
HttpResponse ollama_chat(ServerState& server, HttpRequest& request) {
  return generate(server, request, parse_ollama_chat);
}
HttpResponse ollama_generate(ServerState& server, HttpRequest& request) {
  return generate(server, request, parse_ollama_generate);
}

}  // namespace endpoints
}  // namespace gemma4
