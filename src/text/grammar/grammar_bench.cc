// The time of a mask over Gemma's 262,145 tokens: for a new state (a walk through the trie), and for a known one (a
// look-up). Bound: the trie has some 900,000 nodes; branches of which all tokens may come are taken as a whole.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iterator>
#include <random>
#include <string>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
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

// Patterns that are cheap to send and dear to enforce: compiled, and followed for an answer of 60 random tokens. A mask
// may come when the budget is gone; then the answer ends.
constexpr const char* kPatterns[] = {"^.*[aeiou].{15,20}$",
                                     "^(.{0,100}){0,100}$",
                                     "^.*[a-m].{0,3000}$",
                                     "^(.*a.{0,300}|.*b.{0,300}|.*c.{0,300}|.*d.{0,300})$",
                                     "^(((((a?){0,60}){0,60}){0,60}){0,60}){0,60}$",
                                     "^(((((a?b?){0,60}c?){0,60}d?){0,60}e?){0,60}f?){0,60}$",
                                     "^.*a.{200}$",
                                     "^.*a....................$",
                                     "^(\\w+\\s?){1,50}$",
                                     "^[A-Za-z ]{1,50}$",
                                     "^.{70,90}$"};

void BM_GrammarPattern(benchmark::State& state) {
  const std::string pattern = kPatterns[state.range(0)];
  std::string schema = "{\"type\":\"string\",\"pattern\":\"";
  for (const char c : pattern) schema += c == '\\' ? std::string("\\\\") : std::string(1, c);
  schema += "\"}";
  double slowest = 0, tokens = 0;
  uint64_t steps = 0, bytes = 0;
  vocabulary();
  for (auto _ : state) {
    Grammar grammar = Grammar::json_schema(vocabulary(), schema, options());
    std::mt19937 random(1);
    try {
      for (tokens = 0; tokens < 60 && !grammar.ended(); ++tokens) {
        const auto begin = std::chrono::steady_clock::now();
        const auto mask = grammar.mask();
        slowest = std::max(slowest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
        int32_t id = 0;
        do {
          id = static_cast<int32_t>(random() % static_cast<unsigned>(tokenizer().vocab_size()));
          for (size_t i = 0; i < mask.size() && !(mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1); ++i) {
            id = (id / 32 + 1) % static_cast<int32_t>(mask.size()) * 32;
            const uint32_t word = mask[static_cast<size_t>(id) / 32];
            if (word != 0) id += __builtin_ctz(word);
          }
        } while (!grammar.advance(id));
      }
    } catch (const BudgetError&) {
    }
    steps = grammar.budget().steps_used();
    bytes = grammar.budget().bytes_held();
  }
  state.SetLabel(pattern);
  state.counters["tokens"] = tokens;
  state.counters["slowest_ms"] = slowest * 1e3;
  state.counters["Msteps"] = static_cast<double>(steps) * 1e-6;
  state.counters["MiB"] = static_cast<double>(bytes) / (1 << 20);
}
BENCHMARK(BM_GrammarPattern)->DenseRange(0, std::size(kPatterns) - 1)->Iterations(1)->Unit(benchmark::kMillisecond);

// The schemas of Pydantic's and Zod's types (tests/golden/schemas): compiling each, and the masks of 20 answers of
// equally likely tokens to each. A schema's first mask is counted apart.
void BM_GrammarSchemaList(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  const auto microseconds = [](Clock::time_point begin) {
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  };
  std::vector<double> compile, first, others;
  vocabulary();
  for (auto _ : state) {
    for (const char* file : {"pydantic", "zod"}) {
      const std::string path = std::string(SOURCE_DIR "/tests/golden/schemas/") + file + ".json";
      for (const auto& one : read_json<nlohmann::ordered_json>(read_file(path))) {
        const std::string schema = one["schema"].dump();
        const auto begin = Clock::now();
        const Grammar start = Grammar::json_schema(vocabulary(), schema, options());
        compile.push_back(microseconds(begin));
        std::mt19937 random(1);
        for (int answer = 0; answer < 20; ++answer) {
          Grammar grammar = start;
          for (unsigned step = 0; step < 100 && !grammar.ended(); ++step) {
            const auto before = Clock::now();
            const auto mask = grammar.mask();
            (answer == 0 && step == 0 ? first : others).push_back(microseconds(before));
            const int32_t end = tokenizer().require("<eos>");
            int32_t id = static_cast<int32_t>(random() % static_cast<unsigned>(tokenizer().vocab_size()));
            for (size_t i = 0; i < mask.size() && !(mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1); ++i) {
              id = (id / 32 + 1) % static_cast<int32_t>(mask.size()) * 32;
              const uint32_t word = mask[static_cast<size_t>(id) / 32];
              if (word != 0) id += __builtin_ctz(word);
            }
            const int32_t quote = tokenizer().require("\"");
            if (random() % 6 == 0 && (mask[static_cast<size_t>(quote) / 32] >> (quote % 32) & 1)) id = quote;
            if (grammar.complete() && random() % 4 == 0) id = end;
            grammar.advance(id);
          }
        }
      }
    }
  }
  const auto set = [&](const char* name, std::vector<double>& values, double share) {
    std::sort(values.begin(), values.end());
    state.counters[name] = values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
  };
  set("compile_us_p50", compile, 0.5);
  set("compile_us_p99", compile, 0.99);
  set("first_us_p50", first, 0.5);
  set("first_us_p99", first, 0.99);
  set("mask_us_p50", others, 0.5);
  set("mask_us_p99", others, 0.99);
  set("mask_us_max", others, 1);
}
BENCHMARK(BM_GrammarSchemaList)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gemma4
