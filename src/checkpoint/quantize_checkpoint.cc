#include "checkpoint/quantize_checkpoint.h"

#include <algorithm>

#include "base/bf16.h"
#include "base/check.h"
#include "base/mapped_file.h"
#include "base/progress.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torchao.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "embed_tokens.weight";
constexpr const char* kSideFiles[] = {
    "config.json",       "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer.json",    "tokenizer_config.json",  "tokenizer.model",       "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",    "chat_template.json"};

// How one tensor is written.
struct Job {
  enum class Role { kPlain, kQuantized, kPositionTable };
  std::string name;      // the model's
  const Weight* source;  // lm_head.weight: the embedding's where the head is tied
  Role role = Role::kPlain;
  QuantConfig config;
};

bool is_element_type(Format format) {
  return format == Format::kF32 || format == Format::kF16 || format == Format::kBF16;
}

DType element_type(Format format) {
  return format == Format::kF32 ? DType::kF32 : format == Format::kF16 ? DType::kF16 : DType::kBF16;
}

std::vector<Job> plan(const Checkpoint& source, const Recipe& recipe) {
  if (source.find(kEmbedding) == nullptr) throw Error(source.path.string() + " lacks the tensor " + kEmbedding);
  std::vector<std::string> names = source.order;
  // ExecuTorch unties the head: embedding and head are quantised differently.
  if (source.find(kHead) == nullptr) names.push_back(kHead);
  sort_as_state_dict(names);
  std::vector<Job> jobs;
  for (const std::string& name : names) {
    const Weight* found = source.find(name);
    Job job{.name = name, .source = found ? found : source.find(kEmbedding)};
    const Matrix& matrix = job.source->matrix;
    if (!is_element_type(matrix.format)) {
      throw Error("tensor " + name + " of " + source.path.string() + " is " + std::string(info(matrix.format).name) +
                  " already; only bf16, f16 and f32 can be quantised");
    }
    if (name == kPositionTable) {
      job.role = Job::Role::kPositionTable;
      if (job.source->shape.size() != 3) throw Error("tensor " + name + " does not have three dimensions");
    } else if (const auto config = recipe.find(name); config && !is_buffer(name)) {
      if (job.source->shape.size() != 2) {
        throw Error("the recipe quantises " + name + ", which is not a matrix");
      }
      check_quantizable(*config, matrix.cols, name);
      job.role = Job::Role::kQuantized;
      job.config = *config;
    }
    jobs.push_back(job);
  }
  return jobs;
}

// Buffers keep their type and parameters become bf16, as in ExecuTorch's state dict.
DType plain_type(const Job& job) {
  return is_buffer(job.name) ? element_type(job.source->matrix.format) : DType::kBF16;
}

void describe(const Job& job, std::vector<SafetensorsEntry>& entries) {
  const int64_t rows = job.source->matrix.rows, cols = job.source->matrix.cols;
  const auto add = [&](const std::string& name, DType type, std::vector<int64_t> shape) {
    entries.push_back({name, type, std::move(shape)});
  };
  if (job.role == Job::Role::kPlain) return add(job.name, plain_type(job), job.source->shape);
  if (job.role == Job::Role::kPositionTable) {
    const auto& shape = job.source->shape;
    add(kPositionCodes, DType::kI8, shape);
    return add(kPositionScale, DType::kF32, {shape[0], shape[1], 1});
  }
  const int64_t groups = cols / (job.config.group == 0 ? cols : job.config.group);
  const std::string codes = torchao_tensor(job.name, "qdata"), scale = torchao_tensor(job.name, "scale"),
                    zero = torchao_tensor(job.name, "zero_point");
  if (job.config.bits == 4) {
    add(codes, DType::kU8, {rows, cols / 2});
    add(scale, DType::kBF16, {groups, rows});
    add(zero, DType::kBF16, {groups, rows});
  } else {
    add(codes, DType::kI8, {rows, cols});
    add(scale, DType::kBF16, {rows, groups});
    add(zero, DType::kI8, {rows, groups});
  }
}

std::map<std::string, std::string> metadata_of(const std::vector<Job>& jobs) {
  std::map<std::string, std::string> metadata;
  std::vector<std::string> names;
  const auto add = [&](const std::string& name, std::string line) {
    names.push_back(name);
    metadata[name] = std::move(line);
  };
  for (const Job& job : jobs) {
    const Matrix& m = job.source->matrix;
    const int64_t group = job.config.group == 0 ? m.cols : job.config.group;
    if (job.role == Job::Role::kPositionTable) {
      add(kPositionCodes, torchao_plain_metadata());
      add(kPositionScale, torchao_plain_metadata());
    } else if (job.role == Job::Role::kPlain) {
      add(job.name, torchao_plain_metadata());
    } else {
      add(job.name, job.config.bits == 4 ? torchao_int4_metadata(m.rows, m.cols, group) : torchao_int8_metadata(group));
    }
  }
  metadata[kTensorNames] = torchao_names_metadata(names);
  return metadata;
}

bool same_file(const fs::path& a, const fs::path& b) {
  std::error_code ignored;
  return fs::exists(a, ignored) && fs::exists(b, ignored) && fs::equivalent(a, b, ignored);
}

// Even with --force: the source stays whole, and no index may name other weights than those that are written.
void check_output(const Checkpoint& source, const fs::path& output) {
  if (same_file(source.path, output)) throw Error("the output " + output.string() + " is the model to be quantised");
  if (is_file_of(source, output / kModelFile)) {
    throw Error("the output " + output.string() + " holds the model to be quantised");
  }
  std::error_code ignored;
  if (fs::exists(output / "model.safetensors.index.json", ignored)) {
    throw Error("the output " + output.string() + " holds a model in several files; choose another directory");
  }
}

void check_space(const fs::path& output, uint64_t bytes) {
  fs::path existing = fs::absolute(output);
  std::error_code error;
  while (!fs::exists(existing, error) && existing.has_parent_path() && existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  const fs::space_info space = fs::space(existing, error);
  if (!error && space.available < bytes) {
    throw Error("the disk of " + output.string() + " has " + std::to_string(space.available / 1'000'000) +
                " MB free but the quantised model needs " + std::to_string(bytes / 1'000'000) + " MB");
  }
}

// Rows `row` .. row + count - 1 as bf16.
void convert_rows(const Matrix& m, int64_t row, int64_t count, uint16_t* out) {
  std::vector<float> values(static_cast<size_t>(m.cols));
  for (int64_t i = 0; i < count; ++i, out += m.cols) {
    load_row(m, row + i, values.data());
    std::transform(values.begin(), values.end(), out, float_to_bf16);
  }
}

// Writes element-typed rows as `type`, some rows at a time.
void write_plain(const Job& job, SafetensorsWriter& writer) {
  const Matrix& m = job.source->matrix;
  const DType type = plain_type(job);
  const int64_t size = static_cast<int64_t>(dtype_size(type));
  const int64_t batch_rows = std::max<int64_t>(1, (int64_t{1} << 22) / m.cols);
  std::vector<uint16_t> bits(static_cast<size_t>(std::min(batch_rows, m.rows) * m.cols));
  for (int64_t row = 0; row < m.rows; row += batch_rows) {
    const int64_t count = std::min(batch_rows, m.rows - row);
    const auto offset = static_cast<uint64_t>(row * m.cols * size);
    if (type == element_type(m.format)) {
      writer.write(job.name, offset, m.codes.slice(row, count).data, static_cast<uint64_t>(count * m.cols * size));
      continue;
    }
    convert_rows(m, row, count, bits.data());
    writer.write(job.name, offset, bits.data(), static_cast<uint64_t>(count * m.cols * size));
  }
}

template <typename T>
void write_all(SafetensorsWriter& writer, const std::string& name, const std::vector<T>& values) {
  writer.write(name, 0, values.data(), values.size() * sizeof(T));
}

void write_quantized(const Job& job, const QuantizeOptions& options, ThreadPool& pool, SafetensorsWriter& writer) {
  const QuantizedWeight q = quantize(job.source->matrix, job.config, options.hqq, pool, job.name);
  write_all(writer, torchao_tensor(job.name, "qdata"), q.codes);
  write_all(writer, torchao_tensor(job.name, "scale"), q.scale);
  if (q.format == Format::kInt4) {
    write_all(writer, torchao_tensor(job.name, "zero_point"), q.zero);
  } else {
    write_all(writer, torchao_tensor(job.name, "zero_point"), q.zero8);
  }
}

void write_job(const Job& job, const QuantizeOptions& options, ThreadPool& pool, SafetensorsWriter& writer) {
  switch (job.role) {
    case Job::Role::kPlain:
      write_plain(job, writer);
      break;
    case Job::Role::kQuantized:
      write_quantized(job, options, pool, writer);
      break;
    case Job::Role::kPositionTable: {
      const QuantizedTable table = quantize_position_table(job.source->matrix, pool, job.name);
      write_all(writer, kPositionCodes, table.codes);
      write_all(writer, kPositionScale, table.scale);
      break;
    }
  }
  const Tensor& codes = job.source->matrix.codes;
  forget_pages(codes.data, static_cast<size_t>(codes.bytes()));
}

void copy_side_files(const Checkpoint& source, const fs::path& output, Overwrite overwrite) {
  for (const char* name : kSideFiles) {
    std::error_code ignored;
    const fs::path from = source.path / name;
    if (fs::exists(from, ignored)) {
      write_file(output / name, read_file(from), overwrite);
    } else {
      fs::remove(output / name, ignored);  // of an earlier result
    }
  }
}

bool is_kept(const Job& job) {
  return job.role == Job::Role::kPlain && plain_type(job) == element_type(job.source->matrix.format);
}

// The weight as the result's reader has it (checkpoint/torchao.h), without its elements unless it is kept as it is.
Weight weight_of(const Job& job) {
  Weight weight = *job.source;
  if (is_kept(job)) return weight;
  Matrix& m = weight.matrix;
  m.codes = Tensor();
  m.group = static_cast<int>(job.config.group == 0 ? m.cols : job.config.group);
  switch (job.role) {
    case Job::Role::kPlain:
      m.format = Format::kBF16;
      m.group = 0;
      break;
    case Job::Role::kQuantized:
      m.format = job.config.bits == 4 ? Format::kInt4 : Format::kInt8;
      break;
    case Job::Role::kPositionTable:
      m.format = Format::kInt8;
      m.group = static_cast<int>(m.cols);
      break;
  }
  return weight;
}

// The elements of a weight, which `hold` keeps.
Matrix make_matrix(const Job& job, HqqArithmetic hqq, ThreadPool& pool) {
  const Matrix& from = job.source->matrix;
  Matrix made = weight_of(job).matrix;
  if (job.role == Job::Role::kQuantized) {
    const auto q = std::make_shared<QuantizedWeight>(quantize(from, job.config, hqq, pool, job.name));
    made = q->view();
    made.hold = q;
  } else if (job.role == Job::Role::kPositionTable) {
    const auto table = std::make_shared<QuantizedTable>(quantize_position_table(from, pool, job.name));
    made.codes = Tensor(table->codes.data(), DType::kI8, {made.rows, made.cols});
    made.scale = Tensor(table->scale.data(), DType::kF32, {made.rows, 1});
    made.hold = table;
  } else {
    const auto bits = std::make_shared<std::vector<uint16_t>>(static_cast<size_t>(made.rows * made.cols));
    pool.parallel_for(made.rows, 1, [&](int64_t begin, int64_t end) {
      convert_rows(from, begin, end - begin, bits->data() + begin * made.cols);
    });
    made.codes = Tensor(bits->data(), DType::kBF16, {made.rows, made.cols});
    made.hold = bits;
  }
  forget_pages(from.codes.data, static_cast<size_t>(from.codes.bytes()));
  return made;
}

}  // namespace

Checkpoint quantized_checkpoint(std::shared_ptr<const Checkpoint> source, const Recipe& recipe,
                                const QuantizeOptions& options) {
  struct Maker {
    explicit Maker(const QuantizeOptions& options) : hqq(options.hqq), pool(options.threads) {}
    std::shared_ptr<const Checkpoint> source;
    std::map<std::string, Job> jobs;  // of the weights that are not kept as they are
    HqqArithmetic hqq;
    ThreadPool pool;
  };
  Checkpoint result = *source;
  result.kind = "torchao";
  result.order.clear();
  result.weights.clear();
  const auto maker = std::make_shared<Maker>(options);
  maker->source = source;
  for (const Job& job : plan(*source, recipe)) {
    result.order.push_back(job.name);
    result.weights[job.name] = weight_of(job);
    if (!is_kept(job)) maker->jobs.emplace(job.name, job);
  }
  result.make = [maker](const std::string& name) -> Matrix {
    const auto job = maker->jobs.find(name);
    return job == maker->jobs.end() ? Matrix() : make_matrix(job->second, maker->hqq, maker->pool);
  };
  return result;
}

QuantizeReport quantize_checkpoint(const Checkpoint& source, const Recipe& recipe, const fs::path& output,
                                   const QuantizeOptions& options) {
  const std::vector<Job> jobs = plan(source, recipe);
  check_output(source, output);
  std::vector<SafetensorsEntry> entries;
  QuantizeReport report;
  for (const Job& job : jobs) {
    describe(job, entries);
    report.bytes_in += job.source->bytes;
  }
  for (const SafetensorsEntry& entry : entries) {
    uint64_t bytes = dtype_size(entry.dtype);
    for (int64_t dim : entry.shape) bytes *= static_cast<uint64_t>(dim);
    report.bytes_out += bytes;
  }
  report.tensors = static_cast<int64_t>(jobs.size());
  check_space(output, report.bytes_out);

  const OutputDirectory directory(output, options.overwrite);
  SafetensorsWriter writer(output / kModelFile, std::move(entries), metadata_of(jobs), options.overwrite);
  ThreadPool pool(options.threads);
  Progress progress("quantising", report.bytes_in);
  for (const Job& job : jobs) {
    write_job(job, options, pool, writer);
    progress.add(job.source->bytes, job.name);
  }
  check_mapped_files();
  copy_side_files(source, output, options.overwrite);
  writer.commit();
  return report;
}

}  // namespace gemma4
