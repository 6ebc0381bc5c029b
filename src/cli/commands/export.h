// What `gemma4 export` was told, for the formats it can write. A format is a row in export.cc's table and a function of
// these flags.
#pragma once

#include <filesystem>
#include <string>

namespace gemma4 {

struct ExportFlags {
  std::string format;
  std::filesystem::path model;   // directory or file to read
  std::filesystem::path vision;  // the vision half of a .gguf model, where it does not lie beside it
  std::filesystem::path output;  // file or directory to write
  std::string type, embedding_type;
  bool with_vision = false;     // gguf: write the vision half too
  int bits = 4, group = 64;     // mlx
  std::string backend = "cpu";  // program
  int max_seq_len = 0;          // program; 0: 4096, or the model's most if that is less
  bool no_vision = false;       // leave the vision tower out
  int threads = 0;              // 0: all cores
};

}  // namespace gemma4
