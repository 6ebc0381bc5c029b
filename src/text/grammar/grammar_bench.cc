// The time of a mask over Gemma's 262,145 tokens: for a new state (a walk through the whole trie), and for a known one
// (a look-up). Bound: the trie has some 900,000 nodes, and in a free string nearly all of them are visited.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <string>

#include "base/check.h"
#include "text/grammar/grammar.h"

#ifndef SOURCE_DIR
#define SOURCE_DIR "."
#endif

namespace gemma4 {
namespace {

std::string unpack() {
  FILE* pipe = popen("xz -dc '" SOURCE_DIR "/tests/golden/tokenizer/gemma3_tokenizer.json.xz'", "r");
  std::string bytes;
  char buffer[1 << 16];
  while (const size_t count = fread(buffer, 1, sizeof(buffer), pipe)) bytes.append(buffer, count);
  if (pclose(pipe) != 0) throw Error("run from the project's root, with xz installed");
  return bytes;
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::from_json(unpack());
  return instance;
}

const Grammar::Vocabulary& vocabulary() {
  static const auto instance = std::make_shared<const GrammarVocabulary>(tokenizer());
  return instance;
}

constexpr const char* kSchema = R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"},
  "tags":{"type":"array","items":{"type":"string","maxLength":200}}},"required":["name","age","tags"]})";
constexpr const char* kAnswer =
    "{\"name\": \"Ada Lovelace, Countess\", \"age\": 36, \"tags\": [\"mathematics\", \"engines\"]}";

GrammarOptions options() { return {{tokenizer().require("<eos>")}}; }

void BM_GrammarVocabulary(benchmark::State& state) {
  tokenizer();
  for (auto _ : state) benchmark::DoNotOptimize(GrammarVocabulary(tokenizer()));
}
BENCHMARK(BM_GrammarVocabulary)->Unit(benchmark::kMillisecond);

void BM_GrammarCompile(benchmark::State& state) {
  vocabulary();
  for (auto _ : state) benchmark::DoNotOptimize(Grammar::json_schema(vocabulary(), kSchema, options()));
}
BENCHMARK(BM_GrammarCompile)->Unit(benchmark::kMicrosecond);

void BM_GrammarFirstMaskInString(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    Grammar grammar = Grammar::json_schema(vocabulary(), R"({"type":"string"})", options());
    grammar.advance(tokenizer().require("\""));
    state.ResumeTiming();
    benchmark::DoNotOptimize(grammar.mask());
  }
}
BENCHMARK(BM_GrammarFirstMaskInString)->Unit(benchmark::kMillisecond);

// A whole answer, with the masks of earlier answers kept: the cost of a token in a running server.
void BM_GrammarAnswer(benchmark::State& state) {
  const Grammar start = Grammar::json_schema(vocabulary(), kSchema, options());
  const std::vector<int32_t> ids = tokenizer().encode(kAnswer, false);
  const bool warm = state.range(0) != 0;
  for (auto _ : state) {
    Grammar grammar = warm ? start : Grammar::json_schema(vocabulary(), kSchema, options());
    for (const int32_t id : ids) {
      benchmark::DoNotOptimize(grammar.mask());
      if (!grammar.advance(id)) throw Error("the answer does not fit the schema");
    }
  }
  state.counters["us_per_token"] =
      benchmark::Counter(static_cast<double>(ids.size()) * 1e-6,
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_GrammarAnswer)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gemma4
