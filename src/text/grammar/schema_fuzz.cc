// Fuzz targets for schemas and patterns that get past the door: an input is not the schema but the choices that a
// generator makes, so most inputs are well-formed, and a mutation makes another well-formed one. A share of choices
// makes what must be refused: keywords of the wrong kind, NUL, lone surrogates, equal keys.
// Every input has the default budget of one request, so its time and memory are bounded; output that the grammar allows
// must be JSON.
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/exact_json.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mutate_testing.h"
#include "text/grammar/grammar.h"
#include "text/schema/schema_check.h"

namespace gemma4 {
namespace {

// Reads an input as choices. Past its end every choice is 0, the plainest, so that what is made comes to an end.
class Choices {
 public:
  explicit Choices(const std::string& bytes) : bytes_(bytes) {}
  unsigned below(unsigned n) { return at_ < bytes_.size() ? static_cast<unsigned char>(bytes_[at_++]) % n : 0; }
  template <size_t n>
  std::string of(const char* const (&values)[n]) {
    return values[below(n)];
  }
  bool rarely() { return below(64) == 63; }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

std::string pattern_of(Choices& choices, int depth) {
  constexpr const char* kAtoms[] = {"a",
                                    "b",
                                    ".",
                                    "[a-m]",
                                    "\\d",
                                    "\\w",
                                    "\\s",
                                    "[^x]",
                                    "[aeiou]",
                                    "\xc3\xa9",
                                    "\\u00e9",
                                    "-",
                                    "\\\\",
                                    "\\n",
                                    "\\x41",
                                    "[\\w.-]",
                                    "\xf0\x9f\x98\x80"};
  constexpr const char* kRepeats[] = {"?",       "*",    "+",        "{2}",   "{0,60}", "{1,3}",
                                      "{15,20}", "{2,}", "{0,3000}", "{200}", "*?",     "{0,100000}"};
  constexpr const char* kRare[] = {"(?=a)", "(?<=a)", "(?<!(a|b)c)", "\\2", "\\b",     "[",
                                   "{2,1}", "^",      "\\1",         "\\ud800", "(", ")"};
  if (depth > 5) return choices.of(kAtoms);
  std::string out;
  for (unsigned i = 0, count = 1 + choices.below(4); i < count; ++i) {
    if (i > 0 && choices.below(6) == 5) out += '|';
    const bool group = choices.below(3) == 2;
    out += choices.rarely() ? choices.of(kRare)
           : group          ? "(" + pattern_of(choices, depth + 1) + ")"
                            : choices.of(kAtoms);
    if (choices.below(2) == 1) out += choices.of(kRepeats);
  }
  return out;
}

std::string anchored(Choices& choices) {
  const bool begins = choices.below(4) != 3, ends = choices.below(4) != 3;
  const std::string inner = "(" + pattern_of(choices, 0) + ")";
  return (begins ? "^" : "") + inner + (ends ? "$" : "");
}

std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string schema_of(Choices& choices, int depth);

std::string value_of(Choices& choices) {
  constexpr const char* kValues[] = {"1",
                                     "\"x\"",
                                     "null",
                                     "true",
                                     "1.5",
                                     "[1,2]",
                                     "{\"k\":2}",
                                     "\"\\ud83d\\ude00\"",
                                     "18446744073709551616",
                                     "\"a\\u0000b\"",
                                     "-3"};
  return choices.of(kValues);
}

std::string list_of(Choices& choices, int depth) {
  std::string out = "[";
  for (unsigned i = 0, count = 1 + choices.below(3); i < count; ++i) {
    out += (i > 0 ? "," : "") + schema_of(choices, depth + 1);
  }
  return out + "]";
}

std::string object_of(Choices& choices, int depth) {
  constexpr const char* kNames[] = {"a", "b", "name", "\xc3\xa9", "x y", "A", "ab", ""};
  std::string out = R"({"type":"object","properties":{)", required;
  for (unsigned i = 0, count = choices.below(5); i < count; ++i) {  // now and then two of the same name
    const std::string name = quoted(choices.of(kNames));
    out += (i > 0 ? "," : "") + name + ":" + schema_of(choices, depth + 1);
    if (choices.below(2) == 1) required += (required.empty() ? "" : ",") + name;
  }
  out += "},\"required\":[" + required + "]";
  const unsigned others = choices.below(4);
  if (others == 1) out += ",\"additionalProperties\":false";
  if (others == 2) out += ",\"additionalProperties\":" + schema_of(choices, depth + 1);
  return out + "}";
}

// What the grammar does not know, or what is not JSON.
std::string rare(Choices& choices) {
  const std::string kRare[] = {R"({"nullable":1})",       R"({"$ref":5})",        R"({"required":"a"})",
                               R"({"properties":[1]})",   R"({"not":{}})",        R"({"type":"thing"})",
                               R"({"const":"\ud800"})",   std::string("{\0}", 3), R"({"const":1,"const":2})",
                               R"({"$ref":"#/nowhere"})", R"({"minItems":-1})",   R"({"allOf":[{"$ref":"#"}]})"};
  return kRare[choices.below(std::size(kRare))];
}

std::string schema_of(Choices& choices, int depth) {
  constexpr const char* kPlain[] = {R"({"type":"string"})",
                                    R"({"type":"integer"})",
                                    R"({"type":"boolean"})",
                                    R"({"type":"null"})",
                                    "true",
                                    "{}",
                                    R"({"type":"number","minimum":-0.5,"exclusiveMaximum":12.25})",
                                    R"({"type":"string","minLength":3,"maxLength":70})",
                                    R"({"type":"string","format":"date-time"})",
                                    R"({"type":"integer","minimum":-3,"maximum":1200})",
                                    R"({"$ref":"#/$defs/a"})",
                                    R"({"$ref":"#/$defs/b","description":"d"})",
                                    R"({"type":["string","null"]})",
                                    R"({"type":"string","format":"email"})"};
  if (choices.rarely()) return rare(choices);
  const unsigned count = choices.below(9);
  if (depth > 4 || count == 0) return choices.of(kPlain);
  switch (count) {
    case 1:
    case 2:
      return object_of(choices, depth);
    case 3:
      return R"({"type":"array","items":)" + schema_of(choices, depth + 1) + R"(,"maxItems":)" +
             std::to_string(1 + choices.below(200)) + "}";
    case 4:
      return "{\"anyOf\":" + list_of(choices, depth) + "}";
    case 5:
      return R"({"type":"array","prefixItems":)" + list_of(choices, depth) + "}";
    case 6:
      return R"({"type":"string","pattern":)" + quoted(anchored(choices)) + "}";
    case 7:
      return "{\"enum\":[" + value_of(choices) + "," + value_of(choices) + "]}";
    default:
      return R"({"allOf":[)" + object_of(choices, depth + 1) + R"(,{"$ref":"#/$defs/c"}]})";
  }
}

const Grammar::Vocabulary& vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(
      Tokenizer::from_json(read_file(std::string(SOURCE_DIR) + "/models/demo/tokenizer.json")));
  return instance;
}

// What the masks keep wholly, the check of a finished value finds kept.
void check_answer(const Grammar& grammar, const std::string& schema, const std::string& text) {
  CHECK(is_json(text));
  WorkBudget budget("the check", {.steps = 10'000'000, .bytes = uint64_t{64} << 20});
  const std::vector<std::string> broken = check_json(text, schema, budget);
  CHECK(!grammar.notes().empty() || broken.empty());
}

void follow(const std::string& schema) {
  const Tokenizer& tokenizer = vocabulary()->tokenizer();
  const int32_t end = tokenizer.require("<turn|>");
  Grammar grammar = Grammar::json_schema(vocabulary(), schema, {{end}});
  std::mt19937 random(1);
  std::vector<int32_t> ids;
  for (int step = 0; step < 25; ++step) {
    const auto mask = grammar.mask();
    const bool complete = grammar.complete();
    int32_t id = end;
    if (!complete || random() % 4 != 0) {
      const size_t start = random() % mask.size();
      for (size_t i = 0; i < mask.size(); ++i) {
        const size_t word = (start + i) % mask.size();
        if (mask[word] == 0) continue;
        id = static_cast<int32_t>(word * 32) + __builtin_ctz(mask[word]);
        break;
      }
    }
    CHECK(grammar.advance(id));
    if (grammar.ended()) {
      if (complete) check_answer(grammar, schema, tokenizer.decode(ids, false));
      return;
    }
    ids.push_back(id);
  }
}

std::vector<std::string> seeds() {
  std::vector<std::string> all;
  std::mt19937 random(11);
  for (const size_t length : {8, 30, 100, 400, 400, 1500}) {
    std::string bytes;
    while (bytes.size() < length) bytes += static_cast<char>(random() % 62);  // none of them makes a rare choice
    all.push_back(bytes);
  }
  return all;
}

void run_schema(const std::string& input) {
  Choices choices(input);
  std::string schema = schema_of(choices, 0);
  if (choices.rarely()) schema += std::string("\0anything", 9);
  if (schema[0] != '{') schema = "{\"items\":" + schema + "}";
  schema.insert(1,
                R"("$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"}},"b":{"type":"integer"},"c":{"title":"t",
      "properties":{"z":{"type":"boolean"}}}})" +
                    std::string(schema == "{}" ? "" : ","));
  follow(schema);
}

void run_pattern(const std::string& input) {
  Choices choices(input);
  follow(R"({"type":"string","pattern":)" + quoted(anchored(choices)) + "}");
}

const RegisterFuzz kSchema({"structured_schema", seeds, run_schema, {std::string(1, '\x3f'), std::string(4, '\x02')}});
const RegisterFuzz kPattern(
    {"structured_pattern", seeds, run_pattern, {std::string(1, '\x3f'), std::string(6, '\x05')}});

}  // namespace
}  // namespace gemma4
