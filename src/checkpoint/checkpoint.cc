#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "base/check.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_checkpoint.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/program_file.h"

namespace gemma4 {

Checkpoint open_checkpoint(const std::filesystem::path& path, const std::filesystem::path& vision) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw Error("there is no checkpoint at " + path.string());
  const bool directory = std::filesystem::is_directory(path, error);
  if (!directory) {
    std::shared_ptr<const MappedFile> file = MappedFile::open(path);
    if (is_gguf(file->bytes())) return open_gguf(std::move(file), vision);
  }
  if (!vision.empty()) throw Error(path.string() + " is no GGUF file, so it takes no separate vision file");
  if (directory && std::filesystem::exists(path / kProgramFile, error)) return open_program(path);
  return directory ? open_safetensors_directory(path) : open_safetensors_file(path);
}

Checkpoint open_source(const std::filesystem::path& path, const std::filesystem::path& vision) {
  Checkpoint checkpoint = open_checkpoint(path, vision);
  if (!checkpoint.program) return checkpoint;
  throw Error(path.string() + " is an exported program, whose weights are laid out for the " +
              checkpoint.program->header.backend + " backend alone; use the checkpoint it was made of, " +
              checkpoint.program->header.source);
}

bool is_file_of(const Checkpoint& checkpoint, const std::filesystem::path& path) {
  return std::any_of(checkpoint.files.begin(), checkpoint.files.end(), [&](const auto& file) {
    std::error_code ignored;
    return std::filesystem::equivalent(file->path(), path, ignored);
  });
}

}  // namespace gemma4
