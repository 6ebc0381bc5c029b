// Continues a sequence of token ids with an exported program, greedily:
//   gemma4 export --format program --model-dir models/demo --output-dir demo-program
//   continue_ids demo-program 8 2 15 1005 24 ...        prints the 8 ids that follow
// Works with text-only programs (prefill takes tokens) and with vision (prefill takes embeddings).
#include <gemma4/program.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <span>
#include <vector>

namespace {

using gemma4::Program;

const std::vector<float> kGreedy = {0};

bool has_method(const Program& program, const char* name) {
  return std::ranges::any_of(program.methods(), [&](const auto& method) { return method.name == name; });
}

int64_t decode(Program& program, int64_t id) {
  const std::vector<int64_t> ids = {id}, positions = {program.position()};
  return program.call("decode", {{ids, {1, 1}}, {positions, {1}}, {kGreedy, {1}}})[0].integers[0];
}

// Computes one chunk of the prompt; returns the id that follows it.
int64_t prefill(Program& program, std::span<const int64_t> ids) {
  const auto count = static_cast<int64_t>(ids.size());
  if (count == 1) return decode(program, ids[0]);
  std::vector<int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), program.position());
  if (!has_method(program, "embed_text")) {
    return program.call("prefill", {{ids, {1, count}}, {positions, {count}}, {kGreedy, {1}}})[0].integers[0];
  }
  const auto rows = program.call("embed_text", {{ids, {1, count}}})[0];
  return program.call("prefill", {{rows.floats, rows.shape}, {positions, {count}}, {kGreedy, {1}}})[0].integers[0];
}

void run(const char* directory, int count, const std::vector<int64_t>& prompt) {
  Program program(directory);
  const auto chunk = static_cast<size_t>(program.constants().at("get_max_prefill_chunk"));
  int64_t next = 0;
  for (size_t at = 0; at < prompt.size(); at += chunk) {
    next = prefill(program, std::span(prompt).subspan(at, std::min(chunk, prompt.size() - at)));
  }
  for (int i = 0; i < count; ++i) {
    std::printf("%s%lld", i ? " " : "", static_cast<long long>(next));
    if (i + 1 < count) next = decode(program, next);
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: continue_ids PROGRAM COUNT ID...\n");
    return 2;
  }
  std::vector<int64_t> prompt;
  for (int i = 3; i < argc; ++i) prompt.push_back(std::atoll(argv[i]));
  try {
    run(argv[1], std::atoi(argv[2]), prompt);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "continue_ids: %s\n", error.what());
    return 2;
  }
  return 0;
}
