#include "program/program.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/random.h"
#include "checkpoint/program_file.h"
#include "model/model.h"
#include "model/owned_tensors.h"
#include "program/methods.h"

namespace gemma4 {
namespace {

[[noreturn]] void refuse(const std::string& method, const std::string& why) { throw Error(method + ": " + why); }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string shape_text(const std::vector<Dimension>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    const Dimension& d = shape[i];
    text += (i ? ", " : "") + (d.symbol.empty() ? std::to_string(d.least)
                                                : (d.multiple > 1 ? std::to_string(d.multiple) + "*" : "") + d.symbol);
  }
  text += "]";
  for (const Dimension& d : shape) {
    if (d.symbol.empty()) continue;
    return text + " with " + d.symbol + " from " + std::to_string(d.least) + " to " + std::to_string(d.most);
  }
  return text;
}

bool fits(const TensorSpec& spec, const Input& input, std::map<std::string, int64_t>& symbols) {
  if (input.type != spec.type || input.shape.size() != spec.shape.size()) return false;
  int64_t count = 1;
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    const Dimension& d = spec.shape[i];
    const int64_t size = input.shape[i], value = size / d.multiple;
    if (size <= 0 || size % d.multiple != 0 || value < d.least || value > d.most) return false;
    if (!d.symbol.empty() && symbols.emplace(d.symbol, value).first->second != value) return false;
    count *= size;  // each at most a bound of ours
  }
  return static_cast<uint64_t>(count) == input.count;
}

void check_inputs(const MethodSpec& method, const std::vector<Input>& inputs) {
  size_t needed = method.inputs.size();
  while (needed > 0 && method.inputs[needed - 1].optional) --needed;
  if (inputs.size() < needed || inputs.size() > method.inputs.size()) {
    refuse(method.name, "takes " + std::to_string(needed) + " inputs, not " + std::to_string(inputs.size()));
  }
  std::map<std::string, int64_t> symbols;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorSpec& spec = method.inputs[i];
    if (fits(spec, inputs[i], symbols)) continue;
    constexpr const char* kTypes[] = {"float32", "int64", "bool"};
    refuse(method.name, "the input " + spec.name + " is " + kTypes[static_cast<int>(spec.type)] + " " +
                            shape_text(spec.shape) + ", not " + kTypes[static_cast<int>(inputs[i].type)] + " " +
                            shape_text(inputs[i].shape) + " of " + std::to_string(inputs[i].count) + " elements");
  }
}

std::span<const float> floats(const Input& input) { return {static_cast<const float*>(input.data), input.count}; }
std::span<const int64_t> integers(const Input& input) { return {static_cast<const int64_t*>(input.data), input.count}; }

Output float_output(Backend& backend, const Tensor& rows, int64_t count) {
  CHECK(rows.dtype == DType::kF32);
  Output out{ElementType::kFloat32, {1, count, rows.row_size()}, {}, {}, {}};
  out.floats.resize(static_cast<size_t>(count * rows.row_size()));  // beyond rows.rows(): zeros
  backend.read(out.floats.data(), rows);
  return out;
}

}  // namespace

struct Program::Impl {
  Impl(const std::string& directory, const ProgramOptions& options);

  std::vector<Output> prefill(const std::vector<Input>& inputs);
  std::vector<Output> decode(const std::vector<Input>& inputs);
  std::vector<Output> embed_text(const std::vector<Input>& inputs);
  std::vector<Output> vision_encoder(const std::vector<Input>& inputs);

  std::vector<int32_t> ids(const char* method, const Input& tokens) const;
  int64_t begin(const char* method, std::span<const int64_t> positions) const;
  std::vector<Output> run(const char* method, Batch& batch, const Input& temperature);

  ProgramLimits limits;
  std::map<std::string, int64_t> constants;
  std::vector<MethodSpec> methods;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
  std::unique_ptr<OwnedTensors> owned;
  Tensor embeddings;          // F32 [chunk, hidden]: prefill's rows
  int64_t ring = 0;           // tokens the sliding layers hold
  int64_t next = 0, top = 0;  // positions 0 .. next-1 are kept; no key at or past `top` was ever written
  uint64_t seed = 0, step = 0;
};

Program::Impl::Impl(const std::string& directory, const ProgramOptions& options) {
  const Checkpoint checkpoint = open_checkpoint(directory);
  if (!checkpoint.program) {
    throw Error(directory + " is no exported program; make one: gemma4 export --format program --model-dir " +
                directory + " --output-dir PROGRAM");
  }
  const Config config = parse_config(checkpoint.config);
  constants = {checkpoint.program->header.constants.begin(), checkpoint.program->header.constants.end()};
  limits = limits_of(constants, config, directory);
  if (options.max_prefill_chunk < 0 || options.max_prefill_chunk == 1 || options.max_prefill_chunk > limits.chunk) {
    throw Error("max_prefill_chunk is 0 or 2 to " + std::to_string(limits.chunk));
  }
  if (options.max_prefill_chunk > 0) limits.chunk = options.max_prefill_chunk;
  constants["get_max_prefill_chunk"] = limits.chunk;
  methods = methods_of(config, limits);
  seed = options.seed ? options.seed : static_cast<uint32_t>(system_random());
  ModelOptions model_options = options_for(config, limits.max_seq_len, limits.chunk, 1);
  model_options.vision = config.has_vision;
  backend = make_backend(checkpoint.program->header.backend, options.threads);
  model = std::make_unique<Model>(checkpoint, config, *backend, model_options);
  for (const AttentionKind kind : {kSliding, kFull}) {
    std::vector<int32_t> pages(static_cast<size_t>(model_options.pages_per_seq[kind]));
    std::iota(pages.begin(), pages.end(), 0);
    model->set_pages(kind, 0, pages);
  }
  ring = int64_t{model_options.pages_per_seq[kSliding]} * model_options.page;
  owned = std::make_unique<OwnedTensors>(*backend);
  if (config.has_vision) embeddings = owned->alloc(DType::kF32, {limits.chunk, config.hidden});
  CHECK(backend->residual_type() == DType::kF32);
}

std::vector<int32_t> Program::Impl::ids(const char* method, const Input& tokens) const {
  std::vector<int32_t> out;
  for (const int64_t id : integers(tokens)) {
    if (id < 0 || id >= model->config().vocab) {
      refuse(method, "the token " + std::to_string(id) + " is not one of the vocabulary of " +
                         std::to_string(model->config().vocab));
    }
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

// The first of the positions, once they can be computed.
int64_t Program::Impl::begin(const char* method, std::span<const int64_t> positions) const {
  const int64_t first = positions[0], count = static_cast<int64_t>(positions.size());
  if (first < 0 || first > next) {
    refuse(method, "the position " + std::to_string(first) + " does not follow the " + std::to_string(next) +
                       " tokens that are kept");
  }
  if (first > limits.max_seq_len - count) {
    refuse(method, "the positions " + std::to_string(first) + " to " + std::to_string(first + count - 1) +
                       " do not fit the program's " + std::to_string(limits.max_seq_len));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (positions[static_cast<size_t>(i)] != first + i) refuse(method, "input_pos is not consecutive");
  }
  const int64_t oldest = std::max<int64_t>(0, first - model->config().window + 1);
  if (oldest < first && oldest < top - ring) {
    refuse(method, "the position " + std::to_string(first) +
                       " looks back to keys that later tokens have overwritten; "
                       "reset and prefill again");
  }
  return first;
}

std::vector<Output> Program::Impl::run(const char* method, Batch& batch, const Input& temperature) {
  const float t = floats(temperature)[0];
  if (!(t >= 0 && t <= 1e6f)) refuse(method, "the temperature is not a number from 0 to 1000000");
  SamplingInput sampling;
  sampling.temperature = t;
  sampling.seed = seed;
  sampling.step = step++;
  batch.logit_rows = {static_cast<int32_t>(batch.ids.size()) - 1};
  batch.sampling = {sampling};
  const int64_t end = batch.rows[kFull].back().pos + 1;
  next = batch.rows[kFull].front().pos;  // where the device fails halfway, what it overwrote is not kept
  top = std::max(top, end);
  const std::vector<int32_t> chosen = model->forward(batch);
  next = end;
  return {Output{ElementType::kInt64, {1, 1}, {}, {chosen[0]}, {}}};
}

std::vector<Output> Program::Impl::prefill(const std::vector<Input>& inputs) {
  const auto positions = integers(inputs[1]);
  const int64_t first = begin("prefill", positions), count = static_cast<int64_t>(positions.size());
  std::vector<int32_t> tokens(positions.size(), 0);  // of embeddings: any
  if (limits.soft_max == 0) tokens = ids("prefill", inputs[0]);
  Batch batch;
  for (int64_t i = 0; i < count; ++i) {
    int64_t image_end = -1;
    if (inputs.size() > 3) image_end = integers(inputs[3])[static_cast<size_t>(i)];
    if (image_end != -1 && (image_end < first + i || image_end >= first + count)) {
      refuse("prefill", "image_ends says " + std::to_string(image_end) + " at the position " +
                            std::to_string(first + i) + ": a picture's rows belong in one call");
    }
    append_row(batch, model->config(), tokens[static_cast<size_t>(i)], 0, static_cast<int32_t>(first + i),
               static_cast<int32_t>(image_end));
    if (limits.soft_max > 0) batch.image_index.push_back(static_cast<int32_t>(i));
  }
  if (limits.soft_max > 0) {
    batch.image_embeddings = {embeddings.slice(0, count)};
    backend->write(batch.image_embeddings[0], inputs[0].data);
  }
  return run("prefill", batch, inputs[2]);
}

std::vector<Output> Program::Impl::decode(const std::vector<Input>& inputs) {
  Batch batch;
  const int64_t pos = begin("decode", integers(inputs[1]));
  append_row(batch, model->config(), ids("decode", inputs[0])[0], 0, static_cast<int32_t>(pos), -1);
  return run("decode", batch, inputs[2]);
}

std::vector<Output> Program::Impl::embed_text(const std::vector<Input>& inputs) {
  const Model::ImageEmbeddings soft = model->embed(ids("embed_text", inputs[0]));
  return {float_output(*backend, soft.rows, soft.rows.rows())};
}

std::vector<Output> Program::Impl::vision_encoder(const std::vector<Input>& inputs) {
  const auto values = floats(inputs[0]);
  const auto positions = integers(inputs[1]);
  const VisionConfig& vision = model->config().vision;
  const auto patch = static_cast<size_t>(vision.patch_dim());
  std::vector<int32_t> xy;
  size_t count = 0;  // patches before the padding
  for (; count < positions.size() / 2 && positions[2 * count] != -1; ++count) {
    for (size_t axis = 0; axis < 2; ++axis) {
      xy.push_back(static_cast<int32_t>(std::clamp<int64_t>(positions[2 * count + axis], -1, INT32_MAX)));
    }
  }
  for (size_t i = 2 * count; i < positions.size(); ++i) {
    if (positions[i] != -1) refuse("vision_encoder", "padding (positions of -1) stands before a patch of the picture");
  }
  if (count == 0) refuse("vision_encoder", "all patches are padding");
  const Model::ImageEmbeddings soft =
      model->encode({values.first(count * patch).data(), xy.data(), static_cast<int>(count)});
  const int64_t rows = inputs[0].shape[1] / (vision.pool * vision.pool);
  Output mask{ElementType::kBool, {1, rows}, {}, {}, {}};
  for (int64_t i = 0; i < rows; ++i) mask.flags.push_back(i < soft.rows.rows());
  return {float_output(*backend, soft.rows, rows), mask};
}

Program::Program(const std::string& directory, const ProgramOptions& options)
    : impl_(std::make_unique<Impl>(directory, options)) {}
Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

const std::vector<MethodSpec>& Program::methods() const { return impl_->methods; }
const std::map<std::string, int64_t>& Program::constants() const { return impl_->constants; }
int64_t Program::position() const { return impl_->next; }
void Program::reset() { impl_->next = impl_->top = 0; }

std::vector<Output> Program::call(const std::string& method, const std::vector<Input>& inputs) {
  std::string known;
  for (const MethodSpec& spec : impl_->methods) {
    known += (known.empty() ? "" : ", ") + spec.name;
    if (spec.name != method) continue;
    check_inputs(spec, inputs);
    if (method == "prefill") return impl_->prefill(inputs);
    if (method == "decode") return impl_->decode(inputs);
    return method == "embed_text" ? impl_->embed_text(inputs) : impl_->vision_encoder(inputs);
  }
  throw Error("this program has no method " + method + "; it has " + known);
}

}  // namespace gemma4
