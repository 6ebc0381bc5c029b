#include "cli/other_names.h"

#include <algorithm>
#include <cctype>

namespace gemma4 {
namespace {

struct OtherName {
  std::string_view theirs, ours;
};

// From `llama-cli --help`, `llama-server --help`, `vllm serve --help` and Ollama's parameters.
constexpr OtherName kOtherNames[] = {
    {"-c", "--max-seq-len"},
    {"--ctx-size", "--max-seq-len"},
    {"--n-ctx", "--max-seq-len"},
    {"--num-ctx", "--max-seq-len"},
    {"--max-model-len", "--max-seq-len"},
    {"-n", "--max-new-tokens"},
    {"--n-predict", "--max-new-tokens"},
    {"--num-predict", "--max-new-tokens"},
    {"--predict", "--max-new-tokens"},
    {"--max-tokens", "--max-new-tokens"},
    {"--temp", "--temperature"},
    {"--repeat-penalty", "--repetition-penalty"},
    {"-t", "--threads"},
    {"-ngl", "--gpu-layers"},
    {"--n-gpu-layers", "--gpu-layers"},
    {"-sm", "--split"},
    {"--split-mode", "--split"},
    {"-tp", "--gpus"},
    {"--tensor-parallel-size", "--gpus"},
    {"--device", "--backend"},
    {"-b", "--prefill-chunk"},
    {"--batch-size", "--prefill-chunk"},
    {"--max-num-batched-tokens", "--prefill-chunk"},
    {"-np", "--max-seqs"},
    {"--parallel", "--max-seqs"},
    {"--max-num-seqs", "--max-seqs"},
    {"--alias", "--model-name"},
    {"--served-model-name", "--model-name"},
    {"-md", "--drafter"},
    {"--model-draft", "--drafter"},
    {"--speculative-model", "--drafter"},
    {"--draft", "--draft-tokens"},
    {"--draft-max", "--draft-tokens"},
    {"--num-speculative-tokens", "--draft-tokens"},
    {"--reasoning-budget", "--thinking-budget"},
    {"-sys", "--system"},
    {"--system-prompt", "--system"},
    {"-f", "--prompt-file"},
    {"--file", "--prompt-file"},
    {"--json-schema", "--schema"},
    {"--json-schema-file", "--schema"},
    {"--picture", "--image"},
    {"--allowed-origins", "--cors-origin"},
    {"--outfile", "--output"},
    {"--outtype", "--type"},
    {"--quantization", "--recipe"},
};

constexpr std::string_view kPictureEndings[] = {".png", ".jpg",  ".jpeg", ".webp", ".gif",
                                                ".bmp", ".heic", ".heif", ".avif"};

}  // namespace

std::string name_here(std::string_view word, const std::vector<std::string>& names) {
  const auto* found = std::ranges::find(kOtherNames, word, &OtherName::theirs);
  if (found == std::end(kOtherNames)) return "";
  return std::ranges::find(names, found->ours) == names.end() ? "" : std::string(found->ours);
}

bool names_picture(std::string_view word) {
  std::string lower(word);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::ranges::any_of(kPictureEndings, [&](std::string_view ending) {
    return lower.size() > ending.size() && lower.ends_with(ending);
  });
}

}  // namespace gemma4
