#include "checkpoint/drafter.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModelType = "gemma4_assistant";
constexpr const char* kMark = "-assistant";

// What lies in `directory` and could be a drafter by its name, sorted by name.
std::vector<fs::path> candidates(const fs::path& directory) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const fs::path& path = it->path();
    std::error_code ignored;
    const bool checkpoint = fs::exists(path / "config.json", ignored) || path.extension() == ".gguf";
    if (checkpoint && path.filename().string().find(kMark) != std::string::npos) found.push_back(path);
  }
  std::ranges::sort(found);
  return found;
}

bool has_centroids(const std::string& config) {
  const nlohmann::json object = read_json_or_discard<nlohmann::json>(config);
  return object.is_object() && object.contains("use_ordered_embeddings") && object["use_ordered_embeddings"] == true;
}

// A drafter with centroids holds tensors that have no name here; what it is says more than the first of these.
Checkpoint open_known(const fs::path& path) {
  try {
    return open_source(path);
  } catch (const Error&) {
    std::error_code ignored;
    const fs::path config = path / "config.json";
    if (!fs::is_regular_file(config, ignored) || !has_centroids(read_file(config))) throw;
    throw Error(path.string() + ": config.use_ordered_embeddings is true: a drafter that chooses tokens by centroids " +
                "is not implemented");
  }
}

}  // namespace

bool is_drafter_config(const std::string& config) {
  const nlohmann::json object = read_json_or_discard<nlohmann::json>(config);
  return object.is_object() && object.contains("model_type") && object["model_type"] == kModelType;
}

Checkpoint open_drafter(const fs::path& path) {
  Checkpoint checkpoint = open_known(path);
  if (is_drafter_config(checkpoint.config)) return checkpoint;
  throw Error(path.string() + " is no drafter: its config.json does not have the model_type " + kModelType);
}

std::optional<fs::path> find_drafter_beside(const fs::path& model) {
  std::error_code ignored;
  fs::path itself = fs::absolute(model, ignored).lexically_normal();
  if (!itself.has_filename()) itself = itself.parent_path();  // "models/demo/"
  if (fs::is_directory(itself, ignored)) {
    const std::vector<fs::path> inside = candidates(itself);
    if (!inside.empty()) return inside.front();
  }
  std::vector<fs::path> beside = candidates(itself.parent_path());
  std::erase(beside, itself);
  if (beside.empty()) return std::nullopt;
  // Of several models in a folder each has its own.
  const std::string name = itself.stem().string() + kMark;
  const auto own =
      std::ranges::find_if(beside, [&](const fs::path& path) { return path.filename().string().starts_with(name); });
  return own != beside.end() ? *own : beside.front();
}

}  // namespace gemma4
