// Fuzz targets: request bodies of Ollama's API. What the parser takes goes on to the chat template and the headers of
// the pictures, as in the engine.
#include "base/check.h"
#include "base/generate_testing.h"
#include "base/mutate_testing.h"
#include "base/utf8.h"
#include "image/decode.h"
#include "server/api/ollama.h"
#include "server/fetch.h"
#include "text/chat/chat.h"

namespace gemma4 {
namespace {

using Members = Generator::Members;
using Random = std::mt19937_64;

constexpr const char* kDot =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==";

// Parses, renders, and writes an answer of each kind, whose lines must be JSON.
template <typename Parse>
void run_ollama(const std::string& input, Parse parse) {
  ApiContext context;
  context.models = {"demo"};
  context.max_seq_len = 4096;
  context.warnings = std::make_shared<Warnings>();
  context.fetch = [](const std::string& url, const std::string& path) {
    return fetch_image(url, 1, {.hosts = {"[::1]:1"}}, path);  // an address on which nothing listens
  };
  const CompletionRequest completion = parse(parse_body(input), context);
  CHECK(completion.requests.size() <= 1);
  for (const Request& request : completion.requests) {
    for (const std::string& stop : request.stop) CHECK(!stop.empty() && utf8_valid(stop));
    for (const std::string& image : request.images) read_image_size(std::as_bytes(std::span(image)));
    if (!request.raw) render_chat(request.messages, request.tools, request.chat);
  }
  Event call;
  call.type = Event::kToolCall;
  call.tool_call = {"call_1", "f", "{\"a\":[1,{}]}"};
  Event text;
  text.text = "\xc3\xa9\n";
  Event done;
  done.type = Event::kDone;
  std::string out = completion.serializer.begin() + completion.serializer.ping;
  for (const Event& event : {text, call, done}) out += completion.serializer.piece(0, event);
  out += completion.serializer.end();
  for (size_t at = 0; at < out.size();) {
    const size_t end = out.find('\n', at);
    CHECK(end != std::string::npos);
    CHECK(read_json<Json>(out.substr(at, end - at)).at("model").is_string());
    at = end + 1;
  }
}

void ollama_common(Generator& g, Members& body) {
  body.emplace_back("model", g.pick({"\"demo\"", "\"demo:latest\""}));
  g.maybe(body, 40, "options", [&] {
    Members options;
    g.maybe(options, 40, "temperature", [&] { return g.pick({"0", "0.8", "1e5"}); });
    g.maybe(options, 40, "num_predict", [&] { return g.pick({"-1", "-2", "128"}); });
    g.maybe(options, 40, "num_ctx", [&] { return g.pick({"2048", "1000000"}); });
    g.maybe(options, 40, "seed", [&] { return g.pick({"-1", "0", "42"}); });
    g.maybe(options, 40, "stop", [&] { return g.pick({"\"\"", "[\"a\",\"\"]", "\"x\""}); });
    g.maybe(options, 40, "repeat_penalty", [&] { return g.pick({"0", "1.1"}); });
    g.maybe(options, 40, g.name().c_str(), [&] { return g.pick({"1", "true", "\"x\""}); });
    return g.object(options);
  });
  g.maybe(body, 30, "format", [&] { return g.chance(50) ? g.pick({"\"json\"", "\"\""}) : g.schema(); });
  g.maybe(body, 30, "think", [&] { return g.pick({"true", "false", "\"low\""}); });
  g.maybe(body, 30, "stream", [&] { return g.pick({"true", "false"}); });
  g.maybe(body, 30, "keep_alive", [&] { return g.pick({"0", "\"5m\"", "-1"}); });
}

std::string ollama_call(Generator& g) {
  return g.object({{"function", g.object({{"name", '"' + g.name() + '"'}, {"arguments", g.any_object()}})}});
}

std::string ollama_message(Generator& g) {
  if (g.chance(20)) {
    Members message = {{"role", "\"assistant\""}, {"tool_calls", "[" + ollama_call(g) + "]"}};
    g.maybe(message, 40, "thinking", [&] { return g.string(); });
    return g.object(message) + "," +
           g.object({{"role", "\"tool\""}, {"tool_name", '"' + g.name() + '"'}, {"content", g.string()}});
  }
  Members message = {{"role", g.pick({"\"user\"", "\"assistant\"", "\"system\""})}, {"content", g.string()}};
  if (g.chance(20))
    message = {{"role", "\"user\""}, {"content", g.string()}, {"images", '[' + ('"' + std::string(kDot) + '"') + ']'}};
  return g.object(message);
}

std::string generate_ollama_chat(Random& random) {
  Generator g(random);
  Members body;
  ollama_common(g, body);
  body.emplace_back("messages", "[" + g.repeated(g.count(4, 60), ",", [&](size_t) { return ollama_message(g); }) + "]");
  g.maybe(body, 40, "tools", [&] {
    return "[" + g.repeated(1 + g.count(3, 60), ",", [&](size_t i) {
      return g.object(
          {{"type", "\"function\""},
           {"function", g.object({{"name", '"' + g.name() + std::to_string(i) + '"'}, {"parameters", g.schema()}})}});
    }) + "]";
  });
  return g.object(body);
}

std::string generate_ollama_generate(Random& random) {
  Generator g(random);
  Members body;
  ollama_common(g, body);
  body.emplace_back("prompt", g.string());
  g.maybe(body, 30, "system", [&] { return g.string(); });
  g.maybe(body, 20, "raw", [&] { return g.pick({"true", "false"}); });
  return g.object(body);
}

const RegisterFuzz kOllamaChat({"api_ollama_chat",
                                [] {
                                  return std::vector<std::string>{
                                      R"({"model":"demo","messages":[{"role":"assistant","content":"","tool_calls":)"
                                      R"([{"function":{"name":"f","arguments":{"a":1}}}]},)"
                                      R"({"role":"tool","content":"\ud83d","tool_name":"f"}]})"};
                                },
                                [](const std::string& input) { run_ollama(input, parse_ollama_chat); },
                                {"\"images\":[\"\"]", "\"role\":\"tool\"", "1e999", "-1", "null", "\\ud83d"},
                                generate_ollama_chat,
                                256});

const RegisterFuzz kOllamaGenerate({"api_ollama_generate",
                                    [] {
                                      return std::vector<std::string>{
                                          R"({"model":"demo","prompt":"a","context":[1731486580,91,93]})",
                                          R"({"model":"demo","prompt":"a","raw":true,"options":{"stop":[""]}})"};
                                    },
                                    [](const std::string& input) { run_ollama(input, parse_ollama_generate); },
                                    {"\"context\":[1731486580,91,93]", "1e999", "-1", "null", "\\ud83d", "255,"},
                                    generate_ollama_generate,
                                    256});

}  // namespace
}  // namespace gemma4
