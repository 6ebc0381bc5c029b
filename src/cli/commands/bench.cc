// gemma4 bench: measures how fast a checkpoint runs: prompts of several lengths, decode at several depths and batch
// sizes, and pictures of several budgets. Each decode is also given as a share of the machine's limit, which is
// measured in the same run: on a CPU the roofline of read bandwidth and multiply-adds, on a GPU the bandwidth of
// copies.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>

#include "backend/roofline.h"
#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "cli/cli.h"
#include "cli/commands/bench_drafts.h"
#include "cli/commands/bench_flags.h"
#include "cli/commands/bench_load.h"
#include "cli/commands/processes.h"
#include "cli/commands/profiled_backend.h"
#include "cli/engine_flags.h"
#include "engine/open.h"
#include "image/patches.h"
#include "image/resize.h"
#include "model/cache_plan.h"
#include "model/model.h"

namespace gemma4 {
namespace {

using nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

using Flags = BenchFlags;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool is_image_budget(int budget) { return std::ranges::find(kImageBudgets, budget) != std::end(kImageBudgets); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A model with sequences of random tokens. Sequence 0 may grow to the largest depth, the others stay short.
class Bench {
 public:
  Bench(const Flags& flags, const Checkpoint& checkpoint, const Checkpoint* drafter, const Ranks& ranks)
      : flags_(flags),
        prompts_(flags.prompts),
        depths_(flags.depths),
        config_(parse_config(checkpoint.config)),
        backend_(ranks[0]),
        coin_(flags.drafts.accept) {
    const int seqs = *std::max_element(flags.batches.begin(), flags.batches.end());
    options_ = options_for(config_, flags.chunk + kBatchDepth, flags.rows_max(), seqs);
    options_.logits_max = std::max(seqs, 1) * (1 + flags.drafts.tokens);
    options_.vision = config_.has_vision && !flags.images.empty();
    options_.device_layers = device_layers(flags.engine);
    options_.drafter = drafter;
    int shorter = 0;
    const auto plan = [&](ModelOptions& options, const CacheMemory& memory) {
      prompts_ = flags.prompts, depths_ = flags.depths;  // of an earlier plan less may have been left
      leave_out_what_does_not_fit(options, memory);
      const ModelOptions sized = options_for(config_, longest(), flags.rows_max(), seqs);
      std::ranges::copy(sized.pages, options.pages);
      std::ranges::copy(sized.pages_per_seq, options.pages_per_seq);
      shorter = std::min(flat_pages(kBatchDepth + tail(), options.page), options.pages_per_seq[kFull]);
      options.pages[kFull] = options.pages_per_seq[kFull] + (seqs - 1) * shorter;
    };
    model_ = std::make_unique<Model>(checkpoint, config_, ranks, options_, plan);
    options_ = model_->options();
    report_what_was_left_out();
    report_placement(model_->placement());
    step_bytes_ = model_->step_bytes();
    step_weights_ = weights_of_a_step(checkpoint);
    int next[kAttentionKinds] = {0, 0};
    for (int s = 0; s < seqs; ++s) {
      for (const AttentionKind kind : {kSliding, kFull}) {
        const int count = kind == kFull && s > 0 ? shorter : options_.pages_per_seq[kind];
        std::vector<int32_t> pages(static_cast<size_t>(count));
        std::iota(pages.begin(), pages.end(), next[kind]);
        next[kind] += count;
        model_->set_pages(kind, s, pages);
      }
    }
  }

  // The lengths to measure: those of the flags. Of the default ones, those that fit in memory and the model's
  // positions.
  const std::vector<int>& prompts() const { return prompts_; }
  const std::vector<int>& depths() const { return depths_; }

  // Computes positions begin .. end-1 of sequence `seq` in chunks; a token is sampled after the last one.
  double prefill(int seq, int begin, int end) {
    backend_.sync();
    const auto start = Clock::now();
    for (int at = begin; at < end; at += flags_.chunk) {
      Batch batch;
      for (int p = at; p < std::min(at + flags_.chunk, end); ++p) append_row(batch, config_, token(), seq, p, -1);
      if (at + flags_.chunk >= end) want(batch, static_cast<int32_t>(batch.ids.size()) - 1);
      model_->forward(batch);
    }
    backend_.sync();
    return seconds_since(start);
  }

  // Mean seconds of a step that adds one token to each of `seqs` sequences at position `depth`.
  double decode(int seqs, int depth) {
    const auto step = [&](int pos) {
      Batch batch;
      for (int s = 0; s < seqs; ++s) {
        append_row(batch, config_, token(), s, pos, -1);
        want(batch, s);
      }
      model_->forward(batch);
    };
    for (int i = 0; i < 3; ++i) step(depth);  // records the graph
    std::vector<double> times;
    for (int r = 0; r < flags_.repeat; ++r) {
      backend_.sync();
      const auto start = Clock::now();
      for (int i = 0; i < flags_.steps; ++i) step(depth + i);
      times.push_back(seconds_since(start) / flags_.steps);
    }
    return median(times);
  }

  DraftRounds rounds(int seqs, int depth) {
    return measure_rounds(*model_, flags_.drafts, seqs, depth, flags_.steps, flags_.repeat, coin_);
  }

  // A step of one sequence at position `depth`, stage by stage; empty if the model is on one device.
  std::vector<Model::PartTime> parts(int depth) {
    if (model_->placement().empty()) return {};
    Batch batch;
    append_row(batch, config_, token(), 0, depth, -1);
    want(batch, 0);
    return model_->time_parts(batch, flags_.steps);
  }

  // Seconds of an image of `budget` soft tokens from its pixels on: in total, and of the vision tower alone with the
  // pixels on the device.
  struct ImageTimes {
    int patches;
    double encode_s, tower_s;
  };
  ImageTimes image(int budget) {
    const int pool = config_.vision.pool, side = static_cast<int>(std::sqrt(budget));
    int width = side;
    while (budget % width != 0) --width;
    const int cols = width * pool, rows = budget / width * pool;
    const int patches = rows * cols;
    std::vector<float> values(static_cast<size_t>(patches) * static_cast<size_t>(config_.vision.patch_dim()));
    for (float& v : values) v = std::uniform_real_distribution<float>(0, 1)(random_);
    std::vector<int32_t> xy;
    for (int y = 0; y < rows; ++y) {
      for (int x = 0; x < cols; ++x) xy.insert(xy.end(), {x, y});
    }
    const bool graphs =
        backend_.name() == std::string("cuda");  // a graph is recorded at the second and third run of a size
    const auto timed = [&](int warm_ups, const auto& work) {
      std::vector<double> times;
      for (int r = 0; r < flags_.repeat + warm_ups; ++r) {
        backend_.sync();
        const auto start = Clock::now();
        work();
        backend_.sync();
        if (r >= warm_ups) times.push_back(seconds_since(start));
      }
      return median(times);
    };
    std::vector<Model::ImageEmbeddings> results;  // freed outside of the measured time
    const double encode = timed(graphs ? 3 : 1, [&] {
      results.push_back(model_->encode({values.data(), xy.data(), patches}));
    });
    return {patches, encode, timed(0, [&] { model_->encode_again(); })};
  }

  // Seconds from the pixels of a 1600 x 1200 picture to patches, on one thread of the host.
  double preprocess(int budget) {
    Image image{1600, 1200, std::vector<uint8_t>(size_t{1600} * 1200 * 3)};
    for (uint8_t& v : image.rgb) v = static_cast<uint8_t>(random_());
    std::vector<double> times;
    for (int r = 0; r < flags_.repeat; ++r) {
      const auto start = Clock::now();
      preprocess_image(image, budget, config_.vision.patch, config_.vision.pool);
      times.push_back(seconds_since(start));
    }
    return median(times);
  }

  // Bytes per second, read plus written, of a copy between two large pages of a cache.
  double copy_bandwidth() {
    const int page = backend_.name() == std::string("cuda") ? 1 << 16 : 1 << 12;
    const KvCache kv = backend_.kv_alloc({2 * int64_t{page}, page, 8, 512, 0});
    std::vector<double> times;
    for (int r = 0; r < 6; ++r) {
      backend_.sync();
      const auto start = Clock::now();
      for (int i = 0; i < 4; ++i) backend_.kv_copy(kv, i % 2, 1 - i % 2);
      backend_.sync();
      times.push_back(seconds_since(start) / 4);
    }
    const double bytes = 2.0 * static_cast<double>(kv.k.bytes() + kv.v.bytes()) / 2;
    backend_.kv_release(kv);
    return bytes / median(times);
  }

  // Keeps the logits of the last pass under `name` for dump(). All runs with these flags use the same tokens, so the
  // logits of two runs can be compared.
  void keep_logits(const std::string& name, int rows) {
    if (flags_.dump.empty()) return;
    std::vector<float>& logits = logits_[name];
    logits.resize(static_cast<size_t>(rows) * static_cast<size_t>(config_.vocab));
    model_->read_logits(logits.data());
  }

  void dump() const {
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, values] : logits_) {
      entries.push_back({name, DType::kF32, {static_cast<int64_t>(values.size()) / config_.vocab, config_.vocab}});
    }
    SafetensorsWriter writer(flags_.dump, entries, {}, overwrite_if(flags_.force));
    for (const auto& [name, values] : logits_) writer.write(name, 0, values.data(), values.size() * sizeof(float));
    writer.commit();
  }

  const Config& config() const { return config_; }
  // Bytes of weights that a step reads on one device, as the backend stores them. If the backend does not say: the
  // bytes in the checkpoint, of all devices.
  int64_t step_bytes() const { return step_bytes_; }
  // The number of weights that each row of a step is multiplied by.
  int64_t step_weights() const { return step_weights_; }
  static constexpr int kBatchDepth = 64;  // the depth at which batches of several sequences are measured

 private:
  int tail() const { return (2 * flags_.steps + 16) * (1 + flags_.drafts.tokens); }
  int longest() const {
    int longest = std::max(flags_.chunk, kBatchDepth);
    for (const auto* lengths : {&prompts_, &depths_}) {
      for (const int n : *lengths) longest = std::max(longest, n);
    }
    return longest + tail();
  }

  void leave_out_what_does_not_fit(ModelOptions one, const CacheMemory& memory) {
    one.seqs_max = 1;
    CacheWish wish;
    wish.positions = config_.max_positions;
    most_ = plan_caches(wish, config_, memory, one).max_seq_len;
    for (auto* lengths : {&prompts_, &depths_}) {
      if (!are_default_lengths(*lengths)) continue;
      std::erase_if(*lengths, [&](int n) { return n + tail() > most_; });
    }
  }
  void report_what_was_left_out() const {
    const auto report = [&](bool all, const char* what) {
      if (!all) std::fprintf(stderr, "the longest context here is %d tokens: longer %s are left out\n", most_, what);
    };
    report(prompts_ == flags_.prompts, "prompts");
    report(depths_ == flags_.depths, "depths");
  }
  int32_t token() { return static_cast<int32_t>(random_() % static_cast<uint64_t>(config_.vocab)); }

  // The number of weights in a decode step of one row.
  static int64_t weights_of_a_step(const Checkpoint& checkpoint) {
    int64_t count = 0;
    const auto add = [&](const Weight& weight) {
      count += std::accumulate(weight.shape.begin(), weight.shape.end(), int64_t{1}, std::multiplies<>());
    };
    for (const auto& [name, weight] : checkpoint.weights) {
      if (name.starts_with("layers.") && name.ends_with("_proj.weight")) add(weight);
    }
    const Weight* head = checkpoint.find("lm_head.weight");
    if (!head) head = checkpoint.find("embed_tokens.weight");
    if (head) add(*head);
    return count;
  }

  static void want(Batch& batch, int32_t row) {
    batch.logit_rows.push_back(row);
    SamplingInput sampling;
    sampling.top_k = 64, sampling.top_p = 0.95f, sampling.seed = 1;
    batch.sampling.push_back(sampling);
  }

  Flags flags_;
  std::vector<int> prompts_, depths_;
  int most_ = 0;  // tokens of the longest context
  Config config_;
  Backend& backend_;  // of rank 0
  ModelOptions options_;
  std::unique_ptr<Model> model_;
  int64_t step_bytes_ = 0, step_weights_ = 0;
  std::mt19937_64 random_{7};
  AcceptCoin coin_;
  std::map<std::string, std::vector<float>> logits_;  // [rows, vocabulary] each
};

// A line of the table, also an entry of the JSON.
struct Line {
  std::string what;
  double ms, per_second;
  const char* unit;
  double gbytes = 0, share = 0;  // weights read per second, and the share of the limit
  double gflops = 0;             // on a cpu
  double times_one = 0;          // several sequences: tokens per second relative to one sequence
  double tokens_a_round = 0;     // with drafts, of one sequence; `ms` is that of a round
  Roofline roof = {};            // on a cpu: measured before or after this line
};

void print(const std::vector<Line>& lines, bool roofline) {
  std::printf("%-28s %10s %12s %8s %10s", "what", "ms", "a second", "", "GB/s");
  if (roofline) {
    std::printf(" %10s %8s %12s %11s", "GFLOP/s", "of roof", "read at most", "FMA at most");
  } else {
    std::printf(" %8s", "of copy");
  }
  std::printf(" %7s\n", "x one");
  for (const Line& line : lines) {
    std::printf("%-28s %10.2f %12.1f %-8s", line.what.c_str(), line.ms, line.per_second, line.unit);
    if (line.gbytes > 0) std::printf(" %10.1f", line.gbytes);
    if (line.gbytes > 0 && roofline) {
      std::printf(" %10.1f %7.1f%% %12.1f %11.1f", line.gflops, 100 * line.share, line.roof.bytes_per_second / 1e9,
                  line.roof.flops_per_second / 1e9);
    } else if (line.gbytes > 0) {
      std::printf(" %7.1f%%", 100 * line.share);
    }
    if (line.times_one > 0) std::printf(" %7.2f", line.times_one);
    if (line.tokens_a_round > 0) std::printf("   %.2f tokens a round", line.tokens_a_round);
    std::printf("\n");
  }
}

// Compares decode steps with the limit of the machine.
class Limits {
 public:
  Limits(const Flags& flags, const Bench& bench, double copy) : bench_(bench), copy_(copy) {
    if (flags.engine.backend == "cpu" && copy > 0) meter_ = std::make_unique<RooflineMeter>(flags.engine.threads);
  }

  // `measure` returns the seconds of a step for `seqs` sequences. The roofline is measured before and after; the better
  // one counts.
  Line line(const std::string& what, int seqs, const std::function<double()>& measure) {
    const Roofline before = meter_ ? meter_->measure() : Roofline();
    const double seconds = measure();
    const Roofline after = meter_ ? meter_->measure() : Roofline();
    const auto bytes = static_cast<double>(bench_.step_bytes());
    if (copy_ == 0) return {what, 1e3 * seconds, seqs / seconds, "tokens"};  // there is no one limit
    Line line{what, 1e3 * seconds, seqs / seconds, "tokens", bytes / seconds / 1e9, bytes / seconds / copy_};
    if (!meter_) return line;
    line.roof = {std::max(before.bytes_per_second, after.bytes_per_second),
                 std::max(before.flops_per_second, after.flops_per_second)};
    const double flops = 2.0 * seqs * static_cast<double>(bench_.step_weights());
    line.gflops = flops / seconds / 1e9;
    line.share = line.roof.least_seconds(bytes, flops) / seconds;
    return line;
  }

 private:
  const Bench& bench_;
  double copy_;
  std::unique_ptr<RooflineMeter> meter_;
};

Line line_of(const DraftRounds& rounds, const std::string& what, int seqs) {
  Line line{what, 1e3 * rounds.seconds / rounds.rounds, seqs * rounds.tokens / rounds.seconds, "tokens"};
  line.tokens_a_round = rounds.tokens / rounds.rounds;
  return line;
}

std::vector<Line> measure(const Flags& flags, Bench& bench, double copy) {
  std::vector<Line> lines;
  const auto say = [&](const Line& line) {
    lines.push_back(line);
    std::fprintf(stderr, "%s: %.2f ms, %.1f %s a second\n", line.what.c_str(), line.ms, line.per_second, line.unit);
  };
  const auto say_rounds = [&](const std::string& what, int seqs, int depth) {
    if (flags.drafts.tokens == 0) return;
    say(line_of(bench.rounds(seqs, depth), what + ", " + std::to_string(flags.drafts.tokens) + " drafts", seqs));
  };
  Limits limits(flags, bench, copy);
  bench.prefill(0, 0, std::min(flags.chunk, 512));  // warm-up
  for (int n : bench.prompts()) {
    double seconds = bench.prefill(0, 0, n);
    if (n <= 8192) seconds = std::min(seconds, bench.prefill(0, 0, n));
    bench.keep_logits("prompt." + std::to_string(n), 1);
    say({"prompt of " + std::to_string(n), 1e3 * seconds, n / seconds, "tokens"});
  }
  int filled = 0;  // of sequence 0
  for (int depth : bench.depths()) {
    if (depth > filled) bench.prefill(0, filled, depth);
    filled = std::max(filled, depth);
    say(limits.line("decode at " + std::to_string(depth), 1, [&] { return bench.decode(1, depth); }));
    bench.keep_logits("decode." + std::to_string(depth), 1);
    say_rounds("decode at " + std::to_string(depth), 1, depth);
    double all = 0;
    for (const Model::PartTime& part : bench.parts(depth)) {
      say({"  " + part.what, 1e3 * part.seconds, 1 / part.seconds, "steps"});
      all += part.seconds;
    }
    if (all > 0) say({"  these by themselves", 1e3 * all, 1 / all, "steps"});
  }
  double one = 0;  // tokens per second of one sequence
  for (int seqs : flags.batches) {
    if (flags.batches.size() == 1 && seqs == 1) break;
    for (int s = 0; s < seqs; ++s) bench.prefill(s, 0, Bench::kBatchDepth);
    Line line = limits.line("decode, batch of " + std::to_string(seqs), seqs,
                            [&] { return bench.decode(seqs, Bench::kBatchDepth); });
    if (seqs == 1) one = line.per_second;
    if (seqs > 1 && one > 0) line.times_one = line.per_second / one;
    say(line);
    bench.keep_logits("batch." + std::to_string(seqs), seqs);
    say_rounds("batch of " + std::to_string(seqs), seqs, Bench::kBatchDepth);
  }
  for (int budget : flags.images) {
    if (!bench.config().has_vision) break;
    const Bench::ImageTimes times = bench.image(budget);
    const std::string of = " of " + std::to_string(budget);
    const auto image = [&](const std::string& what, double seconds) {
      say({what, 1e3 * seconds, 1 / seconds, "images"});
    };
    image("image" + of + " (" + std::to_string(times.patches) + ")", times.encode_s);
    image("its tower" + of, times.tower_s);
    if (is_image_budget(budget)) image("preprocessing" + of, bench.preprocess(budget));
  }
  return lines;
}

// The time by op, the largest first.
void print_profile(const std::string& what, ProfiledBackend& profiled) {
  const auto totals = profiled.take();
  std::vector<std::pair<std::string, ProfiledBackend::Total>> lines(totals.begin(), totals.end());
  std::sort(lines.begin(), lines.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double all = 0;
  for (const auto& line : lines) all += line.second.seconds;
  std::printf("\n%s: %.2f ms in ops\n", what.c_str(), 1e3 * all);
  for (const auto& [op, total] : lines) {
    std::printf("  %-28s %6lld calls %10.1f us each %10.2f ms %6.1f%%\n", op.c_str(),
                static_cast<long long>(total.calls), 1e6 * total.seconds / static_cast<double>(total.calls),
                1e3 * total.seconds, 100 * total.seconds / all);
  }
}

// The profile of rank 0. Its collective ops include the time of waiting for other ranks.
void profile(const Flags& flags, const Checkpoint& checkpoint, const Checkpoint* drafter, Ranks ranks) {
  ProfiledBackend profiled(ranks[0]);
  ranks.replace(profiled);
  Flags short_flags = flags;
  short_flags.steps = 1, short_flags.repeat = 1;
  Bench bench(short_flags, checkpoint, drafter, ranks);
  const int n =
      bench.prompts().empty() ? flags.chunk : bench.prompts()[std::min<size_t>(1, bench.prompts().size() - 1)];
  bench.prefill(0, 0, std::min(n, 2 * flags.chunk));
  profiled.take();
  bench.prefill(0, 0, n);
  print_profile("prompt of " + std::to_string(n), profiled);
  bench.decode(1, n);
  profiled.take();
  bench.decode(1, n);
  print_profile("4 decode steps at " + std::to_string(n), profiled);
  for (int budget : flags.images) {
    if (!bench.config().has_vision) break;
    bench.image(budget);
    print_profile("images of " + std::to_string(budget), profiled);
  }
}

int bench(const Flags& flags) {
  const auto start = Clock::now();
  const Checkpoint checkpoint = open_checkpoint(flags.engine.model, flags.engine.mmproj, flags.engine.vision);
  EngineOptions engine = flags.engine;
  const std::optional<Checkpoint> opened = choose_drafter(engine);
  const Checkpoint* drafter = opened ? &*opened : nullptr;
  const Ranks ranks = make_backends(engine);
  if (flags.profile) {
    profile(flags, checkpoint, drafter, ranks);
    return kExitOk;
  }
  Bench bench(flags, checkpoint, drafter, ranks);
  ranks[0].sync();
  const double load = seconds_since(start), memory = static_cast<double>(ranks.memory_used()) / 1e9;
  const bool one_device = ranks.devices(0).size() == 1;
  const double copy = one_device ? bench.copy_bandwidth() : 0;
  const std::string where = ranks.world() > 1 ? " on each of " + std::to_string(ranks.world()) + " devices" : "";
  std::fprintf(stderr, "loaded in %.2f s, %.2f GB of memory; a step reads %.2f GB of weights%s", load, memory,
               static_cast<double>(bench.step_bytes()) / 1e9, where.c_str());
  if (one_device) std::fprintf(stderr, "; copies move %.0f GB/s", copy / 1e9);
  std::fputc('\n', stderr);
  const std::vector<Line> lines = measure(flags, bench, copy);
  if (!flags.dump.empty()) bench.dump();
  const Backend::Stats stats = ranks[0].stats();
  if (!flags.json) {
    print(lines, flags.engine.backend == "cpu" && one_device);
    if (stats.ops > 0) {
      std::printf("megakernel: %lld of %lld ops of a decode step\n", static_cast<long long>(stats.megakernel_ops),
                  static_cast<long long>(stats.ops));
    }
    return kExitOk;
  }
  ordered_json out = {{"model", flags.engine.model.string()},
                      {"backend", ranks[0].name()},
                      {"gpus", ranks.world()},
                      {"load_s", load},
                      {"memory_bytes", ranks.memory_used()},
                      {"weights_bytes_per_step", bench.step_bytes()},
                      {"copy_bytes_per_s", copy},
                      {"results", ordered_json::array()}};
  if (stats.ops > 0) out["decode_ops"] = stats.ops, out["megakernel_ops"] = stats.megakernel_ops;
  for (const Line& line : lines) {
    ordered_json result = {{"what", line.what}, {"ms", line.ms}, {std::string(line.unit) + "_per_s", line.per_second}};
    const bool roofline = line.roof.bytes_per_second > 0;
    if (line.gbytes > 0) result["gb_per_s"] = line.gbytes, result[roofline ? "of_roofline" : "of_copy"] = line.share;
    if (roofline) {
      result["gflop_per_s"] = line.gflops;
      result["read_gb_per_s_at_most"] = line.roof.bytes_per_second / 1e9;
      result["gflop_per_s_at_most"] = line.roof.flops_per_second / 1e9;
    }
    if (line.times_one > 0) result["times_one"] = line.times_one;
    if (line.tokens_a_round > 0) result["tokens_per_round"] = line.tokens_a_round;
    out["results"].push_back(result);
  }
  std::printf("%s\n", out.dump(2).c_str());
  return kExitOk;
}

}  // namespace

int bench_command(int argc, char** argv) {
  CommandLine line("gemma4 bench", "Measure how fast a checkpoint runs here.");
  Flags flags;
  add_bench_flags(line, flags);
  if (const auto code = line.parse(argc, argv)) return *code;
  if (!flags.dump.empty()) check_output_file(flags.dump, overwrite_if(flags.force));
  const std::string why = choose_backend(flags.engine);
  if (flags.batches.empty()) flags.batches = {1};
  if (flags.engine.backend != "cuda") shorten_for_cpu(flags);
  std::erase(flags.images, 0);
  resolve_draft_flags(flags.engine, flags.drafts);
  if (flags.load) {
    if (flags.processes.wanted) throw Error("bench --load measures one GPU; leave --one-process-per-gpu away");
    if (!flags.engine.gpu_layers.empty() || flags.engine.gpus > 1) {
      throw Error("bench --load measures one device; leave --gpu-layers and --gpus away");
    }
  }
  if (!why.empty()) report_backend(flags.engine, why);
  if (flags.load) return bench_load({flags.engine.model, flags.engine.backend, flags.engine.threads, flags.json});
  return run_on_rank_0(flags.processes, flags.engine, [&] { return bench(flags); });
}

}  // namespace gemma4
