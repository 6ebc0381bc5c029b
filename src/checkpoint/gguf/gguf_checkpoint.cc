#include "checkpoint/gguf/gguf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_config.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/names.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPatchEmbedding = "v.patch_embd.weight";

// Parses a mapped file, which the checkpoint keeps.
Gguf add_file(Checkpoint& checkpoint, std::shared_ptr<const MappedFile> file) {
  checkpoint.files.push_back(std::move(file));
  return parse_gguf(checkpoint.files.back()->bytes(), checkpoint.files.back()->path().string());
}

// [width, 3, patch, patch] -> [width, patch * patch * 3]: llama.cpp's convolution has the colour first, the model's
// patches have it last.
Weight patch_embedding(Checkpoint& checkpoint, const GgufTensor& tensor, const std::string& whose) {
  const bool plain = tensor.format == Format::kF32 || tensor.format == Format::kF16 || tensor.format == Format::kBF16;
  if (!plain || tensor.shape.size() != 4 || tensor.shape[1] != 3) {
    throw Error(whose + " is not an unquantised tensor [width, 3, patch, patch]");
  }
  const size_t element = static_cast<size_t>(info(tensor.format).block_bytes);
  const size_t pixels = static_cast<size_t>(tensor.shape[2] * tensor.shape[3]);
  const std::shared_ptr<std::byte[]> copy(new std::byte[tensor.data.size()]);
  const std::byte* from = tensor.data.data();
  for (int64_t row = 0; row < tensor.shape[0]; ++row) {
    std::byte* to = copy.get() + static_cast<size_t>(row) * 3 * pixels * element;
    for (size_t c = 0; c < 3; ++c) {
      for (size_t i = 0; i < pixels; ++i, from += element) std::memcpy(to + (3 * i + c) * element, from, element);
    }
  }
  checkpoint.owned.push_back(copy);
  Weight weight;
  weight.shape = {tensor.shape[0], static_cast<int64_t>(3 * pixels)};
  weight.matrix.codes.data = copy.get();
  return weight;
}

DType dtype_of(Format format) {
  return format == Format::kF32    ? DType::kF32
         : format == Format::kF16  ? DType::kF16
         : format == Format::kBF16 ? DType::kBF16
                                   : DType::kU8;
}

void add_tensor(Checkpoint& checkpoint, const Gguf& gguf, const GgufTensor& tensor, bool vision) {
  const std::string whose = gguf.what + ": tensor " + printable(tensor.name);
  const auto name = from_gguf_name(tensor.name);
  if (!name || is_vision_tensor(*name) != vision) {
    throw Error(whose + " is not one that the " + (vision ? "vision" : "text") + " half of Gemma 4 has");
  }
  Weight weight;
  if (tensor.name == kPatchEmbedding) {
    weight = patch_embedding(checkpoint, tensor, whose);
  } else {
    weight.shape = tensor.shape;
    weight.matrix.codes.data = const_cast<std::byte*>(tensor.data.data());
  }
  Matrix& m = weight.matrix;
  m.format = tensor.format;
  m.cols = weight.shape.back();
  m.rows = 1;
  for (size_t i = 0; i + 1 < weight.shape.size(); ++i) m.rows *= weight.shape[i];
  const int64_t units = is_ggml_block(m.format) ? row_bytes(m) : m.cols;
  m.codes = Tensor(m.codes.data, dtype_of(m.format), {m.rows, units});
  weight.bytes = tensor.data.size();
  if (!checkpoint.weights.emplace(*name, std::move(weight)).second) throw Error(whose + " appears twice");
  checkpoint.order.push_back(*name);
}

void add_text(Checkpoint& checkpoint, const Gguf& gguf) {
  for (const GgufTensor& tensor : gguf.tensors) {
    if (tensor.name != kRopeFreqs) add_tensor(checkpoint, gguf, tensor, false);
  }
}

// The other files of a model in several shards (NAME-00001-of-00003.gguf, ...). The first one has the metadata.
std::vector<fs::path> shard_paths(const fs::path& path, const Gguf& gguf) {
  const int64_t count = gguf.integer("split.count", 1);
  if (count <= 1) return {};
  if (count > 9999) throw Error(gguf.what + ": split.count is out of range");
  char first[32], other[32];
  std::snprintf(first, sizeof first, "-%05d-of-%05d.gguf", 1, static_cast<int>(count));
  const std::string name = path.filename().string();
  if (gguf.integer("split.no", 0) != 0 || !name.ends_with(first)) {
    throw Error(gguf.what + " is part of a model in " + std::to_string(count) + " files; open the one named ..." +
                first);
  }
  std::vector<fs::path> shards;
  for (int i = 2; i <= count; ++i) {
    std::snprintf(other, sizeof other, "-%05d-of-%05d.gguf", i, static_cast<int>(count));
    shards.push_back(path.parent_path() / (name.substr(0, name.size() - std::strlen(first)) + other));
  }
  return shards;
}

bool names_mmproj(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name.ends_with(".gguf") && name.find("mmproj") != name.npos;
}

// The first file beside `path`, by name, that is the vision half of a model of this size; empty where there is none.
fs::path vision_beside(const fs::path& path, int64_t hidden) {
  std::vector<fs::path> candidates;
  std::error_code error;
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (names_mmproj(it->path().filename().string()) && it->path().filename() != path.filename()) {
      candidates.push_back(it->path());
    }
  }
  std::sort(candidates.begin(), candidates.end());
  for (const fs::path& candidate : candidates) {
    const auto file = MappedFile::open(candidate);
    if (!is_gguf(file->bytes())) continue;
    const Gguf gguf = parse_gguf(file->bytes(), candidate.string());
    const auto kind = gguf.string("clip.vision.projector_type", gguf.string("clip.projector_type", ""));
    if (kind == "gemma4v" && gguf.integer("clip.vision.projection_dim", 0) == hidden) return candidate;
  }
  return {};
}

// Adds the vision tower of a Hugging Face directory, and what its config.json says of it.
void add_vision_from_directory(Checkpoint& checkpoint, const fs::path& directory) {
  Checkpoint other = open_safetensors_directory(directory);
  const json theirs = parse_strict_json(other.config, (directory / "config.json").string());
  json ours = read_json<json>(checkpoint.config);
  if (!theirs.is_object() || !theirs.contains("vision_config") || !theirs["vision_config"].is_object()) {
    throw Error(directory.string() + ": its config.json has no vision_config");
  }
  for (const char* key : {"vision_config", "vision_soft_tokens_per_image"}) {
    if (theirs.contains(key)) ours[key] = theirs[key];
  }
  checkpoint.config = ours.dump(2);
  checkpoint.processor_config = other.processor_config;
  for (const std::string& name : other.order) {
    if (!is_vision_tensor(name)) continue;
    checkpoint.weights.emplace(name, std::move(other.weights.at(name)));
    checkpoint.order.push_back(name);
  }
  checkpoint.files.insert(checkpoint.files.end(), other.files.begin(), other.files.end());
  checkpoint.owned.insert(checkpoint.owned.end(), other.owned.begin(), other.owned.end());
}

void add_vision(Checkpoint& checkpoint, const Gguf& text, const fs::path& path) {
  const Gguf gguf = add_file(checkpoint, MappedFile::open(path));
  if (!is_vision_gguf(gguf)) throw Error(path.string() + " is not the vision half (mmproj) of a model");
  checkpoint.config = config_from_gguf(text, &gguf);
  for (const GgufTensor& tensor : gguf.tensors) add_tensor(checkpoint, gguf, tensor, true);
}

}  // namespace

Checkpoint open_gguf(std::shared_ptr<const MappedFile> file, const fs::path& vision) {
  const fs::path path = file->path();
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.kind = "gguf";
  Gguf text = add_file(checkpoint, std::move(file));
  if (is_vision_gguf(text)) {
    throw Error(path.string() + " is the vision half of a model (mmproj); open the text model's file");
  }
  const std::vector<fs::path> shards = shard_paths(path, text);
  for (size_t i = 0; i < shards.size(); ++i) {
    const Gguf more = add_file(checkpoint, MappedFile::open(shards[i]));
    if (more.integer("split.no", -1) != static_cast<int64_t>(i) + 1) {
      throw Error(more.what + " is not part " + std::to_string(i + 2) + " of the model (its split.no says otherwise)");
    }
    text.tensors.insert(text.tensors.end(), more.tensors.begin(), more.tensors.end());
  }
  checkpoint.config = config_from_gguf(text, nullptr);
  checkpoint.generation_config = generation_config_from_gguf(text);
  checkpoint.tokenizer = tokenizer_from_gguf(text);
  if (text.find("tokenizer.chat_template")) checkpoint.chat_template = text.string("tokenizer.chat_template");
  if (!checkpoint.chat_template.empty()) checkpoint.chat_template_source = text.what;
  add_text(checkpoint, text);
  std::error_code ignored;
  if (!vision.empty() && fs::is_directory(vision, ignored)) {
    add_vision_from_directory(checkpoint, vision);
  } else {
    const fs::path half = vision.empty() ? vision_beside(path, text.integer("gemma4.embedding_length")) : vision;
    if (!half.empty()) add_vision(checkpoint, text, half);
  }
  return checkpoint;
}

}  // namespace gemma4
