// The exported program on disk. It is a directory with three things. program.json names the backend, the inputs of the
// methods and the weights. program.weights holds the bytes of the weights in the layout of that backend; they are
// mapped and used in place. The rest is config.json, the tokenizer and the other small files of a checkpoint. Grammar:
// docs/FORMATS.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

// What program.json says beside the weights. Constants are numbers; ExecuTorch's booleans are 0 and 1.
struct ProgramHeader {
  std::string backend, layout;  // Backend::name() and layout() of who made it
  std::string source, vision;   // the checkpoint it was made of, and --vision where that was given
  std::string recipe, hqq;      // --quant-recipe and --hqq where it was quantised on the way
  int64_t image_budget = 0;     // --max-vision-soft-tokens where that was given
  std::vector<std::pair<std::string, int64_t>> constants;
  std::string methods;  // JSON; written, not read back: methods follow from config and constants

  int64_t constant(const std::string& name, int64_t fallback) const;
};

// One matrix of the model, or several that are stacked because one product computes them all.
struct ProgramMatrix {
  std::vector<std::string> names;  // of the stacked tensors, in the order of their rows
  PrepackedWeight stored;
};

struct ProgramFile {
  ProgramHeader header;
  std::map<std::string, ProgramMatrix> matrices;  // by the first of their names
};

constexpr const char* kProgramFile = "program.json";

// Opens a directory that holds program.json. In Checkpoint::weights the vectors (norms) are float32, as in any
// checkpoint. The matrices there have a format and a shape but no elements, which are in Checkpoint::program. Throws
// Error.
Checkpoint open_program(const std::filesystem::path& directory);

// The command that makes this program again for `backend`, into `output`.
std::string export_command_of(const ProgramHeader& header, const std::string& backend,
                              const std::filesystem::path& output);

// Writes a program: weights one after another, then everything else. program.json is written last, so a directory that
// has it is complete.
class ProgramWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };

  // The directory is new or empty, or `overwrite` lets an earlier program be replaced. Throws Error.
  explicit ProgramWriter(const std::filesystem::path& directory, Overwrite overwrite = Overwrite::kRefuse);
  ~ProgramWriter();

  void add(const std::vector<Tensor>& stacked, const PrepackedWeight& stored);
  void add(const Tensor& vector, const std::vector<float>& values);

  // `config`: config.json of the program. The other files are those of `source`.
  void commit(const ProgramHeader& header, const std::string& config, const Checkpoint& source);

  uint64_t bytes() const { return bytes_; }

 private:
  void append(const void* data, size_t size);
  struct List;
  std::filesystem::path directory_;
  Overwrite overwrite_;
  OutputDirectory lock_;
  AtomicFile file_;
  uint64_t bytes_ = 0;
  std::unique_ptr<List> list_;
};

}  // namespace gemma4
