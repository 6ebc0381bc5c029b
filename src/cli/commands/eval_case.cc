#include "cli/commands/eval_case.h"

#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/safetensors.h"

namespace gemma4 {
namespace {

nlohmann::json read_cases(const std::filesystem::path& folder) {
  const auto path = folder / "cases.json";
  const auto object = read_json_or_discard<nlohmann::json>(read_file(path));
  if (!object.is_object() || !object.contains("cases") || !object["cases"].is_array()) {
    throw Error(path.string() + " is not a list of cases");
  }
  return object["cases"];
}

class Arrays {
 public:
  explicit Arrays(const std::filesystem::path& path)
      : file_(MappedFile::open(path)), parsed_(parse_safetensors(file_->bytes(), path.string())), path_(path) {}

  template <typename T>
  std::vector<T> get(const std::string& name, DType dtype, bool needed) const {
    for (const auto& entry : parsed_.entries) {
      if (entry.name != name) continue;
      if (entry.dtype != dtype) throw Error(path_.string() + ": " + name + " is not " + dtype_name(dtype));
      std::vector<T> out((entry.end - entry.begin) / sizeof(T));
      std::memcpy(out.data(), parsed_.data.data() + entry.begin, entry.end - entry.begin);
      return out;
    }
    if (needed) throw Error(path_.string() + " has no array " + name);
    return {};
  }

 private:
  std::shared_ptr<const MappedFile> file_;
  Safetensors parsed_;
  std::filesystem::path path_;
};

}  // namespace

std::vector<std::string> golden_names(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : read_cases(folder)) names.push_back(entry.value("name", ""));
  return names;
}

GoldenCase read_golden(const std::filesystem::path& folder, const std::string& name, int layers) {
  GoldenCase c;
  c.name = name;
  for (const auto& entry : read_cases(folder)) {
    if (entry.value("name", "") != name) continue;
    c.images = entry.value("images", std::vector<std::string>());
    c.budget = entry.value("max_soft_tokens", 280);
  }
  const Arrays arrays(folder / (name + ".safetensors"));
  c.input_ids = arrays.get<int32_t>("input_ids", DType::kI32, true);
  c.logits = arrays.get<float>("logits", DType::kF32, true);
  c.greedy_ids = arrays.get<int32_t>("greedy_ids", DType::kI32, false);
  c.greedy_logits = arrays.get<float>("greedy_logits", DType::kF32, !c.greedy_ids.empty());
  const bool images = !c.images.empty();
  c.pixel_values = arrays.get<float>("pixel_values", DType::kF32, images);
  c.pixel_xy = arrays.get<int32_t>("pixel_position_ids", DType::kI32, images);
  c.patches_per_image = arrays.get<int32_t>("patches_per_image", DType::kI32, images);
  c.image_features = arrays.get<float>("image_features", DType::kF32, images);
  const auto hidden = arrays.get<float>("hidden_states", DType::kF32, false);
  const size_t one = hidden.size() / (static_cast<size_t>(layers) + 1);
  for (size_t i = 0; one > 0 && i <= static_cast<size_t>(layers); ++i) {
    c.hidden_states.emplace_back(hidden.begin() + static_cast<int64_t>(i * one),
                                 hidden.begin() + static_cast<int64_t>((i + 1) * one));
  }
  if (c.input_ids.empty()) throw Error(folder.string() + ": case " + name + " has no tokens");
  return c;
}

std::filesystem::path find_image(const std::filesystem::path& folder, const std::string& name) {
  for (const auto& path : {folder / ".." / "images" / name, folder / name}) {
    if (std::filesystem::exists(path)) return path;
  }
  throw Error("eval: image " + name + " is neither in " + (folder / ".." / "images").string() + " nor in " +
              folder.string());
}

std::vector<int32_t> image_blocks(const std::vector<int32_t>& ids, int32_t image_id) {
  std::vector<int32_t> last(ids.size(), -1);
  for (size_t begin = 0; begin < ids.size(); ++begin) {
    if (ids[begin] != image_id) continue;
    size_t end = begin;
    while (end < ids.size() && ids[end] == image_id) ++end;
    for (; begin < end; ++begin) last[begin] = static_cast<int32_t>(end) - 1;
  }
  return last;
}

}  // namespace gemma4
