#include "checkpoint/gguf/gguf_writer.h"

#include "base/check.h"

namespace gemma4 {
namespace {

constexpr uint64_t kAlignment = 32;

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_string(std::string& out, const std::string& text) {
  append<uint64_t>(out, text.size());
  out += text;
}

uint64_t aligned(uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

uint32_t fit_u32(const std::string& key, int64_t value) {
  if (value < 0 || value > UINT32_MAX) throw Error(key + ": " + std::to_string(value) + " does not fit 32 bits");
  return static_cast<uint32_t>(value);
}

}  // namespace

GgufWriter::GgufWriter(std::string architecture) { add_string("general.architecture", architecture); }

void GgufWriter::key(const std::string& name, GgufType type) {
  append_string(metadata_, name);
  append(metadata_, static_cast<uint32_t>(type));
  ++keys_;
}

void GgufWriter::array(const std::string& name, GgufType element, uint64_t count) {
  key(name, GgufType::kArray);
  append(metadata_, static_cast<uint32_t>(element));
  append(metadata_, count);
}

void GgufWriter::add_u32(const std::string& name, int64_t value) {
  key(name, GgufType::kU32);
  append(metadata_, fit_u32(name, value));
}

void GgufWriter::add_f32(const std::string& name, double value) {
  key(name, GgufType::kF32);
  append(metadata_, static_cast<float>(value));
}

void GgufWriter::add_bool(const std::string& name, bool value) {
  key(name, GgufType::kBool);
  append<uint8_t>(metadata_, value);
}

void GgufWriter::add_string(const std::string& name, const std::string& value) {
  key(name, GgufType::kString);
  append_string(metadata_, value);
}

void GgufWriter::add_u32s(const std::string& name, const std::vector<int64_t>& values) {
  array(name, GgufType::kU32, values.size());
  for (const int64_t v : values) append(metadata_, fit_u32(name, v));
}

void GgufWriter::add_i32s(const std::string& name, const std::vector<int32_t>& values) {
  array(name, GgufType::kI32, values.size());
  for (const int32_t v : values) append(metadata_, v);
}

void GgufWriter::add_f32s(const std::string& name, const std::vector<float>& values) {
  array(name, GgufType::kF32, values.size());
  for (const float v : values) append(metadata_, v);
}

void GgufWriter::add_bools(const std::string& name, const std::vector<bool>& values) {
  array(name, GgufType::kBool, values.size());
  for (const bool v : values) append<uint8_t>(metadata_, v);
}

void GgufWriter::add_strings(const std::string& name, const std::vector<std::string>& values) {
  array(name, GgufType::kString, values.size());
  for (const std::string& v : values) append_string(metadata_, v);
}

void GgufWriter::add_tensor(const std::string& name, const std::vector<int64_t>& shape, Format format) {
  CHECK(!file_ && by_name_.emplace(name, tensors_.size()).second);
  uint64_t size = static_cast<uint64_t>(shape.back() / info(format).block_cols * info(format).block_bytes);
  for (size_t i = 0; i + 1 < shape.size(); ++i) size *= static_cast<uint64_t>(shape[i]);
  tensors_.push_back({name, shape, format, data_bytes_, size});
  data_bytes_ = aligned(data_bytes_ + size);
}

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append<uint32_t>(out, 3);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, keys_);
  out += metadata_;
  for (const Tensor& t : tensors_) {
    append_string(out, t.name);
    append(out, static_cast<uint32_t>(t.shape.size()));
    for (size_t i = t.shape.size(); i-- > 0;) append(out, static_cast<uint64_t>(t.shape[i]));
    append(out, ggml_type(t.format));
    append(out, t.offset);
  }
  out.resize(aligned(out.size()));
  return out;
}

void GgufWriter::begin(const std::filesystem::path& path, Overwrite overwrite) {
  file_.emplace(path, overwrite);
  const std::string bytes = header();
  file_->write(bytes.data(), bytes.size());
  data_begin_ = bytes.size();
  // ggml requires padding after the last tensor too.
  const char zero = 0;
  if (data_bytes_ > 0) file_->write_at(data_begin_ + data_bytes_ - 1, &zero, 1);
}

void GgufWriter::write(const std::string& name, uint64_t offset, const void* data, uint64_t size) {
  const Tensor& tensor = tensors_.at(by_name_.at(name));
  CHECK(file_ && offset <= tensor.size && size <= tensor.size - offset);
  file_->write_at(data_begin_ + tensor.offset + offset, data, size);
  written_ += size;
}

void GgufWriter::commit() {
  uint64_t due = 0;
  for (const Tensor& t : tensors_) due += t.size;
  CHECK(written_ == due);
  file_->commit();
}

}  // namespace gemma4
