#include <algorithm>

#include "base/bf16.h"
#include "base/check.h"
#include "base/json_text.h"
#include "base/mapped_file.h"
#include "base/mutex.h"
#include "base/progress.h"
#include "checkpoint/mlx.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

// MLX names its modules as Hugging Face does, except for the position of "model.".
std::string mlx_name(const std::string& name) {
  constexpr std::string_view kText = "model.language_model.", kModel = "model.";
  const std::string theirs = to_huggingface_name(name);
  if (theirs.starts_with(kText)) return "language_model.model." + theirs.substr(kText.size());
  if (theirs.starts_with("lm_head.")) return "language_model." + theirs;
  return theirs.starts_with(kModel) ? theirs.substr(kModel.size()) : theirs;
}

// The matrices of the text model are quantised, as mlx-vlm does by default. The vision tower, and matrices that do not
// divide into groups, stay bf16.
bool is_quantised(const std::string& name, const Weight& weight, const MlxQuantization& q) {
  return weight.shape.size() == 2 && !is_vision_tensor(name) && weight.matrix.cols % q.group == 0;
}

void describe(std::vector<SafetensorsEntry>& entries, const std::string& name, const Weight& weight,
              const MlxQuantization& q) {
  const std::string theirs = mlx_name(name);
  if (!is_quantised(name, weight, q)) {
    entries.push_back({theirs, DType::kBF16, weight.shape});
    return;
  }
  const int64_t rows = weight.matrix.rows, cols = weight.matrix.cols;
  const std::string stem = theirs.substr(0, theirs.rfind('.'));
  entries.push_back({theirs, DType::kU32, {rows, cols * q.bits / 32}});
  entries.push_back({stem + ".scales", DType::kBF16, {rows, cols / q.group}});
  entries.push_back({stem + ".biases", DType::kBF16, {rows, cols / q.group}});
}

// A SafetensorsWriter that several threads write to.
class SharedWriter {
 public:
  explicit SharedWriter(SafetensorsWriter& out) : out_(out) {}

  template <typename T>
  void write_rows(const std::string& name, int64_t first, const std::vector<T>& values, int64_t row_size) {
    const MutexLock lock(mutex_);
    out_.write(name, static_cast<uint64_t>(first * row_size) * sizeof(T), values.data(), values.size() * sizeof(T));
  }

 private:
  Mutex mutex_;
  SafetensorsWriter& out_ GUARDED_BY(mutex_);
};

// Rows begin .. end-1 of one weight.
void write_stretch(SharedWriter& out, const std::string& name, const Weight& weight, const MlxQuantization& q,
                   int64_t begin, int64_t end) {
  const Matrix& m = weight.matrix;
  const std::string theirs = mlx_name(name), stem = theirs.substr(0, theirs.rfind('.'));
  const size_t rows = static_cast<size_t>(end - begin), cols = static_cast<size_t>(m.cols);
  std::vector<float> row(cols);
  if (!is_quantised(name, weight, q)) {
    std::vector<uint16_t> values(rows * cols);
    for (size_t r = 0; r < rows; ++r) {
      unpack_row(m, begin + static_cast<int64_t>(r), row.data());
      std::transform(row.begin(), row.end(), values.begin() + static_cast<int64_t>(r * cols), float_to_bf16);
    }
    return out.write_rows(theirs, begin, values, m.cols);
  }
  const size_t words = cols * static_cast<size_t>(q.bits) / 32, groups = cols / static_cast<size_t>(q.group);
  std::vector<uint32_t> codes(rows * words);
  std::vector<uint16_t> scales(rows * groups), biases(rows * groups);
  for (size_t r = 0; r < rows; ++r) {
    unpack_row(m, begin + static_cast<int64_t>(r), row.data());
    for (float& v : row) v = round_to_bf16(v);  // the type that MLX would load
    mlx_quantize_row(row.data(), m.cols, q, &codes[r * words], &scales[r * groups], &biases[r * groups]);
  }
  out.write_rows(theirs, begin, codes, static_cast<int64_t>(words));
  out.write_rows(stem + ".scales", begin, scales, static_cast<int64_t>(groups));
  out.write_rows(stem + ".biases", begin, biases, static_cast<int64_t>(groups));
}

// Even with --force: the source stays whole, and no index may name other weights than those that are written.
void check_output(const Checkpoint& source, const fs::path& output) {
  std::error_code ignored;
  if (fs::equivalent(source.path, output, ignored) || is_file_of(source, output / "model.safetensors")) {
    throw Error("the output " + output.string() + " is the model to be exported");
  }
  if (fs::exists(output / "model.safetensors.index.json", ignored)) {
    throw Error("the output " + output.string() + " holds a model in several files; choose another directory");
  }
}

}  // namespace

void export_mlx(const Checkpoint& checkpoint, const MlxQuantization& q, const fs::path& source,
                const fs::path& directory, ThreadPool& pool, Overwrite overwrite) {
  const bool known = (q.group == 32 || q.group == 64 || q.group == 128) && q.bits >= 2 && q.bits <= 8 && q.bits != 7;
  if (!known) throw Error("MLX quantises to 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128 columns");
  nlohmann::json config = parse_strict_json(checkpoint.config, "config.json");
  config.erase("quantization_config");
  config["quantization"] = {{"group_size", q.group}, {"bits", q.bits}, {"mode", "affine"}};
  check_output(checkpoint, directory);
  const OutputDirectory locked(directory, overwrite);
  std::vector<SafetensorsEntry> entries;
  for (const std::string& name : checkpoint.order) describe(entries, name, checkpoint.weights.at(name), q);
  SafetensorsWriter out(directory / "model.safetensors", entries, {{"format", "mlx"}}, overwrite);
  Progress progress("model.safetensors", out.data_bytes());
  SharedWriter shared(out);
  for (const std::string& name : checkpoint.order) {
    const Weight& weight = checkpoint.weights.at(name);
    const int64_t step = std::max<int64_t>(1, (4 << 20) / weight.matrix.cols);
    pool.parallel_for(weight.matrix.rows, std::min(step, (weight.matrix.rows + 15) / 16),
                      [&](int64_t begin, int64_t end) {
                        for (int64_t row = begin; row < end; row += step) {
                          write_stretch(shared, name, weight, q, row, std::min(end, row + step));
                        }
                      });
    progress.add(weight.bytes, name);
  }
  check_mapped_files();
  out.commit();
  write_file(directory / "config.json", config.dump(2), overwrite);
  for (const char* file :
       {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "processor_config.json",
        "preprocessor_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"}) {
    std::error_code ignored;
    if (fs::exists(source / file, ignored)) {
      write_file(directory / file, read_file(source / file), overwrite);
    } else {
      fs::remove(directory / file, ignored);  // of an earlier result
    }
  }
}

}  // namespace gemma4
