#include "checkpoint/checkpoint.h"

#include "base/check.h"
#include "checkpoint/huggingface.h"

namespace gemma4 {

Checkpoint open_checkpoint(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw Error("there is no checkpoint at " + path.string());
  if (std::filesystem::is_directory(path, error)) return open_safetensors_directory(path);
  return open_safetensors_file(path);
}

}  // namespace gemma4
