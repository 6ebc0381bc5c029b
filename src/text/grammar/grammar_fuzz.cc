// Fuzz targets: a JSON schema, a pattern, the text of a tool call, and tools with messages. Output that a schema's
// grammar allows must be JSON, and output that a tool grammar allows must parse as calls.
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mutate_testing.h"
#include "text/chat/chat.h"
#include "text/chat/output.h"
#include "text/grammar/grammar.h"

namespace gemma4 {
namespace {

using nlohmann::json;

const Tokenizer& tokenizer() {
  static const Tokenizer instance =
      Tokenizer::from_json(read_file(std::string(SOURCE_DIR) + "/models/demo/tokenizer.json"));
  return instance;
}

const Grammar::Vocabulary& vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(tokenizer());
  return instance;
}

GrammarOptions options() { return {{tokenizer().require("<turn|>")}}; }

// Appends random tokens that the grammar allows; true if the output came to its end.
bool walk(Grammar grammar, std::vector<int32_t>& ids) {
  std::mt19937 random(1);
  for (int step = 0; step < 25; ++step) {
    const auto mask = grammar.mask();
    const size_t words = mask.size();
    const int32_t end = tokenizer().require("<turn|>");
    int32_t id = end;
    if (!grammar.complete() || random() % 4 != 0) {
      const size_t start = random() % words;
      for (size_t i = 0; i < words; ++i) {
        const size_t word = (start + i) % words;
        if (mask[word] == 0) continue;
        id = static_cast<int32_t>(word * 32) + __builtin_ctz(mask[word]);
        break;
      }
    }
    const bool complete = grammar.complete();
    CHECK(grammar.advance(id));
    if (grammar.ended()) return complete;
    ids.push_back(id);
  }
  return false;
}

std::vector<std::string> schema_seeds() {
  return {
      R"({"type":"object","properties":{"a":{"type":"string","maxLength":3},"b":{"enum":[1,"x",null]}},
          "required":["a"]})",
      R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"array","items":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"integer",
          "minimum":-3,"maximum":120}]},"maxItems":3}}})",
      R"({"allOf":[{"type":"object"},{"additionalProperties":{"type":"number","exclusiveMinimum":0.25}}]})",
      R"({"type":"string","pattern":"^(ab|[^c-d]{1,3}\\d)+$"})"};
}

void run_schema(const std::string& input) {
  std::vector<int32_t> ids;
  if (walk(Grammar::json_schema(vocabulary(), input, options()), ids)) {
    CHECK(json::accept(tokenizer().decode(ids, false)));
  }
}

std::vector<std::string> pattern_seeds() {
  return {"^(ab|[^c-d]{1,3}\\d)+$", "(?:x?){2,}\\u00e9|^.*[\\w\\]-]$", "a{0,3}b*?"};
}

void run_pattern(const std::string& input) {
  json schema = {{"type", "string"}, {"pattern", input}};
  run_schema(schema.dump(-1, ' ', false, json::error_handler_t::replace));
}

constexpr const char* kTools = R"([{"name":"f","description":"d","parameters":{"type":"object","properties":{
  "a":{"type":"string","enum":["x","y"]},"b":{"type":"array","items":{"type":"object",
  "properties":{"c":{"type":"number"}}}}},
  "required":["a"]}},{"type":"function","function":{"name":"g","parameters":{}}}])";

std::vector<std::string> tools_seeds() { return {kTools}; }

void run_tools(const std::string& input) {
  const Message message = Message::text("user", "hi");
  const auto pieces = render_chat(std::span(&message, 1), input, {});
  encode_pieces(tokenizer(), pieces, {});
  std::vector<int32_t> ids;
  if (!walk(Grammar::tool_calls(vocabulary(), input, "", true, options()), ids)) return;
  // Read while it is written, as a whole, and both with the schemas' types.
  const auto offered = std::make_shared<const OfferedTools>(input);
  for (const bool typed : {false, true}) {
    OutputOptions options;
    if (typed) options.tools = offered;
    OutputParser whole(tokenizer(), options);
    options.stream_calls = true;
    OutputParser live(tokenizer(), options);
    for (const int32_t id : ids) {
      const auto at_the_end = whole.push(id);
      for (const OutputEvent& event : live.push(id)) {
        if (event.type != OutputEvent::kToolCall) continue;
        CHECK(json::accept(event.arguments) && !event.cut);
        // A key that comes twice with two values makes the whole one a text; with one value it is put once.
        CHECK(at_the_end.back().type == OutputEvent::kContent ||
              read_json<json>(at_the_end.back().arguments) == read_json<json>(event.arguments));
      }
    }
    CHECK(whole.finish().empty() && live.finish().empty());
  }
}

std::vector<std::string> call_seeds() {
  return {R"(<|tool_call>call:f{a:<|"|>x, {}<|"|>,b:[{c:-1.5e3},true,None],"k":"v\\n",w: bare }<tool_call|>ok)",
          "<|channel>thought\nx\n<channel|>y<turn|>"};
}

void run_call(const std::string& input) {
  OutputParser parser(tokenizer(), {"stop", "\n\n"});
  const auto check = [](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events)
      CHECK(event.type != OutputEvent::kToolCall || json::accept(event.arguments));
  };
  const std::vector<int32_t> ids = tokenizer().encode(input, true);
  for (const int32_t id : ids) check(parser.push(id));
  check(parser.finish());
  // Cut anywhere, its beginning can be closed.
  OutputOptions streaming;
  streaming.stream_calls = true;
  OutputParser live(tokenizer(), streaming);
  std::string begun;
  try {
    for (size_t i = 0; i <= ids.size(); ++i) {
      for (const OutputEvent& event : i < ids.size() ? live.push(ids[i]) : live.finish(true)) {
        if (event.type == OutputEvent::kCallBegin) begun.clear();
        if (event.type == OutputEvent::kCallArguments) begun += event.arguments;
        CHECK(event.type != OutputEvent::kToolCall || event.arguments == begun);
      }
      CHECK(json::accept(close_arguments(begun)));
    }
  } catch (const Error&) {  // a begun call cannot be read on
  }
}

const RegisterFuzz kSchema({"schema",
                            schema_seeds,
                            run_schema,
                            {"\"$ref\":\"#\"", "\"maxLength\":1", "\"oneOf\":[", "\"nullable\":true", "\"not\"",
                             "false"}});
const RegisterFuzz kPattern(
    {"pattern", pattern_seeds, run_pattern, {"(", ")", "[", "]", "{2}", "\\", "|", "^", "$", "*"}});
const RegisterFuzz kToolsTarget({"tools", tools_seeds, run_tools, {"\"type\":\"object\"", "\"enum\":[\"x\"]", "null"}});
const RegisterFuzz kCall(
    {"tool_call", call_seeds, run_call, {"<|\"|>", "{", "}", "<tool_call|>", "<|tool_call>", ":"}});

}  // namespace
}  // namespace gemma4
