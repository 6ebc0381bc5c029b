#include "checkpoint/checkpoint.h"

#include <algorithm>

#include "base/check.h"
#include "checkpoint/drafter.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_checkpoint.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/names.h"
#include "checkpoint/program_file.h"
#include "checkpoint/recognise.h"
#include "checkpoint/vision_source.h"

namespace gemma4 {

namespace {

namespace fs = std::filesystem;

// The one model of a folder of .gguf files: beside it, vision halves and the further files of a split one.
fs::path only_gguf_in(const fs::path& directory) {
  fs::path found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const size_t part = name.find("-of-");
    const bool later = part != name.npos && part >= 6 && name.compare(part - 6, 6, "-00001") != 0;
    if (!name.ends_with(".gguf") || later || names_mmproj(name)) continue;
    if (!found.empty()) return {};
    found = it->path();
  }
  return found;
}

Checkpoint open_text(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) refuse_missing(path);
  const bool directory = fs::is_directory(path, error);
  if (directory && fs::exists(path / kProgramFile, error)) return open_program(path);
  const bool hugging_face =
      fs::exists(path / "model.safetensors", error) || fs::exists(path / "model.safetensors.index.json", error);
  const fs::path gguf = directory && !hugging_face ? only_gguf_in(path) : path;
  if (hugging_face || gguf.empty()) return open_safetensors_directory(path);
  std::shared_ptr<const MappedFile> file = MappedFile::open(gguf);
  refuse_lfs_pointer(file->bytes(), gguf.string());
  return is_gguf(file->bytes()) ? open_gguf(std::move(file)) : open_safetensors_file(gguf);
}

bool has_vision_weights(const Checkpoint& checkpoint) {
  return std::ranges::any_of(checkpoint.order, [](const std::string& name) { return is_vision_tensor(name); });
}

void add_vision_beside(Checkpoint& checkpoint) {
  if (has_vision_weights(checkpoint)) return;  // a file of both halves
  const fs::path beside = mmproj_beside(checkpoint);
  if (beside.empty()) return;
  try {
    add_vision(checkpoint, beside);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + " (it was found beside the model; --no-vision leaves it out)");
  }
}

}  // namespace

Checkpoint open_checkpoint(const fs::path& path, const fs::path& vision, bool with_vision) {
  Checkpoint checkpoint = open_text(path);
  if (!vision.empty() && (checkpoint.program || is_drafter_config(checkpoint.config))) {
    throw Error(path.string() + (checkpoint.program ? " is an exported program" : " is a drafter") +
                ", which takes no vision file");
  }
  if (!with_vision) {
    drop_vision(checkpoint);
  } else if (!vision.empty()) {
    add_vision(checkpoint, vision);
  } else if (checkpoint.kind == "gguf" && !is_drafter_config(checkpoint.config)) {
    add_vision_beside(checkpoint);
  } else if (!checkpoint.config.empty() && !describes_vision(checkpoint)) {
    drop_vision(checkpoint);  // a text model saved with the weights of a tower
  }
  return checkpoint;
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
