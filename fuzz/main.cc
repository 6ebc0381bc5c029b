// fuzzer: runs one fuzz target, or all in turn, on mutated inputs for a given time. Build it under the sanitizers:
//   cmake --preset asan && ninja -C build/asan fuzzer && build/asan/fuzzer --seconds 600 gguf
// A crash leaves the input that caused it in fuzz_NAME.input; `fuzzer NAME --input FILE` runs that again.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/file.h"
#include "base/mutate_testing.h"

namespace {

using gemma4::FuzzTarget;
using Clock = std::chrono::steady_clock;

constexpr double kSlow = 20;  // CPU seconds (under the sanitizers) after which an input counts as a hang

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// CPU time of this process: on a busy machine an input may wait longer than it computes.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// Returns false if an input took too long.
bool fuzz(const FuzzTarget& target, double seconds, uint64_t seed) {
  const std::string file = "fuzz_" + target.name + ".input";
  gemma4::Mutator mutator(target, seed);
  const auto start = Clock::now();
  uint64_t taken = 0, refused = 0;
  double slowest = 0;
  while (seconds_since(start) < seconds) {
    const std::string input = mutator.next();
    FILE* out = std::fopen(file.c_str(), "wb");
    if (out == nullptr || std::fwrite(input.data(), 1, input.size(), out) != input.size() || std::fclose(out) != 0) {
      std::fprintf(stderr, "cannot write %s\n", file.c_str());
      return false;
    }
    const double begin = processor_seconds();
    ++(run_fuzz_input(target, input) ? taken : refused);
    slowest = std::max(slowest, processor_seconds() - begin);
    if (slowest > kSlow) {
      std::printf("%s: an input took %.1f s; it is in %s\n", target.name.c_str(), slowest, file.c_str());
      return false;
    }
  }
  std::remove(file.c_str());
  std::printf("%s: %llu inputs taken, %llu refused, slowest %.3f s\n", target.name.c_str(),
              static_cast<unsigned long long>(taken), static_cast<unsigned long long>(refused), slowest);
  return true;
}

int usage() {
  std::fprintf(stderr, "usage: fuzzer [--seconds N] [--seed N] [--input FILE] [TARGET ...]\ntargets:");
  for (const FuzzTarget& target : gemma4::fuzz_targets()) std::fprintf(stderr, " %s", target.name.c_str());
  std::fprintf(stderr, "\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  uint64_t seed = 1;
  std::string input;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) != 0) {
      names.push_back(arg);
    } else if (i + 1 < argc && (arg == "--seconds" || arg == "--seed" || arg == "--input")) {
      const char* value = argv[++i];
      if (arg == "--seconds") seconds = std::atof(value);
      if (arg == "--seed") seed = std::strtoull(value, nullptr, 10);
      if (arg == "--input") input = value;
    } else {
      return usage();
    }
  }
  int ran = 0;
  for (const FuzzTarget& target : gemma4::fuzz_targets()) {
    if (!names.empty() && std::find(names.begin(), names.end(), target.name) == names.end()) continue;
    ++ran;
    if (!input.empty()) {
      std::printf("%s: %s\n", target.name.c_str(),
                  run_fuzz_input(target, gemma4::read_file(input)) ? "taken" : "refused");
    } else if (!fuzz(target, seconds, seed)) {
      return 1;
    }
  }
  return ran ? 0 : usage();
}
