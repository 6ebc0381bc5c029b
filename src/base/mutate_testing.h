// Mutation fuzzing: what do the readers do with damaged input? Every module lists its readers as FuzzTargets in files
// named x_fuzz.cc; unit tests run each for a fixed number of rounds (base/fuzz_test.cc) and `fuzzer` for as long as one
// likes (fuzz/main.cc). A reader passes if it returns or throws Error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"

namespace gemma4 {

struct FuzzTarget {
  std::string name;
  std::vector<std::string> (*seeds)();       // well-formed inputs
  void (*run)(const std::string& input);     // may throw Error
  std::vector<std::string> dictionary = {};  // spelled into inputs now and then
  // A structured input, which is mostly accepted; null: all inputs are damaged seeds.
  std::string (*generate)(std::mt19937_64& random) = nullptr;
  int memory_max_mib = 512;  // an input that takes more is a finding
  double seconds_max = 20;   // the same, CPU time under the sanitizers
};

inline std::vector<FuzzTarget>& fuzz_targets() {
  static std::vector<FuzzTarget> targets;
  return targets;
}

struct RegisterFuzz {
  explicit RegisterFuzz(FuzzTarget target) { fuzz_targets().push_back(std::move(target)); }
};

// Makes damaged inputs from well-formed ones; the same seed number makes the same inputs.
class Mutator {
 public:
  Mutator(const FuzzTarget& target, uint64_t seed) : target_(target), seeds_(target.seeds()), random_(seed) {}

  std::string next() {
    std::string bytes = target_.generate ? target_.generate(random_) : seeds_[below(seeds_.size())];
    if (target_.generate && below(5) > 0) return bytes;
    const int changes = 1 + static_cast<int>(below(below(4) == 0 ? 12 : 3));
    for (int i = 0; i < changes; ++i) change(bytes);
    return bytes;
  }

 private:
  uint64_t below(uint64_t n) { return n ? random_() % n : 0; }

  // Headers come first in files, so early positions are likelier.
  size_t position(const std::string& bytes) {
    if (bytes.size() < 2 || below(4) == 0) return below(bytes.size());
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    return std::min(bytes.size() - 1, static_cast<size_t>(std::exp(share * std::log(bytes.size()))));
  }

  void overwrite(std::string& bytes, const void* value, size_t size) {
    if (bytes.size() < size) return;
    std::memcpy(bytes.data() + std::min(position(bytes), bytes.size() - size), value, size);
  }

  void change(std::string& bytes) {
    constexpr uint64_t kSizes[] = {
        0,          1,          2,          0x7f,       0x80,       0xff,       0xffff,
        0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, 1ull << 40, 1ull << 61, (1ull << 61) + 1,
        1ull << 62, 1ull << 63, ~0ull >> 1, ~0ull,      ~0ull - 31};
    if (bytes.empty()) return bytes.push_back(static_cast<char>(below(256)));
    switch (below(9)) {
      case 0:
        bytes[position(bytes)] ^= static_cast<char>(1 << below(8));
        break;
      case 1:
        bytes[position(bytes)] = static_cast<char>(below(256));
        break;
      case 2: {  // a size that tends to overflow
        const uint64_t value = kSizes[below(std::size(kSizes))];
        overwrite(bytes, &value, size_t{1} << below(4));
        break;
      }
      case 3: {  // a size a little larger or smaller
        const size_t width = size_t{1} << below(4), at = position(bytes);
        if (at + width > bytes.size()) break;
        uint64_t value = 0;
        std::memcpy(&value, bytes.data() + at, width);
        value += below(64) - 32;
        std::memcpy(bytes.data() + at, &value, width);
        break;
      }
      case 4:
        bytes.resize(position(bytes));
        break;
      case 5: {
        const size_t at = position(bytes);
        bytes.erase(at, 1 + below(below(2) ? 8 : 200));
        break;
      }
      case 6: {  // a stretch doubled
        const size_t at = position(bytes);
        bytes.insert(position(bytes), bytes.substr(at, 1 + below(below(2) ? 8 : 200)));
        break;
      }
      case 7: {  // a piece of another input
        const std::string& other = seeds_[below(seeds_.size())];
        const std::string piece = other.substr(below(other.size()), 1 + below(64));
        overwrite(bytes, piece.data(), piece.size());
        break;
      }
      default:
        if (target_.dictionary.empty()) return;
        const std::string& word = target_.dictionary[below(target_.dictionary.size())];
        if (below(2)) {
          overwrite(bytes, word.data(), word.size());
        } else {
          bytes.insert(position(bytes), word);
        }
    }
  }

  const FuzzTarget& target_;
  std::vector<std::string> seeds_;
  std::mt19937_64 random_;
};

// Runs one input; true where the reader took it, false where it refused.
inline bool run_fuzz_input(const FuzzTarget& target, const std::string& input) {
  try {
    target.run(input);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace gemma4
