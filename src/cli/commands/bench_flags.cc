#include "cli/commands/bench_flags.h"

#include "cli/engine_flags.h"

namespace gemma4 {
namespace {

const std::vector<int> kPrompts = {512, 2048, 8192, 32768}, kDepths = {0, 2048, 16384, 65536, 131072},
                       kImages = {280, 1120};
// On a CPU a prompt of 32,768 tokens takes the 31B hours.
const std::vector<int> kCpuPrompts = {512}, kCpuDepths = {0, 2048}, kCpuImages = {280};

}  // namespace

BenchFlags::BenchFlags() : prompts(kPrompts), depths(kDepths), images(kImages) {}

void add_bench_flags(CommandLine& line, BenchFlags& flags) {
  add_model_argument(line, flags.engine.model, "checkpoint: a directory (also of an exported program) or a .gguf file")
      .required();
  add_vision_flags(line, flags.engine.mmproj, flags.engine.vision);
  add_device_flags(line, flags.engine);
  add_processes_flags(line, flags.processes);
  add_bench_draft_flags(line, flags.engine, flags.drafts);
  line.option("--prompts", flags.prompts, "prompt lengths; on a CPU 512 alone")
      .positive()
      .separated_by_commas()
      .show_default();
  line.option("--depths", flags.depths, "tokens before the decoded ones; on a CPU 0,2048")
      .not_negative()
      .separated_by_commas()
      .show_default();
  line.option("--batches", flags.batches, "sequences decoded together").positive().separated_by_commas().show_default();
  line.option("--images", flags.images, "image budgets in soft tokens (0: no images); on a CPU 280")
      .not_negative()
      .separated_by_commas()
      .show_default();
  line.option("--chunk", flags.chunk, "prompt tokens computed at once").positive().show_default();
  line.option("--steps", flags.steps, "decode steps of a measurement").positive().show_default();
  line.option("--repeat", flags.repeat, "measurements, of which the median counts").positive().show_default();
  line.flag("--profile", flags.profile, "instead: the time of each op, waiting for the device around it");
  line.flag("--load", flags.load, "instead: the time to the first token and whose memory the weights are in");
  line.flag("--json", flags.json, "results as JSON on stdout");
  line.option("--dump", flags.dump, "write the last logits of each line to FILE as safetensors, to compare runs");
  line.flag("--force", flags.force, "Replace the file of --dump where it exists");
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
