// Fuzz targets: request bodies of every API. What a parser takes goes on as in the engine: the chat template, the
// tokenizer and the headers of the pictures.
#include <algorithm>

#include "base/check.h"
#include "base/file.h"
#include "base/generate_testing.h"
#include "base/mutate_testing.h"
#include "base/utf8.h"
#include "image/decode.h"
#include "server/api/anthropic.h"
#include "server/api/compaction.h"
#include "server/api/openai.h"
#include "server/fetch.h"
#include "text/chat/chat.h"

namespace gemma4 {
namespace {

using Members = Generator::Members;
using Random = std::mt19937_64;

ApiContext context() {
  ApiContext context;
  context.models = {"demo"};
  context.image_budget_max = 1120;
  context.fetch = [](const std::string& url, const std::string& path) {
    return fetch_image(url, 1, {.hosts = {"[::1]:1"}}, path);  // an address on which nothing listens
  };
  return context;
}

void check_prompt(const Request& request) {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(read_file(std::string(SOURCE_DIR) + "/models/demo/tokenizer.json"));
  if (!request.ids.empty()) return;
  for (const std::string& stop : request.stop) CHECK(utf8_valid(stop));
  for (const std::string& image : request.images) read_image_size(std::as_bytes(std::span(image)));
  const std::vector<Piece> pieces =
      request.raw ? parse_raw(*request.raw, tokenizer) : render_chat(request.messages, request.tools, request.chat);
  const std::vector<int> soft_tokens(request.images.size(), 2);
  const Prompt prompt = encode_pieces(tokenizer, pieces, soft_tokens);
  const auto is_control = [&](int32_t id) { return tokenizer.is_control(id); };
  const auto written = [](const Piece& piece) { return piece.type == Piece::kControl; };
  // No text of a client becomes a control token: an image is two of them and its soft tokens.
  CHECK(std::ranges::count_if(prompt.ids, is_control) ==
        std::ranges::count_if(pieces, written) + 4 * static_cast<std::ptrdiff_t>(request.images.size()));
}

template <typename Parse>
void run_requests(const std::string& input, Parse parse) {
  const CompletionRequest completion = parse(parse_body(input), context());
  for (const Request& request : completion.requests) check_prompt(request);
}

// As in server/endpoints/tokenize.cc.
void run_tokenize(const std::string& input) {
  const Json json = parse_body(input);
  Fields body(json, "");
  if (body.find("model")) check_model(body, context());
  Request prompt;
  if (body.find("messages")) {
    prompt = parse_chat_prompt(body, context());
    prompt.chat.add_generation_prompt = body.boolean("add_generation_prompt").value_or(true);
  } else {
    prompt.raw = body.required_string("prompt");
    body.boolean("add_special_tokens");
  }
  body.done();
  check_prompt(prompt);
}

// The parts that APIs share.

constexpr const char* kPicture =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg==";

std::string picture_url(Generator& g) {
  return g.pick({"\"data:image/png;base64,", "\"DATA:;base64,", "\"data:application/octet-stream;base64,"}) + kPicture +
         '"';
}

std::string text_part(Generator& g, const char* type) {
  return g.object({{"type", '"' + std::string(type) + '"'}, {"text", g.string()}});
}

template <typename Picture>
std::string parts(Generator& g, const char* type, const Picture& picture) {
  return "[" + g.repeated(1 + g.count(3, 60), ",", [&](size_t) {
    return g.chance(25) ? picture() : text_part(g, type);
  }) + "]";
}

template <typename Picture>
std::string content(Generator& g, const char* type, const Picture& picture) {
  return g.chance(60) ? g.string() : parts(g, type, picture);
}

// A JSON text inside a JSON string.
std::string arguments(Generator& g) {
  const std::string object = g.any_object();
  return dump(Json(parse_body(object).dump(-1, ' ', g.chance(50), Json::error_handler_t::replace)));
}

void sampling(Generator& g, Members& body) {
  g.maybe(body, 20, "temperature", [&] { return g.pick({"0", "1", "0.5", "1e-300"}); });
  g.maybe(body, 20, "top_p", [&] { return g.pick({"1", "0.5", "1e-9"}); });
  g.maybe(body, 20, "top_k", [&] { return g.pick({"1", "64", "2147483647"}); });
}

std::string stops(Generator& g) {
  if (g.chance(50)) return g.string();
  return "[" + g.repeated(g.below(4), ",", [&](size_t) { return g.string(); }) + "]";
}

// OpenAI's chat.

std::string chat_picture(Generator& g) {
  const std::string url = picture_url(g);
  if (g.chance(20)) return g.object({{"type", "\"image_url\""}, {"image_url", url}});
  Members image = {{"url", url}};
  g.maybe(image, 30, "detail", [&] { return g.pick({"\"low\"", "\"high\"", "\"auto\""}); });
  return g.object({{"type", "\"image_url\""}, {"image_url", g.object(image)}});
}

std::string chat_call(Generator& g, size_t index) {
  Members function = {{"name", '"' + g.name() + '"'}, {"arguments", arguments(g)}};
  return g.object(
      {{"id", "\"c" + std::to_string(index) + '"'}, {"type", "\"function\""}, {"function", g.object(function)}});
}

// An assistant's calls with a tool's result for each, in any order.
std::string chat_calls(Generator& g) {
  const size_t calls = 1 + g.count(2, 60);
  Members assistant = {{"role", "\"assistant\""}, {"content", g.chance(70) ? "null" : g.string()}};
  g.maybe(assistant, 30, "reasoning_content", [&] { return g.string(); });
  assistant.emplace_back("tool_calls", "[" + g.repeated(calls, ",", [&](size_t i) { return chat_call(g, i); }) + "]");
  return g.object(assistant) + g.repeated(calls, "", [&](size_t i) {
    return "," + g.object({{"role", "\"tool\""},
                           {"tool_call_id", "\"c" + std::to_string(i) + '"'},
                           {"content", content(g, "text", [&] { return chat_picture(g); })}});
  });
}

std::string chat_messages(Generator& g) {
  std::string out = "[";
  if (g.chance(40)) out += g.object({{"role", g.pick({"\"system\"", "\"developer\""})}, {"content", g.string()}}) + ",";
  return out + g.repeated(1 + g.count(4, 60), ",", [&](size_t) {
    if (g.chance(20)) return chat_calls(g);
    const bool user = g.chance(60);
    return g.object({{"role", user ? "\"user\"" : "\"assistant\""},
                     {"content", content(g, "text", [&] { return chat_picture(g); })}});
  }) + "]";
}

std::string chat_tool(Generator& g, size_t index) {
  Members function = {{"name", '"' + g.name() + std::to_string(index) + '"'}};
  g.maybe(function, 50, "description", [&] { return g.string(); });
  g.maybe(function, 80, "parameters", [&] { return g.schema(); });
  return g.object({{"type", "\"function\""}, {"function", g.object(function)}});
}

std::string chat_tools(Generator& g) {
  return "[" + g.repeated(1 + g.count(3, 60), ",", [&](size_t i) { return chat_tool(g, i); }) + "]";
}

Members openai_body(Generator& g) {
  Members body = {{"model", "\"demo\""}};
  sampling(g, body);
  g.maybe(body, 20, "seed", [&] { return g.pick({"0", "-1", "9223372036854775807"}); });
  g.maybe(body, 20, "logit_bias", [&] { return g.pick({"{}", "{\"5\":1}", "{\"0\":-100,\"1\":1e-3}"}); });
  g.maybe(body, 20, "stream", [&] { return g.pick({"true", "false"}); });
  return body;
}

std::string generate_chat(Random& random) {
  Generator g(random);
  Members body = openai_body(g);
  body.emplace_back("messages", chat_messages(g));
  const bool tools = g.chance(50);
  if (tools) body.emplace_back("tools", chat_tools(g));
  g.maybe(body, 20, "stop", [&] { return stops(g); });
  g.maybe(body, 20, "n", [&] { return g.pick({"1", "2", "32"}); });
  g.maybe(body, 20, "reasoning_effort", [&] { return g.pick({"\"low\"", "\"none\""}); });
  g.maybe(body, 20, "max_tokens", [&] { return g.pick({"1", "2147483647"}); });
  g.maybe(body, 20, "chat_template_kwargs", [&] {
    return g.pick({"{}", "{\"enable_thinking\":true,\"preserve_thinking\":true}"});
  });
  g.maybe(body, 20, "response_format", [&] {
    if (g.chance(50)) return g.pick({"{\"type\":\"text\"}", "{\"type\":\"json_object\"}"});
    return g.object(
        {{"type", "\"json_schema\""}, {"json_schema", g.object({{"name", "\"s\""}, {"schema", g.schema()}})}});
  });
  if (tools) g.maybe(body, 20, "tool_choice", [&] { return g.pick({"\"auto\"", "\"none\""}); });
  return g.object(body);
}

// OpenAI's completions.

std::string generate_completions(Random& random) {
  Generator g(random);
  Members body = openai_body(g);
  const auto ids = [&] {
    return "[" + g.repeated(1 + g.count(5, 3000), ",", [&](size_t) { return std::to_string(g.below(300)); }) + "]";
  };
  std::string prompt = g.string();
  if (g.chance(20)) prompt = "[" + g.repeated(1 + g.below(5), ",", [&](size_t) { return g.string(); }) + "]";
  if (g.chance(20)) prompt = ids();
  if (g.chance(10)) prompt = "[" + g.repeated(1 + g.below(5), ",", [&](size_t) { return ids(); }) + "]";
  if (prompt.find("<|image|>") != prompt.npos && prompt[0] == '"') {
    size_t images = 0;
    for (size_t at = 0; (at = prompt.find("<|image|>", at)) != prompt.npos; ++at) ++images;
    if (images > 50) prompt = "\"<|image|>\"", images = 1;
    body.emplace_back("images", "[" + g.repeated(images, ",", [&](size_t) { return picture_url(g); }) + "]");
  }
  body.emplace_back("prompt", prompt);
  g.maybe(body, 30, "logprobs", [&] { return g.pick({"0", "5"}); });
  g.maybe(body, 30, "max_tokens", [&] { return g.pick({"1", "16"}); });
  g.maybe(body, 20, "n", [&] { return g.pick({"1", "32"}); });
  g.maybe(body, 20, "stop", [&] { return stops(g); });
  return g.object(body);
}

// OpenAI's responses.

std::string responses_picture(Generator& g) {
  return g.object({{"type", "\"input_image\""}, {"image_url", picture_url(g)}});
}

std::string responses_item(Generator& g, size_t index) {
  const std::string id = "\"c" + std::to_string(index) + '"';
  if (g.chance(20)) {
    return g.object({{"type", "\"function_call\""},
                     {"call_id", id},
                     {"name", '"' + g.name() + '"'},
                     {"arguments", arguments(g)}}) +
           "," + g.object({{"type", "\"function_call_output\""}, {"call_id", id}, {"output", g.string()}});
  }
  if (g.chance(10)) {
    return g.object(
        {{"type", "\"reasoning\""}, {"summary", "[]"}, {"content", "[" + text_part(g, "reasoning_text") + "]"}});
  }
  if (g.chance(10)) {
    return g.object({{"type", g.pick({"\"compaction\"", "\"compaction_summary\""})},
                     {"id", id},
                     {"encrypted_content", g.chance(80) ? '"' + seal_summary("done: " + g.name()) + '"' : g.string()}});
  }
  if (g.chance(5)) return g.object({{"type", "\"mcp_call\""}, {"id", id}, {"output", g.string()}});
  const bool user = g.chance(60);
  Members item = {{"role", user ? "\"user\"" : "\"assistant\""},
                  {"content", user ? content(g, "input_text", [&] { return responses_picture(g); }) : g.string()}};
  g.maybe(item, 50, "type", [&] { return std::string("\"message\""); });
  return g.object(item);
}

std::string generate_responses(Random& random) {
  Generator g(random);
  Members body = {{"model", "\"demo\""}};
  sampling(g, body);
  body.emplace_back("input", g.chance(20) ? g.string() : "[" + g.repeated(1 + g.count(5, 60), ",", [&](size_t i) {
    return responses_item(g, i);
  }) + (g.chance(15) ? R"(,{"type":"compaction_trigger"}])" : "]"));
  g.maybe(body, 30, "instructions", [&] { return g.string(); });
  g.maybe(body, 40, "tools", [&] {
    return "[" + g.repeated(1 + g.count(3, 60), ",", [&](size_t i) {
      return g.object(
          {{"type", "\"function\""}, {"name", '"' + g.name() + std::to_string(i) + '"'}, {"parameters", g.schema()}});
    }) + "]";
  });
  g.maybe(body, 20, "text", [&] {
    return g.object({{"format", g.object({{"type", "\"json_schema\""}, {"name", "\"s\""}, {"schema", g.schema()}})}});
  });
  g.maybe(body, 20, "reasoning", [&] { return g.pick({"{}", "{\"effort\":\"low\"}"}); });
  g.maybe(body, 20, "include", [&] { return g.pick({"[]", "[\"message.output_text.logprobs\"]"}); });
  return g.object(body);
}

// Anthropic's messages.

std::string block_picture(Generator& g) {
  return g.object({{"type", "\"image\""},
                   {"source", g.object({{"type", "\"base64\""},
                                        {"media_type", "\"image/png\""},
                                        {"data", '"' + std::string(kPicture) + '"'}})}});
}

std::string block_calls(Generator& g) {
  const size_t calls = 1 + g.count(2, 60);
  const auto id = [](size_t i) { return "\"t" + std::to_string(i) + '"'; };
  const std::string uses = g.repeated(calls, ",", [&](size_t i) {
    return g.object(
        {{"type", "\"tool_use\""}, {"id", id(i)}, {"name", '"' + g.name() + '"'}, {"input", g.any_object()}});
  });
  const std::string thought = g.object({{"type", "\"thinking\""}, {"thinking", g.string()}, {"signature", "\"\""}});
  const std::string results = g.repeated(calls, ",", [&](size_t i) {
    return g.object({{"type", "\"tool_result\""}, {"tool_use_id", id(i)}, {"content", content(g, "text", [&] {
                                                                             return block_picture(g);
                                                                           })}});
  });
  return g.object({{"role", "\"assistant\""}, {"content", "[" + (g.chance(30) ? thought + "," : "") + uses + "]"}}) +
         "," + g.object({{"role", "\"user\""}, {"content", "[" + results + "]"}});
}

Members messages_prompt(Generator& g) {
  const auto user = [&] {
    return g.object({{"role", "\"user\""}, {"content", content(g, "text", [&] { return block_picture(g); })}});
  };
  Members body = {{"model", "\"demo\""}};
  g.maybe(body, 40, "system", [&] { return g.chance(50) ? g.string() : "[" + text_part(g, "text") + "]"; });
  body.emplace_back("messages", "[" + g.repeated(g.count(4, 60), "", [&](size_t) {
    if (g.chance(30)) return block_calls(g) + ",";
    return (g.chance(60) ? user() : g.object({{"role", "\"assistant\""}, {"content", g.string()}})) + ",";
  }) + user() + "]");
  g.maybe(body, 40, "tools", [&] {
    return "[" + g.repeated(1 + g.count(3, 60), ",", [&](size_t i) {
      return g.object({{"name", '"' + g.name() + std::to_string(i) + '"'}, {"input_schema", g.schema()}});
    }) + "]";
  });
  g.maybe(body, 30, "thinking", [&] {
    return g.pick({"{\"type\":\"enabled\",\"budget_tokens\":1024}", "{\"type\":\"disabled\"}"});
  });
  return body;
}

std::string generate_messages(Random& random) {
  Generator g(random);
  Members body = messages_prompt(g);
  body.emplace_back("max_tokens", "5");
  sampling(g, body);
  g.maybe(body, 20, "stop_sequences", [&] { return stops(g); });
  g.maybe(body, 20, "output_format", [&] { return g.object({{"type", "\"json_schema\""}, {"schema", g.schema()}}); });
  return g.object(body);
}

std::string generate_count_tokens(Random& random) {
  Generator g(random);
  return g.object(messages_prompt(g));
}

std::string generate_tokenize(Random& random) {
  Generator g(random);
  if (g.chance(50))
    return g.object({{"messages", chat_messages(g)}, {"add_generation_prompt", g.pick({"true", "false"})}});
  std::string prompt = g.string();  // without pictures
  for (size_t at = 0; (at = prompt.find("<|image|>", at)) != prompt.npos;) prompt.replace(at, 9, "<|turn>");
  return g.object({{"prompt", prompt}, {"add_special_tokens", g.pick({"true", "false"})}});
}

const std::vector<std::string> kWords = {"null",
                                         "true",
                                         "[]",
                                         "{}",
                                         "-1",
                                         "1e999",
                                         "\"\"",
                                         "\"type\"",
                                         "\\u0000",
                                         "\\ud83d",
                                         "\\udc00",
                                         "data:",
                                         "[[[[",
                                         std::string(1, '\0'),
                                         "{\"a\":1,\"a\":2}",
                                         "\xed\xa0\x80",
                                         "\xff",
                                         "\"role\":\"tool\""};

RegisterFuzz target(const char* name, std::vector<std::string> (*seeds)(), void (*run)(const std::string&),
                    std::string (*generate)(Random&)) {
  return RegisterFuzz({name, seeds, run, kWords, generate, 256});
}

const RegisterFuzz kChat = target(
    "api_chat",
    [] {
      return std::vector<std::string>{
          R"({"model":"demo","messages":[{"role":"user","content":"\ud83d half"},)"
          R"({"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f",)"
          R"("arguments":"{\"a\":\"\\ud83d\"}"}}]},{"role":"tool","tool_call_id":"c","content":"\udc00"}]})"};
    },
    [](const std::string& input) { run_requests(input, parse_chat); }, generate_chat);

const RegisterFuzz kCompletions = target(
    "api_completions", [] { return std::vector<std::string>{R"({"model":"demo","prompt":[[1,2],[3]],"echo":false})"}; },
    [](const std::string& input) { run_requests(input, parse_completions); }, generate_completions);

const RegisterFuzz kResponses = target(
    "api_responses", [] { return std::vector<std::string>{R"({"model":"demo","input":"\ud83d"})"}; },
    [](const std::string& input) { run_requests(input, parse_responses); }, generate_responses);

const RegisterFuzz kCompact = target(
    "api_compact", [] { return std::vector<std::string>{R"({"model":"demo","input":"\ud83d"})"}; },
    [](const std::string& input) { run_requests(input, parse_compact); }, generate_responses);

const RegisterFuzz kMessages = target(
    "api_messages",
    [] {
      return std::vector<std::string>{
          R"({"model":"demo","max_tokens":5,"messages":[{"role":"user","content":"\ud83d"}]})"};
    },
    [](const std::string& input) { run_requests(input, parse_messages); }, generate_messages);

const RegisterFuzz kCountTokens = target(
    "api_count_tokens",
    [] { return std::vector<std::string>{R"({"model":"demo","messages":[{"role":"user","content":"a"}]})"}; },
    [](const std::string& input) { check_prompt(parse_count_tokens(parse_body(input), context())); },
    generate_count_tokens);

const RegisterFuzz kTokenize = target(
    "api_tokenize", [] { return std::vector<std::string>{R"({"prompt":"\ud83d<bos>"})"}; }, run_tokenize,
    generate_tokenize);

}  // namespace
}  // namespace gemma4
