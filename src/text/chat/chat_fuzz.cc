// Fuzz targets: a conversation as the engine's callers build it (messages with calls, answers in every order, pictures,
// tools), and what a model writes (thoughts and tool calls, whole and broken), with stop strings.
#include <algorithm>

#include "base/check.h"
#include "base/exact_json.h"
#include "base/file.h"
#include "base/generate_testing.h"
#include "base/mutate_testing.h"
#include "text/chat/chat.h"
#include "text/chat/output.h"

namespace gemma4 {
namespace {

using Json = nlohmann::ordered_json;
using Members = Generator::Members;

const Tokenizer& tokenizer() {
  static const Tokenizer instance =
      Tokenizer::from_json(read_file(std::string(SOURCE_DIR) + "/models/demo/tokenizer.json"));
  return instance;
}

std::string dumped(const std::string& json) {  // as text in a JSON string
  return Json(dump_exact_json(parse_exact_json(json, 100))).dump();
}

// A conversation: an array of messages with the names of Message's members; "images" is a number.

std::string calls(Generator& g, size_t count) {
  return "[" + g.repeated(count, ",", [&](size_t i) {
    return g.object({{"id", "\"c" + std::to_string(i) + '"'},
                     {"name", '"' + g.name() + '"'},
                     {"arguments", dumped(g.any_object())}});
  }) + "]";
}

std::string turn(Generator& g) {
  if (g.chance(70)) {
    Members message = {{"role", g.pick({"\"user\"", "\"assistant\"", "\"model\"", "\"developer\""})},
                       {"text", g.string()}};
    if (message[0].second != "\"developer\"")
      g.maybe(message, 20, "images", [&] { return std::to_string(g.below(3)); });
    return g.object(message);
  }
  const size_t count = 1 + g.count(2, 400);
  Members message = {{"role", "\"assistant\""}, {"calls", calls(g, count)}};
  g.maybe(message, 30, "reasoning", [&] { return g.string(); });
  g.maybe(message, 20, "text", [&] { return g.string(); });
  if (g.chance(20)) {  // answers in the same message
    message.emplace_back("responses", "[" + g.repeated(count, ",", [&](size_t) {
      return g.object({{"name", '"' + g.name() + '"'}, {"response", dumped(g.value())}});
    }) + "]");
    return g.object(message);
  }
  return g.object(message) + g.repeated(count, "", [&](size_t i) {
    return "," + g.object({{"role", "\"tool\""},
                           {"id", "\"c" + std::to_string(i) + '"'},
                           {"text", g.string()},
                           {"images", g.chance(10) ? "1" : "0"}});
  });
}

std::string generate_chat(std::mt19937_64& random) {
  Generator g(random);
  const std::string messages = "[" + g.repeated(1 + g.count(4, 60), ",", [&](size_t) { return turn(g); }) + "]";
  const std::string tools = "[" + g.repeated(g.count(3, 60), ",", [&](size_t) {
    return g.object({{"name", '"' + g.name() + '"'}, {"description", g.string()}, {"parameters", g.schema()}});
  }) + "]";
  return g.object({{"messages", messages}, {"tools", dumped(tools)}, {"thinking", g.pick({"true", "false"})}});
}

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

const Json& list_of(const Json& object, const char* key) {
  static const Json kNone = Json::array();
  const auto found = object.find(key);
  return found != object.end() && found->is_array() ? *found : kNone;
}

Message message_of(const Json& json, int& images) {
  if (!json.is_object()) throw Error("a message is no object");
  Message message = Message::text(text_of(json, "role"), text_of(json, "text"));
  message.reasoning = text_of(json, "reasoning");
  message.tool_call_id = text_of(json, "id");
  const auto count = json.find("images");
  if (count != json.end() && count->is_number_unsigned() && count->get<uint64_t>() < 100) {
    message.content.resize(message.content.size() + count->get<size_t>(), {ContentPart::kImage, ""});
    images += count->get<int>();
  }
  for (const Json& call : list_of(json, "calls")) {
    if (call.is_object())
      message.tool_calls.push_back({text_of(call, "id"), text_of(call, "name"), text_of(call, "arguments")});
  }
  for (const Json& answer : list_of(json, "responses")) {
    if (answer.is_object()) message.tool_responses.push_back({text_of(answer, "name"), text_of(answer, "response")});
  }
  return message;
}

void run_chat(const std::string& input) {
  Json body;
  try {
    body = parse_exact_json(input, 64);
  } catch (const Json::exception& error) {
    throw Error(error.what());
  }
  if (!body.is_object()) throw Error("no object");
  std::vector<Message> messages;
  int images = 0;
  for (const Json& message : list_of(body, "messages")) messages.push_back(message_of(message, images));
  ChatOptions options;
  options.enable_thinking = body.contains("thinking") && body["thinking"] == true;
  const std::vector<Piece> pieces = render_chat(messages, text_of(body, "tools"), options);
  CHECK(count_images(pieces) == images);
  const std::vector<int> soft_tokens(static_cast<size_t>(images), 1);
  const Prompt prompt = encode_pieces(tokenizer(), pieces, soft_tokens);
  const auto controls = std::ranges::count_if(prompt.ids, [](int32_t id) { return tokenizer().is_control(id); });
  const auto written = std::ranges::count_if(pieces, [](const Piece& piece) { return piece.type == Piece::kControl; });
  CHECK(controls == written + 3 * images);
}

// What a model writes.

std::string bare_value(Generator& g, int depth) {
  switch (g.below(depth > 0 ? 7 : 5)) {
    case 0:
      return g.pick({"true", "false", "null", "None", "word", " a b "});
    case 1:
      return g.pick({"0", "-1.5e3", "1e999", "12345678901234567890123"});
    case 5:
      return "[" + g.repeated(g.count(3, 200), ",", [&](size_t) { return bare_value(g, depth - 1); }) + "]";
    case 6:
      return "{" + g.repeated(g.count(3, 200), ",", [&](size_t i) {
        return "k" + std::to_string(i) + ":" + bare_value(g, depth - 1);
      }) + "}";
    case 2:
      return '"' + g.pick({"a", "\\n", "\\u00e9", "{", "<|turn>"}) + '"';
    default:
      return "<|\"|>" + g.pick({"", "a", "{}", ",", "\xc3\xa9", "\n", "call:"}) + "<|\"|>";
  }
}

std::string generate_output(std::mt19937_64& random) {
  Generator g(random);
  return g.repeated(1 + g.count(4, 100), "", [&](size_t) -> std::string {
    switch (g.below(4)) {
      case 0:
        return "<|channel>thought\n" + g.letters() + "<channel|>";
      case 1:
        return g.letters();
      default:
        return "<|tool_call>call:" + g.name() + "{" + g.repeated(g.count(3, 200), ",", [&](size_t i) {
          return "k" + std::to_string(i) + ":" + bare_value(g, 4);
        }) + (g.chance(90) ? "}<tool_call|>" : "}");
    }
  });
}

void run_output(const std::string& input) {
  const std::vector<std::string> stops = {"stop", "\n\n", "aab", "abab" + std::string(50, 'a') + "c"};
  const std::vector<int32_t> ids = tokenizer().encode(input, true);
  OutputParser parser(tokenizer(), stops);
  std::vector<OutputEvent> events;
  for (const int32_t id : ids) {
    for (OutputEvent& event : parser.push(id)) events.push_back(std::move(event));
  }
  for (OutputEvent& event : parser.finish()) events.push_back(std::move(event));
  for (const OutputEvent& event : events)
    CHECK(event.type != OutputEvent::kToolCall || is_exact_json(event.arguments, 128));
  StopFilter whole(stops), bytes(stops);
  std::string shown = whole.push(input);
  shown += whole.finish();
  std::string bitwise;
  for (const char c : input) bitwise += bytes.push({&c, 1});
  CHECK(shown == bitwise + bytes.finish() && whole.stop() == bytes.stop());
  for (const std::string& stop : stops) CHECK(shown.find(stop) == std::string::npos);
}

const RegisterFuzz kChat(
    {"chat",
     [] {
       return std::vector<std::string>{
           R"({"messages":[{"role":"user","text":"\ud83d"},{"role":"assistant","calls":[{"id":"c",)"
           R"("name":"f","arguments":"{\"a\":\"\\ud83d\"}"}]},{"role":"tool","id":"c","text":"\u0000"}]})"};
     },
     run_chat,
     {"\\ud83d", "\\u0000", "\"role\":\"tool\"", "\"calls\":[]", std::string(1, '\0'), "{\"a\":1,\"a\":2}"},
     generate_chat,
     256});

const RegisterFuzz kOutput(
    {"output",
     [] { return std::vector<std::string>{std::string("<|tool_call>call:f{a:-1\0005e3}<tool_call|>", 40)}; },
     run_output,
     {"<|\"|>", "{", "}", "<tool_call|>", "<|tool_call>", ":", std::string(1, '\0'), "\\ud83d"},
     generate_output,
     256});

}  // namespace
}  // namespace gemma4
