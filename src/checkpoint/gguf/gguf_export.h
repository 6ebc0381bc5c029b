// Exports any checkpoint as the GGUF files that llama.cpp reads: a text model and its vision half. Keys and names are
// those of llama.cpp's own converter (conversion/gemma.py, Gemma4Model and Gemma4VisionAudioModel).
#pragma once

#include <filesystem>
#include <string>

#include "base/file.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"

namespace gemma4 {

struct GgufExport {
  Format type = Format::kBF16;       // of matrices: F32, F16, BF16 or what pack_blocks makes
  Format embedding = Format::kNone;  // of the embedding table; kNone: Q8_0 where `type` has less, else `type`
  bool keep_blocks = true;           // matrices that already are ggml blocks stay unchanged
  std::string chat_template;         // Jinja text to put into the file; may be empty
  std::string name = "Gemma 4";
  Overwrite overwrite = Overwrite::kRefuse;  // the file that is written
};

// `tokenizer` must hold arrays (GGUF's form). Throws Error.
void export_gguf_text(const Checkpoint& checkpoint, const TokenizerData& tokenizer, const GgufExport& options,
                      const std::filesystem::path& output, ThreadPool& pool);

// Exports the vision tower. Matrices are F16 if options.type is, else BF16, as in llama.cpp's converter. Throws Error
// if the checkpoint has none.
void export_gguf_vision(const Checkpoint& checkpoint, const GgufExport& options, const std::filesystem::path& output,
                        ThreadPool& pool);

}  // namespace gemma4
