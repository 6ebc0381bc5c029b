// The flags of `gemma4 export`. A format is a row in the table of export.cc and a function of these flags.
#pragma once

#include <filesystem>
#include <string>

#include "cli/recipe_flags.h"

namespace gemma4 {

struct ExportFlags {
  std::string format;
  std::filesystem::path model;   // directory or file to read
  std::filesystem::path vision;  // the vision tower of a .gguf model, if its file is not in the same folder
  std::filesystem::path output;  // file or directory to write
  std::string type, embedding_type;
  bool with_vision = false;     // gguf: also write the vision tower
  int bits = 4, group = 64;     // mlx
  std::string backend = "cpu";  // program
  int max_seq_len = 0;          // program; 0: the longest that fits in this machine's memory
  bool no_vision = false;       // leave the vision tower out
  RecipeFlags quantise;         // gguf, program; recipe "": the weights stay as they are
  int image_budget = 0;         // gguf, program: soft tokens of a picture; 0: the checkpoint's
  int threads = 0;              // 0: all cores
  bool force = false;           // replace files that are there
};

}  // namespace gemma4
