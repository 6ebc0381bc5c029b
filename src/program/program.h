// gemma4::Program: runs an exported program (`gemma4 export --format program`) inside another application. Its weights
// are mapped, and its methods are called by name with tensors in the caller's memory. This header includes no other of
// gemma4's; link gemma4::gemma4 (examples/). Every error (a damaged directory, a wrong shape, a position out of range,
// an unknown method) is a std::runtime_error of one sentence, thrown before anything has changed.
//
//   gemma4::Program program("gemma4-31b-program");
//   auto token = program.call("prefill", {{ids, {1, n}}, {positions, {n}}, {temperature, {1}}})[0].integers[0];
//   while (...) token = program.call("decode", {{token..., {1, 1}}, {position..., {1}}, {temperature, {1}}})...
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace gemma4 {

enum class ElementType { kFloat32, kInt64, kBool };

// A size in a shape: `multiple` times a number from least to most. Within a method, equal symbols are equal numbers. A
// fixed size has no symbol.
struct Dimension {
  std::string symbol;
  int64_t multiple = 1, least = 1, most = 1;
};

struct TensorSpec {
  std::string name;
  ElementType type = ElementType::kFloat32;
  std::vector<Dimension> shape;
  bool optional = false;  // an input at the end that may be left out
};

struct MethodSpec {
  std::string name;
  std::vector<TensorSpec> inputs, outputs;
};

// An input: the caller's memory, row-major, read during the call.
struct Input {
  Input(std::span<const float> values, std::vector<int64_t> shape)
      : type(ElementType::kFloat32), data(values.data()), count(values.size()), shape(std::move(shape)) {}
  Input(std::span<const int64_t> values, std::vector<int64_t> shape)
      : type(ElementType::kInt64), data(values.data()), count(values.size()), shape(std::move(shape)) {}

  ElementType type;
  const void* data;
  size_t count;  // elements
  std::vector<int64_t> shape;
};

// An output: the vector of its type holds it, row-major.
struct Output {
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int64_t> integers;
  std::vector<uint8_t> flags;  // kBool: 0 or 1
};

struct ProgramOptions {
  int threads = 0;            // of the cpu backend; 0: one for each core
  int max_prefill_chunk = 0;  // a smaller one than the program's takes less memory; 0: the program's
  uint64_t seed = 0;          // of sampling at temperatures above 0; 0: random
};

// One conversation at a time, from one thread at a time. Methods (docs/FORMATS.md has the table):
//
//   prefill         text-only: tokens int64 [1, T], input_pos int64 [T], temperature float32 [1] -> int64 [1, 1]
//                   with vision: inputs_embeds float32 [1, T, hidden] instead of tokens, and optionally image_ends
//                   int64 [T], the position of the last row of the picture that a row lies in, -1 for text
//   decode          tokens int64 [1, 1], input_pos int64 [1], temperature float32 [1] -> int64 [1, 1]
//   embed_text      tokens int64 [1, T] -> float32 [1, T, hidden]
//   vision_encoder  pixel_values float32 [1, P, patch] in 0 to 1, pixel_position_ids int64 [1, P, 2] (x, y; padding at
//                   the end: -1) -> float32 [1, N, hidden], bool [1, N] (which rows are the picture's)
//
// prefill and decode write keys and values at their positions and sample the token that follows the last one.
// Temperature 0 takes the most likely token. Positions are consecutive. The first one is at most position(); an earlier
// one overwrites the cache, as far back as the sliding layers still have their window.
class Program {
 public:
  explicit Program(const std::string& directory, const ProgramOptions& options = {});
  ~Program();
  Program(Program&&) noexcept;

  const std::vector<MethodSpec>& methods() const;
  const std::map<std::string, int64_t>& constants() const;  // get_max_seq_len, get_vocab_size, ...; booleans: 0 or 1

  std::vector<Output> call(const std::string& method, const std::vector<Input>& inputs);

  int64_t position() const;  // tokens in the cache
  void reset();              // empties the cache

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gemma4
