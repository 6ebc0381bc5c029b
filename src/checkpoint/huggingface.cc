#include "checkpoint/huggingface.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "base/check.h"
#include "base/json_text.h"
#include "checkpoint/names.h"
#include "checkpoint/packed_weights.h"
#include "checkpoint/recognise.h"
#include "checkpoint/torchao.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr uint64_t kTextMax = 1'000'000'000;  // bytes of a JSON file beside the weights; Gemma's tokenizer has 33 MB

std::string read_text(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) throw Error("cannot read " + path.string() + ": it is not a regular file");
  const uint64_t size = fs::file_size(path, error);
  if (!error && size > kTextMax) throw Error(path.string() + ": too large for a JSON file");
  return read_file(path);
}

std::string read_if_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored) ? read_text(path) : std::string();
}

// The chat template of a tokenizer_config.json or chat_template.json: one text, or a list of named ones.
std::string template_of(const std::string& text, const std::string& what) {
  if (text.empty()) return "";
  const json config = parse_strict_json(text, what);
  const json found = config.is_object() ? config.value("chat_template", json()) : json();
  if (found.is_null()) return "";
  if (found.is_string()) return found;
  if (!found.is_array()) throw Error(what + ": its chat_template is neither a text nor a list of named ones");
  for (const json& one : found) {
    if (one.is_object() && one.value("name", json()) == "default" && one.contains("template") &&
        one["template"].is_string()) {
      return one["template"];
    }
  }
  throw Error(what + ": its list of chat templates has none with the name 'default'");
}

void read_chat_template(Checkpoint& checkpoint, const fs::path& directory) {
  checkpoint.chat_template = read_if_there(directory / "chat_template.jinja");
  checkpoint.chat_template_source = (directory / "chat_template.jinja").string();
  for (const char* file : {"chat_template.json", "tokenizer_config.json"}) {
    if (!checkpoint.chat_template.empty()) return;
    const fs::path path = directory / file;
    checkpoint.chat_template = template_of(read_if_there(path), path.string());
    checkpoint.chat_template_source = path.string();
  }
  if (checkpoint.chat_template.empty()) checkpoint.chat_template_source.clear();
}

// The quantization_config that AutoGPTQ, AutoAWQ and AutoRound also, and in older files only, write into a file of its
// own; empty where there is none. Those of the first two need not say whose they are.
std::string quantisation_beside(const fs::path& directory) {
  const std::pair<const char*, const char*> files[] = {
      {"quantize_config.json", "gptq"}, {"quant_config.json", "awq"}, {"quantization_config.json", "auto-round"}};
  for (const auto& [file, method] : files) {
    const std::string text = read_if_there(directory / file);
    if (text.empty()) continue;
    json config = parse_strict_json(text, (directory / file).string());
    if (!config.is_object()) throw Error((directory / file).string() + " is not a JSON object");
    if (!config.contains("quant_method")) config["quant_method"] = method;
    return config.dump();
  }
  return "";
}

std::string listed(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Adds all tensors of a file but those of packed weights, which `packed` takes.
void add_file(Checkpoint& checkpoint, const Safetensors& file, const std::string& what, PackedWeights& packed) {
  for (const SafetensorsEntry& entry : file.entries) {
    if (!packed.take(entry, file)) add_plain(checkpoint, from_huggingface_name(entry.name), entry, file, what);
  }
}

Safetensors map_file(Checkpoint& checkpoint, const fs::path& path) {
  checkpoint.files.push_back(MappedFile::open(path));
  refuse_lfs_pointer(checkpoint.files.back()->bytes(), path.string());
  return parse_safetensors(checkpoint.files.back()->bytes(), path.string());
}

// Shard file -> the tensors that the index says it holds.
std::map<std::string, std::set<std::string>> read_index(const fs::path& path) {
  const json index = parse_strict_json(read_text(path), path.string());
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw Error(path.string() + " has no weight_map");
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, file] : index["weight_map"].items()) {
    const std::string shard = file.is_string() ? file.get<std::string>() : "";
    // A shard lies in the directory itself: the index must not reach outside it.
    if (shard.empty() || shard == "." || shard == ".." || shard.find_first_of(std::string("/\\\0", 3)) != shard.npos) {
      throw Error(path.string() + ": tensor " + printable(name) + " names the shard '" + printable(shard) +
                  "', which is not a file of this directory");
    }
    shards[shard].insert(name);
  }
  if (shards.empty()) throw Error(path.string() + ": its weight_map is empty");
  return shards;
}

// A shard holds the tensors `names` that the index lists for it, and no others.
void check_shard(const Safetensors& file, std::set<std::string> names, const fs::path& path) {
  for (const SafetensorsEntry& entry : file.entries) {
    if (names.erase(entry.name) == 0) {
      throw Error(path.string() + " holds the tensor " + printable(entry.name) +
                  ", which the index does not list in it");
    }
  }
  if (!names.empty()) {
    throw Error(path.string() + " lacks the tensor " + printable(*names.begin()) + " that the index promises");
  }
}

void add_shards(Checkpoint& checkpoint, const fs::path& index, PackedWeights& packed) {
  const fs::path directory = index.parent_path();
  const auto shards = read_index(index);
  std::vector<Safetensors> torchao;  // read together: the tensors of one weight may lie in two of them
  for (const auto& [shard, names] : shards) {
    const fs::path path = directory / shard;
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      throw Error(directory.string() + " lacks " + printable(shard) + ", which " + index.filename().string() +
                  " lists: the download is not complete");
    }
    Safetensors file = map_file(checkpoint, path);
    check_shard(file, names, path);
    if (is_torchao(file)) {
      torchao.push_back(std::move(file));
    } else {
      add_file(checkpoint, file, path.string(), packed);
    }
  }
  if (torchao.empty()) return;
  if (torchao.size() != shards.size()) {
    throw Error(directory.string() + " mixes shards of torchao with others");
  }
  checkpoint.kind = "torchao";
  add_torchao(checkpoint, torchao, directory.string());
}

// The file of the weights, or the index of several. The single file first, as transformers does: beside one, an index
// is left from before it was made whole. AutoGPTQ names the file after its settings: gptq_model-4bit-128g.safetensors.
fs::path weights_of(const fs::path& directory) {
  std::error_code error;
  for (const char* name : {kSingle, kIndex}) {
    if (fs::exists(directory / name, error)) return directory / name;
  }
  std::vector<std::string> files, indices;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with("gptq_model")) continue;
    if (name.ends_with(".safetensors.index.json")) indices.push_back(name);
    if (name.ends_with(".safetensors")) files.push_back(name);
  }
  const auto& found = indices.empty() ? files : indices;
  if (found.size() == 1) return directory / found[0];
  if (found.size() > 1) {
    const auto first = std::ranges::min(found), last = std::ranges::max(found);
    throw Error(directory.string() + " holds several files of weights (" + printable(first) + ", " + printable(last) +
                "): leave the one to open");
  }
  const bool pickled = fs::exists(directory / "pytorch_model.bin", error) ||
                       fs::exists(directory / "pytorch_model.bin.index.json", error);
  throw Error(directory.string() + " holds neither " + kSingle + " nor " + kIndex +
              (pickled ? "; its pytorch_model.bin is not read: save it anew with safe_serialization=True" : ""));
}

void add_single(Checkpoint& checkpoint, const fs::path& path, PackedWeights& packed) {
  const Safetensors file = map_file(checkpoint, path);
  if (is_torchao(file)) {
    checkpoint.kind = "torchao";
    add_torchao(checkpoint, {&file, 1}, path.string());
  } else {
    add_file(checkpoint, file, path.string(), packed);
  }
}

}  // namespace

void read_side_files(Checkpoint& checkpoint, const fs::path& directory) {
  checkpoint.config = read_if_there(directory / "config.json");
  checkpoint.generation_config = read_if_there(directory / "generation_config.json");
  checkpoint.processor_config = read_if_there(directory / "processor_config.json");
  checkpoint.tokenizer.json = read_if_there(directory / "tokenizer.json");
  read_chat_template(checkpoint, directory);
}

Tensor view_of(Checkpoint& checkpoint, const SafetensorsEntry& entry, const Safetensors& file, int64_t rows,
               int64_t cols) {
  const std::byte* data = file.data.data() + entry.begin;
  const size_t size = entry.end - entry.begin;
  if (reinterpret_cast<uintptr_t>(data) % dtype_size(entry.dtype) != 0) {
    // Writers that neither sort by type nor pad produce unaligned tensors. An unaligned load is undefined, so copy.
    const std::shared_ptr<std::byte[]> copy(new std::byte[size]);
    std::memcpy(copy.get(), data, size);
    checkpoint.owned.push_back(copy);
    data = copy.get();
  }
  return Tensor(const_cast<std::byte*>(data), entry.dtype, {rows, cols});
}

void add_plain(Checkpoint& checkpoint, const std::string& name, const SafetensorsEntry& entry, const Safetensors& file,
               const std::string& what) {
  const std::string whose = what + ": tensor " + printable(entry.name);
  if (!is_model_tensor(name)) throw Error(whose + " is not one that Gemma 4 has (text or vision)");
  if (checkpoint.weights.contains(name)) throw Error(whose + " appears twice (as " + name + ")");
  Weight weight;
  switch (entry.dtype) {
    case DType::kF32:
      weight.matrix.format = Format::kF32;
      break;
    case DType::kBF16:
      weight.matrix.format = Format::kBF16;
      break;
    case DType::kF16:
      weight.matrix.format = Format::kF16;
      break;
    default:
      throw Error(whose + " has the type " + dtype_name(entry.dtype) + "; a weight is BF16, F16 or F32");
  }
  if (entry.end == entry.begin) throw Error(whose + " has the shape " + listed(entry.shape) + " and holds no elements");
  const int64_t cols = entry.shape.empty() ? 1 : entry.shape.back();
  const int64_t rows = static_cast<int64_t>((entry.end - entry.begin) / dtype_size(entry.dtype)) / cols;
  weight.matrix.rows = rows;
  weight.matrix.cols = cols;
  weight.matrix.codes = view_of(checkpoint, entry, file, rows, cols);
  weight.shape = entry.shape;
  weight.bytes = entry.end - entry.begin;
  checkpoint.weights[name] = std::move(weight);
  checkpoint.order.push_back(name);
}

Checkpoint open_safetensors_directory(const fs::path& directory) {
  Checkpoint checkpoint;
  checkpoint.path = directory;
  checkpoint.kind = "huggingface";
  read_side_files(checkpoint, directory);
  if (checkpoint.config.empty()) refuse_directory(directory);
  refuse_other_models(checkpoint.config, directory.string());
  PackedWeights packed(
      checkpoint.config, [&] { return quantisation_beside(directory); }, directory.string());
  const fs::path weights = weights_of(directory);
  if (weights.extension() == ".json") {
    add_shards(checkpoint, weights, packed);
  } else {
    add_single(checkpoint, weights, packed);
  }
  if (packed.kind()[0] != '\0') checkpoint.kind = packed.kind();
  packed.add_to(checkpoint);
  return checkpoint;
}

Checkpoint open_safetensors_file(const fs::path& path) {
  Checkpoint checkpoint;
  checkpoint.path = path;
  checkpoint.kind = "huggingface";
  read_side_files(checkpoint, path.parent_path());
  PackedWeights packed(
      checkpoint.config, [&] { return quantisation_beside(path.parent_path()); }, path.string());
  add_single(checkpoint, path, packed);
  if (packed.kind()[0] != '\0') checkpoint.kind = packed.kind();
  packed.add_to(checkpoint);
  return checkpoint;
}

}  // namespace gemma4
