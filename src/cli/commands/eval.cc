// gemma4 eval: runs the cases of a golden folder and compares the results with those of the reference.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>

#include "backend/backend.h"
#include "base/bf16.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "cli/cli.h"
#include "cli/commands/eval_case.h"
#include "cli/commands/processes.h"
#include "cli/commands/questions.h"
#include "cli/engine_flags.h"
#include "engine/open.h"
#include "image/decode.h"
#include "image/patches.h"
#include "model/model.h"

namespace gemma4 {
namespace {

struct Options {
  EngineOptions engine;  // model, backend, threads, GPUs
  std::string golden, dump;
  int chunk = 0;
  ProcessesFlags processes;
  bool force = false;
  std::vector<std::string> only;
};

// Tolerances against Hugging Face transformers in float32 (docs/NUMERICS.md). `ref` computes in float32, so its logits
// are compared; for the other backends the distributions are compared.
struct Tolerance {
  double logit = 0, kl = 0;
};

Tolerance tolerance_of(const std::string& name, const Backend& backend) {
  if (name == "ref") return {2e-4, 1e-6};
  if (name == "cuda") return {0, 1e-3};
  return {0, backend.rounds_to_bf16() ? 2e-3 : 1e-4};
}

struct Report {
  double logit = 0, kl = 0, features = 0, hidden = 0;
  int positions = 0, agree = 0, wrong_top = 0;  // wrong_top: disagreements larger than the error explains
  int greedy_same = 0, greedy = 0;
  double own_pixels = 0;
  bool has_images = false, has_hidden = false;
};

int64_t argmax(const float* row, int64_t n) { return std::max_element(row, row + n) - row; }

double kl_divergence(const float* reference, const float* ours, int64_t n) {
  const auto log_sum = [n](const float* row) {
    const double top = *std::max_element(row, row + n);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(row[i] - top);
    return top + std::log(sum);
  };
  const double zr = log_sum(reference), zo = log_sum(ours);
  double kl = 0;
  for (int64_t i = 0; i < n; ++i) kl += std::exp(reference[i] - zr) * ((reference[i] - zr) - (ours[i] - zo));
  return std::max(kl, 0.0);
}

double max_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(double{a[i]} - double{b[i]});
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

void compare_logits(Report& r, const std::vector<float>& reference, const std::vector<float>& ours, int64_t vocab) {
  if (reference.size() != ours.size()) throw Error("eval: the reference holds logits of another vocabulary");
  r.logit = std::max(r.logit, max_difference(reference, ours));
  for (size_t at = 0; at < reference.size(); at += static_cast<size_t>(vocab)) {
    const float* want = reference.data() + at;
    const float* got = ours.data() + at;
    const double kl = kl_divergence(want, got, vocab);
    r.kl = std::isnan(kl) ? INFINITY : std::max(r.kl, kl);
    double error = 0;
    for (int64_t i = 0; i < vocab; ++i) error = std::max(error, std::fabs(double{want[i]} - double{got[i]}));
    const int64_t a = argmax(want, vocab), b = argmax(got, vocab);
    ++r.positions;
    r.agree += a == b;
    // If the reference's best logit leads by more than twice the error, another choice cannot be due to rounding.
    r.wrong_top += a != b && want[a] - want[b] > 2 * error;
  }
}

class Evaluation {
 public:
  Evaluation(const Options& options)
      : options_(options),
        checkpoint_(open_checkpoint(options.engine.model, options.engine.mmproj, options.engine.vision)),
        config_(parse_config(checkpoint_.config)),
        ranks_(make_backends(options.engine)) {}

  int run();

 private:
  Report run_case(const GoldenCase& golden);
  void encode_images(const GoldenCase& golden, Report& report);
  std::vector<float> prefill(const GoldenCase& golden);
  std::vector<float> step(int32_t id, int32_t pos);
  void own_preprocessing(const GoldenCase& golden, Report& report);
  static std::vector<float> floats(Backend& be, const Tensor& t);
  std::vector<float> logits(int64_t rows) {
    std::vector<float> out(static_cast<size_t>(rows * config_.vocab));
    model_->read_logits(out.data());
    return out;
  }

  const Options& options_;
  Checkpoint checkpoint_;
  Config config_;
  Ranks ranks_;
  std::unique_ptr<Model> model_;
  std::vector<Model::ImageEmbeddings> soft_;
  std::vector<float> features_;
  std::map<std::string, std::vector<float>> dumped_;
};

std::vector<float> Evaluation::floats(Backend& be, const Tensor& t) {
  std::vector<float> out(static_cast<size_t>(t.size()));
  if (t.dtype == DType::kF32) {
    be.read(out.data(), t);
    return out;
  }
  std::vector<uint16_t> bits(out.size());
  be.read(bits.data(), t);
  for (size_t i = 0; i < bits.size(); ++i) out[i] = bf16_to_float(bits[i]);
  return out;
}

void Evaluation::encode_images(const GoldenCase& golden, Report& report) {
  soft_.clear();
  features_.clear();
  int64_t begin = 0;
  const int64_t width = config_.vision.patch_dim();
  for (int32_t n : golden.patches_per_image) {
    soft_.push_back(
        model_->encode({golden.pixel_values.data() + begin * width, golden.pixel_xy.data() + 2 * begin, n}));
    const auto rows = floats(model_->backend(), soft_.back().rows);
    features_.insert(features_.end(), rows.begin(), rows.end());
    begin += n;
  }
  if (soft_.empty()) return;
  report.has_images = true;
  report.features = max_difference(golden.image_features, features_);
}

// Runs the whole prompt in chunks of options_.chunk tokens, enlarged to contain whole images; logits of every position.
std::vector<float> Evaluation::prefill(const GoldenCase& golden) {
  const auto& ids = golden.input_ids;
  const auto last_of_block = image_blocks(ids, config_.image_id);
  const size_t step = options_.chunk > 0 ? static_cast<size_t>(options_.chunk) : ids.size();
  std::vector<float> all;
  size_t image = 0;
  for (size_t begin = 0; begin < ids.size();) {
    size_t end = std::min(begin + step, ids.size());
    if (last_of_block[end - 1] >= 0) end = static_cast<size_t>(last_of_block[end - 1]) + 1;
    Batch batch;
    for (size_t i = begin; i < end; ++i) {
      append_row(batch, config_, ids[i], 0, static_cast<int32_t>(i), last_of_block[i]);
      batch.logit_rows.push_back(static_cast<int32_t>(i - begin));
      if (last_of_block[i] < 0) continue;
      batch.image_index.push_back(static_cast<int32_t>(i - begin));
      if (last_of_block[i] == static_cast<int32_t>(i)) batch.image_embeddings.push_back(soft_.at(image++).rows);
    }
    model_->forward(batch);
    const auto rows = logits(static_cast<int64_t>(end - begin));
    all.insert(all.end(), rows.begin(), rows.end());
    begin = end;
  }
  return all;
}

std::vector<float> Evaluation::step(int32_t id, int32_t pos) {
  Batch batch;
  append_row(batch, config_, id, 0, pos, -1);
  batch.logit_rows = {0};
  model_->forward(batch);
  return logits(1);
}

// Compares the pixels that this program decodes and resizes with those of the reference.
void Evaluation::own_preprocessing(const GoldenCase& golden, Report& report) {
  size_t at = 0;
  for (const std::string& name : golden.images) {
    const auto file = MappedFile::open(find_image(options_.golden, name));
    const Patches own =
        preprocess_image(decode_image(file->bytes()), golden.budget, config_.vision.patch, config_.vision.pool);
    for (size_t i = 0; i < own.values.size(); ++i, ++at) {
      const double want = at < golden.pixel_values.size() ? golden.pixel_values[at] : INFINITY;
      report.own_pixels = std::max(report.own_pixels, 255 * std::fabs(want - double{own.values[i]}));
    }
  }
  if (at != golden.pixel_values.size()) report.own_pixels = INFINITY;
}

Report Evaluation::run_case(const GoldenCase& golden) {
  Report report;
  std::vector<int32_t> pages(64 * 1024);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
  const int tokens = static_cast<int>(golden.input_ids.size() + golden.greedy_ids.size());
  ModelOptions options = options_for(config_, tokens, static_cast<int>(golden.input_ids.size()), 1);
  options.logits_max = options.rows_max;
  options.vision = config_.has_vision && !golden.images.empty();
  options.device_layers = device_layers(options_.engine);
  model_ = std::make_unique<Model>(checkpoint_, config_, ranks_, options);
  if (dumped_.empty()) report_placement(model_->placement());
  for (AttentionKind kind : {kSliding, kFull}) {
    model_->set_pages(kind, 0, std::span(pages).first(static_cast<size_t>(options.pages_per_seq[kind])));
  }

  encode_images(golden, report);
  if (!golden.hidden_states.empty() && options_.chunk == 0) {
    report.has_hidden = true;
    model_->tap = [&](Backend& be, const std::string& name, int layer, const Tensor& x) {
      size_t index = golden.hidden_states.size();
      if (name == "embed") index = 0;
      if (name == "layer" && layer + 1 < config_.layers) index = static_cast<size_t>(layer) + 1;
      if (name == "norm") index = static_cast<size_t>(config_.layers);
      if (index >= golden.hidden_states.size()) return;
      report.hidden = std::max(report.hidden, max_difference(golden.hidden_states[index], floats(be, x)));
    };
  }
  const std::vector<float> prompt = prefill(golden);
  model_->tap = nullptr;
  compare_logits(report, golden.logits, prompt, config_.vocab);
  dumped_[golden.name + ".logits"] = prompt;

  // The continuation twice: with the reference's tokens as input, then with the tokens that this program chooses.
  const size_t vocab = static_cast<size_t>(config_.vocab);
  std::vector<float> forced(prompt.end() - static_cast<int64_t>(vocab), prompt.end());
  const int32_t start = static_cast<int32_t>(golden.input_ids.size());
  for (size_t i = 0; i + 1 < golden.greedy_ids.size(); ++i) {
    const auto row = step(golden.greedy_ids[i], start + static_cast<int32_t>(i));
    forced.insert(forced.end(), row.begin(), row.end());
  }
  if (!golden.greedy_ids.empty()) compare_logits(report, golden.greedy_logits, forced, config_.vocab);
  dumped_[golden.name + ".greedy_logits"] = forced;

  std::vector<float> row = prefill(golden);
  row.erase(row.begin(), row.end() - static_cast<int64_t>(vocab));
  for (size_t i = 0; i < golden.greedy_ids.size(); ++i) {
    const int32_t id = static_cast<int32_t>(argmax(row.data(), config_.vocab));
    ++report.greedy;
    report.greedy_same += id == golden.greedy_ids[i];
    if (i + 1 < golden.greedy_ids.size()) row = step(id, start + static_cast<int32_t>(i));
  }
  own_preprocessing(golden, report);
  soft_.clear();
  model_.reset();
  return report;
}

void print(const std::string& name, const Report& r) {
  std::printf("%-14s logits %.2e  KL %.2e  top-1 %d/%d  greedy %d/%d", name.c_str(), r.logit, r.kl, r.agree,
              r.positions, r.greedy_same, r.greedy);
  if (r.has_images) std::printf("  image features %.2e  own pixels %.2f/255", r.features, r.own_pixels);
  if (r.has_hidden) std::printf("  hidden states %.2e", r.hidden);
  if (r.wrong_top > 0) std::printf("  WRONG TOP-1 at %d", r.wrong_top);
  std::printf("\n");
}

bool passes(const Report& r, const Tolerance& t, bool exact_greedy) {
  return (t.logit == 0 || r.logit <= t.logit) && r.kl <= t.kl && r.wrong_top == 0 &&
         (!exact_greedy || r.greedy_same == r.greedy);
}

void dump(const std::string& path, const std::map<std::string, std::vector<float>>& tensors, int64_t vocab,
          Overwrite overwrite) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, values] : tensors) {
    entries.push_back({name, DType::kF32, {static_cast<int64_t>(values.size()) / vocab, vocab}});
  }
  SafetensorsWriter writer(path, entries, {}, overwrite);
  for (const auto& [name, values] : tensors) writer.write(name, 0, values.data(), values.size() * sizeof(float));
  writer.commit();
}

int Evaluation::run() {
  const Tolerance tolerance = tolerance_of(options_.engine.backend, ranks_[0]);
  bool good = true;
  int count = 0;
  for (const std::string& name : golden_names(options_.golden)) {
    if (!options_.only.empty() && std::find(options_.only.begin(), options_.only.end(), name) == options_.only.end()) {
      continue;
    }
    const GoldenCase golden = read_golden(options_.golden, name, config_.layers);
    const Report report = run_case(golden);
    print(name, report);
    std::fflush(stdout);
    good = good && passes(report, tolerance, options_.engine.backend == "ref");
    ++count;
  }
  if (count == 0) throw Error("eval: no case to run in " + options_.golden);
  if (!options_.dump.empty()) dump(options_.dump, dumped_, config_.vocab, overwrite_if(options_.force));
  std::printf("%s: %d cases, backend %s, tolerance: KL %.0e at every position", good ? "PASS" : "FAIL", count,
              options_.engine.backend.c_str(), tolerance.kl);
  if (tolerance.logit > 0) std::printf(", logits within %g", tolerance.logit);
  std::printf(", top-1 equal where clear\n");
  return good ? kExitOk : kExitFailed;
}

}  // namespace

int eval_command(int argc, char** argv) {
  Options options;
  CommandLine line("gemma4 eval",
                   "Compare this program with reference outputs: a folder of cases, as tests/golden/tiny/golden");
  add_model_argument(line, options.engine.model, "checkpoint: a directory or a .gguf file");
  add_vision_flags(line, options.engine.mmproj, options.engine.vision);
  line.option("--golden", options.golden, "folder with cases.json and one .safetensors a case").file();
  QuestionsOptions questions;
  line.option("--questions", questions.questions, "instead: ask every question of this file, count right answers")
      .excludes("--golden");
  add_template_flag(line, options.engine).needs("--questions");
  line.option("--images", questions.images, "folder of the questions' pictures; default: images/ beside the file")
      .needs("--questions");
  line.option("--equal-min", questions.equal_min, "fail below this share of answers equal to the reference's")
      .between(0.0, 1.0)
      .needs("--questions");
  line.option("--right-min", questions.right_min, "fail below this share of right answers")
      .between(0.0, 1.0)
      .needs("--questions");
  add_device_flags(line, options.engine);
  add_drafter_flags(line, options.engine);
  add_processes_flags(line, options.processes);
  line.option("--chunk", options.chunk, "prefill in chunks of this many tokens; 0: whole")
      .between(0, 1 << 20)
      .needs("--golden");
  line.option("--case", options.only, "run only this case (repeatable)").may_repeat().needs("--golden");
  line.option("--dump", options.dump, "write this program's logits to FILE as safetensors (CASE.logits)")
      .file()
      .needs("--golden");
  line.flag("--force", options.force, "Replace the file of --dump where it exists").needs("--dump");
  if (const auto code = line.parse(argc, argv)) return *code;
  choose_backend(options.engine);
  if (!options.dump.empty()) check_output_file(options.dump, overwrite_if(options.force));
  if (options.golden.empty() == questions.questions.empty()) throw Error("eval: give one of --golden and --questions");
  if (!options.golden.empty() && (!options.engine.drafter.empty() || options.engine.draft_tokens > 0)) {
    throw Error("eval: --drafter is for answers (--questions); --golden compares logits");
  }
  return run_on_rank_0(options.processes, options.engine, [&] {
    if (!options.golden.empty()) return Evaluation(options).run();
    questions.engine = options.engine;
    return eval_questions(questions);
  });
}

}  // namespace gemma4
