#include "checkpoint/program_file.h"

#include <algorithm>
#include <cctype>
#include <cstring>

#include "base/bytes.h"
#include "base/check.h"
#include "base/json_text.h"
#include "base/mapped_file.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/gguf_config.h"
#include "checkpoint/gguf/gguf_writer.h"
#include "checkpoint/huggingface.h"
#include "checkpoint/names.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kVersion = 1;
constexpr const char* kWeights = "program.weights";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerGguf = "tokenizer.gguf";
constexpr uint64_t kJsonMax = 64'000'000;  // bytes; at 31B's 60 layers program.json has 0.3 MB
constexpr uint64_t kAlign = 64;            // a weight is aligned to a cache line
constexpr int64_t kDimMax = INT32_MAX;     // of a shape
constexpr int kRankMax = 4;

std::string text_of(const json& object, const char* key, const std::string& what) {
  if (!object.contains(key) || !object[key].is_string()) throw Error(what + ": " + key + " is not a string");
  return object[key].get<std::string>();
}

int64_t whole(const json& object, const char* key, int64_t most, const std::string& what) {
  if (!object.contains(key) || !object[key].is_number_unsigned() ||
      object[key].get<uint64_t>() > static_cast<uint64_t>(most)) {
    throw Error(what + ": " + key + " is not a whole number of at most " + std::to_string(most));
  }
  return object[key].get<int64_t>();
}

Format format_named(const std::string& name, const std::string& what) {
  for (int i = 1; i < static_cast<int>(std::size(kFormats)); ++i) {
    if (kFormats[i].name == name) return static_cast<Format>(i);
  }
  throw Error(what + " has the format " + printable(name) + ", which is not known");
}

std::string quoted(const std::string& path) {
  const auto plain = [](char c) { return isalnum(static_cast<unsigned char>(c)) || std::strchr("/._-+=:,@", c); };
  if (!path.empty() && std::all_of(path.begin(), path.end(), plain)) return path;
  std::string text = "'";
  for (char c : path) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

ProgramHeader read_header(const json& file, const fs::path& directory, const std::string& what) {
  ProgramHeader header;
  if (!file.is_object() || text_of(file, "format", what) != "gemma4 program") {
    throw Error(what + " is not the program.json of an exported program");
  }
  header.backend = printable(text_of(file, "backend", what));
  header.layout = printable(text_of(file, "layout", what));
  header.source = text_of(file, "source", what);
  header.vision = text_of(file, "vision", what);
  if (file.contains("quant_recipe")) header.recipe = text_of(file, "quant_recipe", what);
  if (file.contains("hqq")) header.hqq = text_of(file, "hqq", what);
  if (file.contains("image_budget")) header.image_budget = whole(file, "image_budget", kDimMax, what);
  if (!file.contains("constants") || !file["constants"].is_object()) throw Error(what + " has no constants");
  for (const auto& [name, value] : file["constants"].items()) {
    if (value.is_boolean()) {
      header.constants.emplace_back(name, value.get<bool>());
    } else {
      header.constants.emplace_back(name, whole(file["constants"], name.c_str(), kDimMax, what));
    }
  }
  const int64_t version = whole(file, "version", INT64_MAX, what);
  if (version != kVersion) {
    throw Error(directory.string() + " is a program of version " + std::to_string(version) +
                " and this gemma4 runs version " + std::to_string(kVersion) +
                "; make it anew: " + export_command_of(header, header.backend, directory));
  }
  return header;
}

// Converts an entry in the list of weights to weights of the checkpoint.
class WeightReader {
 public:
  WeightReader(Checkpoint& checkpoint, ProgramFile& program, std::shared_ptr<const MappedFile> file, std::string what)
      : checkpoint_(checkpoint), program_(program), file_(std::move(file)), what_(std::move(what)) {}

  void read(const json& entry) {
    if (!entry.is_object() || !entry.contains("parts") || !entry["parts"].is_array() || entry["parts"].empty()) {
      throw Error(what_ + ": an entry of its weights has no parts");
    }
    PrepackedWeight stored;
    std::vector<std::string> names;
    for (const json& tensor : entry["parts"]) names.push_back(add_tensor(tensor, stored));
    const std::string whose = what_ + ": weight " + names.front();
    stored.format = format_named(text_of(entry, "format", whose), whose);
    if (entry.contains("group")) stored.group = static_cast<int>(whole(entry, "group", kDimMax, whose));
    stored.bytes = take(entry, whose);
    stored.hold = file_;
    if (entry.contains("layout")) {
      stored.layout = text_of(entry, "layout", whose);
      describe(names, stored);
      program_.matrices[names.front()] = {names, std::move(stored)};
    } else {
      add_vector(names, stored, whose);
    }
  }

 private:
  // Adds a weight with this name and shape, and its rows and columns to `stored`.
  std::string add_tensor(const json& tensor, PrepackedWeight& stored) {
    if (!tensor.is_object() || !tensor.contains("shape") || !tensor["shape"].is_array()) {
      throw Error(what_ + ": a part of a weight has no shape");
    }
    const std::string name = text_of(tensor, "name", what_), whose = what_ + ": weight " + printable(name);
    if (!is_model_tensor(name)) throw Error(whose + " is not one that Gemma 4 has (text or vision)");
    if (checkpoint_.weights.contains(name)) throw Error(whose + " appears twice");
    const json& shape = tensor["shape"];
    if (shape.empty() || shape.size() > kRankMax) throw Error(whose + ": its shape is not a list of 1 to 4 sizes");
    Weight weight;
    for (const json& dim : shape) {
      if (!dim.is_number_unsigned() || dim.get<uint64_t>() < 1 || dim.get<uint64_t>() > kDimMax) {
        throw Error(whose + ": a size in its shape is not a whole number from 1 to " + std::to_string(kDimMax));
      }
      weight.shape.push_back(dim.get<int64_t>());
    }
    const int64_t cols = weight.shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < weight.shape.size(); ++i) rows = checked_mul(rows, weight.shape[i], whose);
    if (stored.rows > 0 && stored.cols != cols) throw Error(whose + " is not as wide as what it is stacked with");
    stored.rows = checked_add(stored.rows, rows, whose);
    stored.cols = cols;
    weight.matrix.rows = rows, weight.matrix.cols = cols;
    checkpoint_.weights[name] = std::move(weight);
    checkpoint_.order.push_back(name);
    return name;
  }

  // The bytes of the entry. They must be inside the file, after those of earlier entries.
  std::span<const std::byte> take(const json& entry, const std::string& whose) {
    const auto all = file_->bytes();
    const auto offset = static_cast<uint64_t>(whole(entry, "offset", INT64_MAX, whose));
    const auto size = static_cast<uint64_t>(whole(entry, "bytes", INT64_MAX, whose));
    if (offset % kAlign != 0 || offset < end_ || offset > all.size() || size > all.size() - offset) {
      throw Error(whose + " claims " + std::to_string(size) + " bytes at offset " + std::to_string(offset) + " of " +
                  std::to_string(all.size()) + ", which are not its own");
    }
    end_ = offset + size;
    return all.subspan(offset, size);
  }

  void describe(const std::vector<std::string>& names, const PrepackedWeight& stored) {
    for (const std::string& name : names) {
      Weight& weight = checkpoint_.weights[name];
      weight.matrix.format = stored.format;
      weight.matrix.group = stored.group;
      const double share = static_cast<double>(weight.matrix.rows) / static_cast<double>(stored.rows);
      weight.bytes = static_cast<uint64_t>(share * static_cast<double>(stored.bytes.size()));
    }
  }

  void add_vector(const std::vector<std::string>& names, const PrepackedWeight& stored, const std::string& whose) {
    const int64_t bytes = checked_mul(checked_mul(stored.rows, stored.cols, whose), 4, whose);
    if (names.size() != 1 || stored.format != Format::kF32 || static_cast<uint64_t>(bytes) != stored.bytes.size()) {
      throw Error(whose + " has no layout and is not float32 of its shape either");
    }
    Weight& weight = checkpoint_.weights[names.front()];
    weight.matrix.format = Format::kF32;
    weight.matrix.codes = Tensor(const_cast<std::byte*>(stored.bytes.data()), DType::kF32, {stored.rows, stored.cols});
    weight.bytes = stored.bytes.size();
  }

  Checkpoint& checkpoint_;
  ProgramFile& program_;
  std::shared_ptr<const MappedFile> file_;
  std::string what_;
  uint64_t end_ = 0;
};

void read_weights(Checkpoint& checkpoint, ProgramFile& program, const json& file, const fs::path& directory,
                  const std::string& what) {
  if (!file.contains("weights") || !file["weights"].is_array()) throw Error(what + " has no list of weights");
  const auto mapped = MappedFile::open(directory / kWeights);
  const int64_t size = whole(file, "weights_bytes", INT64_MAX, what);
  if (static_cast<uint64_t>(size) != mapped->bytes().size()) {
    throw Error((directory / kWeights).string() + " holds " + std::to_string(mapped->bytes().size()) +
                " bytes and program.json says " + std::to_string(size) + "; it is cut short or of another program");
  }
  checkpoint.files.push_back(mapped);
  WeightReader reader(checkpoint, program, mapped, what);
  for (const json& entry : file["weights"]) reader.read(entry);
}

// The tokenizer of a GGUF source is arrays. The program gets a GGUF file that holds only these.
void write_tokenizer(const TokenizerData& data, const fs::path& directory, Overwrite overwrite) {
  std::error_code ignored;
  for (const char* earlier : {kTokenizer, kTokenizerGguf}) fs::remove(directory / earlier, ignored);
  if (!data.json.empty()) return write_file(directory / kTokenizer, data.json, overwrite);
  GgufWriter out("gemma4");
  out.add_string("tokenizer.ggml.model", "gemma4");
  out.add_strings("tokenizer.ggml.tokens", data.tokens);
  if (!data.scores.empty()) out.add_f32s("tokenizer.ggml.scores", data.scores);
  out.add_i32s("tokenizer.ggml.token_type", data.types);
  out.add_strings("tokenizer.ggml.merges", data.merges);
  out.begin(directory / kTokenizerGguf, overwrite);
  out.commit();
}

}  // namespace

int64_t ProgramHeader::constant(const std::string& name, int64_t fallback) const {
  for (const auto& [key, value] : constants) {
    if (key == name) return value;
  }
  return fallback;
}

std::string export_command_of(const ProgramHeader& header, const std::string& backend, const fs::path& output) {
  std::string command = "gemma4 export --format program --model-dir " + quoted(header.source) + " --output-dir " +
                        quoted(output.string()) + " --backend " + quoted(backend);
  if (!header.vision.empty()) command += " --vision " + quoted(header.vision);
  if (!header.recipe.empty()) command += " --quant-recipe " + quoted(header.recipe);
  if (!header.hqq.empty()) command += " --hqq " + quoted(header.hqq);
  if (header.image_budget > 0) command += " --max-vision-soft-tokens " + std::to_string(header.image_budget);
  if (const int64_t n = header.constant("get_max_seq_len", 0)) command += " --max-seq-len " + std::to_string(n);
  if (header.constant("get_max_vision_soft_tokens", 0) == 0) command += " --no-vision";
  return command;
}

Checkpoint open_program(const fs::path& directory) {
  const fs::path path = directory / kProgramFile;
  const auto text = MappedFile::open(path);
  if (text->bytes().size() > kJsonMax) throw Error(path.string() + ": too large for the list of a program");
  const json file =
      parse_strict_json({reinterpret_cast<const char*>(text->bytes().data()), text->bytes().size()}, path.string());
  Checkpoint checkpoint;
  checkpoint.path = directory;
  checkpoint.kind = "program";
  auto program = std::make_shared<ProgramFile>();
  program->header = read_header(file, directory, path.string());
  read_weights(checkpoint, *program, file, directory, path.string());
  read_side_files(checkpoint, directory);
  if (checkpoint.config.empty()) throw Error(directory.string() + " holds no config.json (or an empty one)");
  std::error_code ignored;
  if (checkpoint.tokenizer.json.empty() && fs::exists(directory / kTokenizerGguf, ignored)) {
    const auto mapped = MappedFile::open(directory / kTokenizerGguf);
    checkpoint.tokenizer = tokenizer_from_gguf(parse_gguf(mapped->bytes(), mapped->path().string()));
  }
  checkpoint.program = std::move(program);
  return checkpoint;
}

struct ProgramWriter::List {
  nlohmann::ordered_json entries = nlohmann::ordered_json::array();
};

namespace {

// Even with --force: config.json of another checkpoint stays.
const fs::path& checked(const fs::path& directory) {
  std::error_code error;
  if (fs::exists(directory / "config.json", error) && !fs::exists(directory / kProgramFile, error)) {
    throw Error("the output " + directory.string() + " already holds a checkpoint; choose another directory");
  }
  return directory;
}

nlohmann::ordered_json list_of(const std::vector<ProgramWriter::Tensor>& tensors) {
  auto list = nlohmann::ordered_json::array();
  for (const auto& tensor : tensors) list.push_back({{"name", tensor.name}, {"shape", tensor.shape}});
  return list;
}

}  // namespace

ProgramWriter::ProgramWriter(const fs::path& directory, Overwrite overwrite)
    : directory_(checked(directory)),
      overwrite_(overwrite),
      lock_(directory, overwrite),
      file_(directory / kWeights, overwrite),
      list_(std::make_unique<List>()) {}
ProgramWriter::~ProgramWriter() = default;

void ProgramWriter::append(const void* data, size_t size) {
  const uint64_t begin = (bytes_ + kAlign - 1) / kAlign * kAlign;
  file_.write_at(begin, data, size);  // the gap reads as zeros
  bytes_ = begin + size;
}

void ProgramWriter::add(const std::vector<Tensor>& stacked, const PrepackedWeight& stored) {
  append(stored.bytes.data(), stored.bytes.size());
  nlohmann::ordered_json entry = {{"parts", list_of(stacked)}, {"format", info(stored.format).name}};
  if (stored.group > 0) entry["group"] = stored.group;
  entry["layout"] = stored.layout;
  entry["offset"] = bytes_ - stored.bytes.size();
  entry["bytes"] = stored.bytes.size();
  list_->entries.push_back(std::move(entry));
}

void ProgramWriter::add(const Tensor& vector, const std::vector<float>& values) {
  const size_t size = values.size() * sizeof(float);
  append(values.data(), size);
  list_->entries.push_back(
      {{"parts", list_of({vector})}, {"format", "f32"}, {"offset", bytes_ - size}, {"bytes", size}});
}

void ProgramWriter::commit(const ProgramHeader& header, const std::string& config, const Checkpoint& source) {
  nlohmann::ordered_json file = {{"format", "gemma4 program"}, {"version", kVersion},     {"backend", header.backend},
                                 {"layout", header.layout},    {"source", header.source}, {"vision", header.vision}};
  if (!header.recipe.empty()) file["quant_recipe"] = header.recipe;
  if (!header.hqq.empty()) file["hqq"] = header.hqq;
  if (header.image_budget > 0) file["image_budget"] = header.image_budget;
  file["constants"] = nlohmann::ordered_json::object();
  for (const auto& [name, value] : header.constants) {
    const bool flag = name.starts_with("use_") || name.starts_with("enable_");
    file["constants"][name] = flag ? nlohmann::ordered_json(value != 0) : nlohmann::ordered_json(value);
  }
  file["methods"] = read_json<nlohmann::ordered_json>(header.methods);
  file["weights_bytes"] = bytes_;
  file["weights"] = list_->entries;
  check_mapped_files();
  std::error_code ignored;
  fs::remove(directory_ / kProgramFile, ignored);  // of an earlier program with other weights
  file_.commit();
  write_file(directory_ / "config.json", config, overwrite_);
  write_tokenizer(source.tokenizer, directory_, overwrite_);
  const std::pair<const char*, const std::string*> small[] = {{"generation_config.json", &source.generation_config},
                                                              {"processor_config.json", &source.processor_config},
                                                              {"chat_template.jinja", &source.chat_template}};
  for (const auto& [name, text] : small) {
    if (text->empty()) {
      fs::remove(directory_ / name, ignored);
    } else {
      write_file(directory_ / name, *text, overwrite_);
    }
  }
  write_file(directory_ / kProgramFile, file.dump(1), overwrite_);
}

}  // namespace gemma4
