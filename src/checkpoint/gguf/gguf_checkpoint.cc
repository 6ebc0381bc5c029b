#include "checkpoint/gguf/gguf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "base/check.h"
#include "base/json.h"
#include "base/json_text.h"
#include "base/threads.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_config.h"
#include "checkpoint/names.h"
#include "checkpoint/recognise.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kPatchEmbedding = "v.patch_embd.weight";
constexpr const char* kScaleSuffix = ".scale";
constexpr const char* kInputScaleSuffix = ".input_scale";

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

// The factor of an NVFP4 matrix: "blk.0.ffn_up.scale" of "blk.0.ffn_up.weight"; 1 where there is none.
float scale_beside(const Gguf& gguf, const GgufTensor& tensor) {
  const std::string stem = tensor.name.substr(0, tensor.name.rfind('.'));
  const GgufTensor* scale = gguf.tensor(stem + kScaleSuffix);
  if (scale == nullptr) return 1;
  if (scale->format != Format::kF32 || scale->data.size() != sizeof(float)) {
    throw Error(gguf.what + ": tensor " + printable(scale->name) + " is not one F32 number");
  }
  float value;
  std::memcpy(&value, scale->data.data(), sizeof value);
  return value;
}

// An int8 matrix with the same values (quant/codebook.h). It is a copy, which the checkpoint keeps.
Weight from_codebook(Checkpoint& checkpoint, const Gguf& gguf, const GgufTensor& tensor) {
  const CodebookType& type = *tensor.codebook;
  Weight weight;
  weight.shape = tensor.shape;
  Matrix& m = weight.matrix;
  m.format = Format::kInt8;
  m.cols = tensor.shape.back();
  m.rows = static_cast<int64_t>(tensor.data.size()) / type.block_bytes * type.block_cols / m.cols;
  m.group = type.group;
  const int64_t groups = m.cols / m.group;
  const std::shared_ptr<int8_t[]> codes(new int8_t[static_cast<size_t>(m.rows * m.cols)]);
  const std::shared_ptr<float[]> scales(new float[static_cast<size_t>(m.rows * groups)]);
  checkpoint.owned.push_back(codes);
  checkpoint.owned.push_back(scales);
  const float factor = scale_beside(gguf, tensor);
  const auto* blocks = reinterpret_cast<const uint8_t*>(tensor.data.data());
  ThreadPool pool;
  pool.parallel_for(m.rows * m.cols / type.block_cols, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* scale = scales.get() + i * (type.block_cols / type.group);
      type.unpack(blocks + i * type.block_bytes, codes.get() + i * type.block_cols, scale);
      for (int g = 0; g < type.block_cols / type.group; ++g) scale[g] *= factor;
    }
  });
  m.codes = Tensor(codes.get(), DType::kI8, {m.rows, m.cols});
  m.scale = Tensor(scales.get(), DType::kF32, {m.rows, groups});
  return weight;
}

// The bytes of the file as a matrix of the file's format.
void view_bytes(Weight& weight, Format format) {
  Matrix& m = weight.matrix;
  m.format = format;
  m.cols = weight.shape.back();
  m.rows = 1;
  for (size_t i = 0; i + 1 < weight.shape.size(); ++i) m.rows *= weight.shape[i];
  const int64_t units = is_ggml_block(m.format) ? row_bytes(m) : m.cols;
  m.codes = Tensor(m.codes.data, dtype_of(m.format), {m.rows, units});
}

void add_tensor(Checkpoint& checkpoint, const Gguf& gguf, const GgufTensor& tensor, bool vision) {
  const std::string whose = gguf.what + ": tensor " + printable(tensor.name);
  const auto name = from_gguf_name(tensor.name);
  if (!name || is_vision_tensor(*name) != vision) {
    throw Error(whose + " is not one that the " + (vision ? "vision" : "text") + " half of Gemma 4 has");
  }
  Weight weight;
  if (tensor.codebook != nullptr) {
    weight = from_codebook(checkpoint, gguf, tensor);
  } else if (tensor.name == kPatchEmbedding) {
    weight = patch_embedding(checkpoint, tensor, whose);
    view_bytes(weight, tensor.format);
  } else {
    weight.shape = tensor.shape;
    weight.matrix.codes.data = const_cast<std::byte*>(tensor.data.data());
    view_bytes(weight, tensor.format);
  }
  weight.bytes = tensor.data.size();
  if (!checkpoint.weights.emplace(*name, std::move(weight)).second) throw Error(whose + " appears twice");
  checkpoint.order.push_back(*name);
}

// "X.scale" is read with an NVFP4 matrix X.weight; "X.input_scale" is for kernels that quantise their inputs.
bool is_factor(const Gguf& gguf, const GgufTensor& tensor) {
  for (const char* suffix : {kScaleSuffix, kInputScaleSuffix}) {
    if (!tensor.name.ends_with(suffix)) continue;
    const GgufTensor* matrix = gguf.tensor(tensor.name.substr(0, tensor.name.size() - std::strlen(suffix)) + ".weight");
    if (matrix != nullptr && matrix->codebook != nullptr && matrix->codebook->name == "NVFP4") return true;
  }
  return false;
}

void add_text(Checkpoint& checkpoint, const Gguf& gguf) {
  const bool both = holds_vision(gguf);
  for (const GgufTensor& tensor : gguf.tensors) {
    const bool vision = both && (tensor.name.starts_with("v.") || tensor.name.starts_with("mm."));
    if (tensor.name != kRopeFreqs && !is_factor(gguf, tensor)) add_tensor(checkpoint, gguf, tensor, vision);
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

// The config of a file that holds both halves.
std::string with_vision_fields(const std::string& config, const Gguf& gguf) {
  json whole = read_json<json>(config);
  whole.update(read_json<json>(vision_config_from_gguf(gguf, whole["text_config"]["hidden_size"].get<int64_t>())));
  return whole.dump(2);
}

}  // namespace

bool names_mmproj(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name.ends_with(".gguf") && name.find("mmproj") != name.npos;
}

Checkpoint open_gguf(std::shared_ptr<const MappedFile> file) {
  const fs::path path = file->path();
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.kind = "gguf";
  Gguf text = add_file(checkpoint, std::move(file));
  if (is_vision_gguf(text)) {
    throw Error(path.string() + " is the vision half of a model (mmproj); open the text model's file");
  }
  refuse_other_ggufs(text);
  const std::vector<fs::path> shards = shard_paths(path, text);
  for (size_t i = 0; i < shards.size(); ++i) {
    const Gguf more = add_file(checkpoint, MappedFile::open(shards[i]));
    if (more.integer("split.no", -1) != static_cast<int64_t>(i) + 1) {
      throw Error(more.what + " is not part " + std::to_string(i + 2) + " of the model (its split.no says otherwise)");
    }
    text.tensors.insert(text.tensors.end(), more.tensors.begin(), more.tensors.end());
  }
  checkpoint.config = config_from_gguf(text);
  if (holds_vision(text)) checkpoint.config = with_vision_fields(checkpoint.config, text);
  checkpoint.generation_config = generation_config_from_gguf(text);
  checkpoint.tokenizer = tokenizer_from_gguf(text);
  if (text.find("tokenizer.chat_template")) checkpoint.chat_template = text.string("tokenizer.chat_template");
  if (!checkpoint.chat_template.empty()) checkpoint.chat_template_source = text.what;
  add_text(checkpoint, text);
  return checkpoint;
}

fs::path mmproj_beside(const Checkpoint& checkpoint) {
  const json config = read_json<json>(checkpoint.config);
  return vision_beside(checkpoint.path, config.at("text_config").at("hidden_size").get<int64_t>());
}

Checkpoint open_mmproj(const fs::path& path, int64_t hidden) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.kind = "gguf";
  std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  refuse_lfs_pointer(file->bytes(), path.string());
  const Gguf gguf = add_file(checkpoint, std::move(file));
  if (!is_vision_gguf(gguf)) throw Error(path.string() + " is not the vision half (mmproj) of a model");
  checkpoint.config = vision_config_from_gguf(gguf, hidden);
  for (const GgufTensor& tensor : gguf.tensors) add_tensor(checkpoint, gguf, tensor, true);
  return checkpoint;
}

}  // namespace gemma4
