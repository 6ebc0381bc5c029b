// How fast Gemma's 33 MB tokenizer.json is loaded and text is encoded. Bounds: memory bandwidth for loading; for
// encoding one look-up in the merge table for each pair of neighbours (the table has 16 MB, so it is a cache miss).
#include <benchmark/benchmark.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "base/check.h"
#include "text/tokenizer/tokenizer.h"

#ifndef SOURCE_DIR
#define SOURCE_DIR "."
#endif

namespace gemma4 {
namespace {

std::string unpack() {
  const std::string command = "xz -dc '" SOURCE_DIR "/tests/golden/tokenizer/gemma3_tokenizer.json.xz'";
  FILE* pipe = popen(command.c_str(), "r");
  std::string bytes;
  char buffer[1 << 16];
  while (const size_t count = fread(buffer, 1, sizeof(buffer), pipe)) bytes.append(buffer, count);
  if (pclose(pipe) != 0) throw Error("run from the project's root, with xz installed");
  return bytes;
}

const std::string& json() {
  static const std::string text = unpack();
  return text;
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance = Tokenizer::from_json(json());
  return instance;
}

void set_speed(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(bytes) * state.iterations());
}

void BM_TokenizerLoad(benchmark::State& state) {
  json();
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::from_json(json()));
  set_speed(state, json().size());
}
BENCHMARK(BM_TokenizerLoad)->Unit(benchmark::kMillisecond);

// 1 MB each: prose, code, one endless word, spaces, emoji that fall back to bytes.
std::string text_of(int sample) {
  static const char* kSamples[] = {
      "The quick brown fox jumps over the lazy dog, and nobody in the village (pop. 1,274) was surprised at all.\n",
      "  for (size_t i = 0; i < count; ++i) {\n    sum += values[i] * weights[i];  // accumulate\n  }\n",
      "abcdefghijklmnopqrstuvwxyz", " ", "\xf0\x9f\xa7\xbf\xf0\x9f\x91\x8b\xf0\x90\x80\x80"};
  std::string text;
  while (text.size() < (1 << 20)) text += kSamples[sample];
  return text;
}

void BM_TokenizerEncode(benchmark::State& state) {
  const std::string text = text_of(static_cast<int>(state.range(0)));
  size_t tokens = 0;
  for (auto _ : state) tokens = tokenizer().encode(text, true).size();
  set_speed(state, text.size());
  state.counters["tokens"] = static_cast<double>(tokens);
}
BENCHMARK(BM_TokenizerEncode)->DenseRange(0, 4)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gemma4
