// fuzzer: runs one fuzz target, or all in turn, on mutated inputs for a given time. Build it under the sanitizers:
//   cmake --preset asan && ninja -C build/asan fuzzer && build/asan/fuzzer --seconds 600 gguf
// A crash leaves the input that caused it in fuzz_NAME.input; `fuzzer NAME --input FILE` runs that again.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "base/file.h"
#include "base/mutate_testing.h"
#include "meter.h"

namespace {

using gemma4::FuzzTarget;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// CPU time of this process: on a busy machine an input may wait longer than it computes.
double processor_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

struct Totals {
  uint64_t taken = 0, refused = 0;
  double slowest = 0;
  size_t peak = 0;  // bytes
};

// Returns false if an input took too long or too much memory.
bool run_measured(const FuzzTarget& target, const std::string& input, Totals& totals) {
  gemma4::MemoryMeter::start();
  const double begin = processor_seconds();
  ++(run_fuzz_input(target, input) ? totals.taken : totals.refused);
  const double seconds = processor_seconds() - begin;
  const size_t peak = gemma4::MemoryMeter::peak();
  totals.slowest = std::max(totals.slowest, seconds);
  totals.peak = std::max(totals.peak, peak);
  if (seconds <= target.seconds_max && peak >> 20 <= static_cast<size_t>(target.memory_max_mib)) return true;
  std::printf("%s: an input took %.1f s and %zu MiB\n", target.name.c_str(), seconds, peak >> 20);
  return false;
}

bool write_input(const std::string& file, const std::string& input) {
  FILE* out = std::fopen(file.c_str(), "wb");
  if (out != nullptr && std::fwrite(input.data(), 1, input.size(), out) == input.size() && std::fclose(out) == 0) {
    return true;
  }
  std::fprintf(stderr, "cannot write %s\n", file.c_str());
  return false;
}

bool fuzz(const FuzzTarget& target, double seconds, uint64_t seed) {
  const std::string file = "fuzz_" + target.name + ".input";
  gemma4::Mutator mutator(target, seed);
  const auto start = Clock::now();
  const double begin = processor_seconds();
  Totals totals;
  while (seconds_since(start) < seconds) {
    const std::string input = mutator.next();
    if (!write_input(file, input)) return false;
    if (!run_measured(target, input, totals)) {
      std::printf("%s: it is in %s\n", target.name.c_str(), file.c_str());
      return false;
    }
  }
  std::remove(file.c_str());
  const double all = static_cast<double>(totals.taken + totals.refused);
  std::printf("%s: %.0f inputs, %.0f %% taken, slowest %.3f s, peak %zu MiB, %.1f CPU minutes\n", target.name.c_str(),
              all, 100 * static_cast<double>(totals.taken) / std::max(all, 1.0), totals.slowest, totals.peak >> 20,
              (processor_seconds() - begin) / 60);
  if (!target.generate || totals.taken > 0) return true;
  std::printf("%s: no input was taken; run it where the source's own files are found\n", target.name.c_str());
  return false;
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
      Totals totals;
      if (!run_measured(target, gemma4::read_file(input), totals)) return 1;
      std::printf("%s: %s, %.3f s, %zu MiB\n", target.name.c_str(), totals.taken ? "taken" : "refused", totals.slowest,
                  totals.peak >> 20);
    } else if (!fuzz(target, seconds, seed)) {
      return 1;
    }
  }
  return ran ? 0 : usage();
}
