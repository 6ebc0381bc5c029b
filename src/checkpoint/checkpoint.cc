#include "checkpoint/checkpoint.h"

#include "base/check.h"
#include "checkpoint/gguf.h"
#include "checkpoint/gguf_checkpoint.h"
#include "checkpoint/huggingface.h"

namespace gemma4 {

Checkpoint open_checkpoint(const std::filesystem::path& path, const std::filesystem::path& vision) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw Error("there is no checkpoint at " + path.string());
  const bool directory = std::filesystem::is_directory(path, error);
  if (!directory && is_gguf(MappedFile::open(path)->bytes())) return open_gguf(path, vision);
  if (!vision.empty()) throw Error(path.string() + " is no GGUF file, so it takes no separate vision file");
  return directory ? open_safetensors_directory(path) : open_safetensors_file(path);
}

}  // namespace gemma4
