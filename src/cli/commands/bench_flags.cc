#include "cli/commands/bench_flags.h"

#include "cli/engine_flags.h"

namespace gemma4 {
namespace {

const std::vector<int> kPrompts = {512, 2048, 8192, 32768}, kDepths = {0, 2048, 16384, 65536, 131072},
                       kImages = {280, 1120};
// On a CPU a prompt of 32,768 tokens takes the 31B hours.
const std::vector<int> kCpuPrompts = {512}, kCpuDepths = {0, 2048}, kCpuImages = {280};

constexpr int kTokensMost = 1 << 28, kRunsMost = 1'000'000;

}  // namespace

BenchFlags::BenchFlags() : prompts(kPrompts), depths(kDepths), images(kImages) {}

void add_bench_flags(CommandLine& line, BenchFlags& flags) {
  add_model_argument(line, flags.engine.model, "checkpoint: a directory (also of an exported program) or a .gguf file");
  add_vision_flags(line, flags.engine.mmproj, flags.engine.vision);
  add_device_flags(line, flags.engine);
  add_processes_flags(line, flags.processes);
  add_bench_draft_flags(line, flags.engine, flags.drafts);
  line.option("--prompts", flags.prompts, "prompt lengths; on a CPU 512 alone")
      .between(1, kTokensMost)
      .separated_by_commas()
      .show_default();
  line.option("--depths", flags.depths, "tokens before the decoded ones; on a CPU 0,2048")
      .between(0, kTokensMost)
      .separated_by_commas()
      .show_default();
  line.option("--batches", flags.batches, "sequences decoded together")
      .between(1, 4096)
      .separated_by_commas()
      .show_default();
  line.option("--images", flags.images, "image budgets in soft tokens (0: no images); on a CPU 280")
      .between(0, 65536)
      .separated_by_commas()
      .show_default();
  line.option("--chunk", flags.chunk, "prompt tokens computed at once").between(1, 1 << 20).show_default();
  line.option("--steps", flags.steps, "decode steps of a measurement").between(1, kRunsMost).show_default();
  line.option("--repeat", flags.repeat, "measurements, of which the median counts")
      .between(1, kRunsMost)
      .show_default();
  CommandLine::Option profile =
      line.flag("--profile", flags.profile, "instead: the time of each op, waiting for the device around it");
  CommandLine::Option load =
      line.flag("--load", flags.load, "instead: the time to the first token and whose memory the weights are in");
  line.flag("--json", flags.json, "results as JSON on stdout");
  line.option("--dump", flags.dump, "write the last logits of each line to FILE as safetensors, to compare runs")
      .file();
  line.flag("--force", flags.force, "Replace the file of --dump where it exists").needs("--dump");
  for (const char* ignored : {"--steps", "--repeat", "--batches", "--depths", "--accept", "--dump", "--json"}) {
    profile.excludes(ignored);
  }
  for (const char* ignored :
       {"--steps", "--repeat", "--batches", "--depths", "--accept", "--dump", "--profile", "--prompts", "--images",
        "--chunk", "--drafter", "--draft-tokens", "--mmproj", "--no-vision"}) {
    load.excludes(ignored);
  }
}

void shorten_for_cpu(BenchFlags& flags) {
  if (flags.prompts == kPrompts) flags.prompts = kCpuPrompts;
  if (flags.depths == kDepths) flags.depths = kCpuDepths;
  if (flags.images == kImages) flags.images = kCpuImages;
}

bool are_default_lengths(const std::vector<int>& lengths) {
  return lengths == kPrompts || lengths == kDepths || lengths == kCpuPrompts || lengths == kCpuDepths;
}

}  // namespace gemma4
