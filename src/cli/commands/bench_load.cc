#include "cli/commands/bench_load.h"

#include <chrono>
#include <cstdio>
#include <fstream>
#include <numeric>

#include "base/check.h"
#include "base/json.h"
#include "model/model.h"

namespace gemma4 {
namespace {

using Clock = std::chrono::steady_clock;

// Resident bytes of the process and of mapped files (proc(5), /proc/PID/status).
struct Resident {
  int64_t own = 0, files = 0;
};

Resident resident() {
  Resident now;
  std::ifstream status("/proc/self/status");
  for (std::string key; status >> key;) {
    if (key == "RssAnon:") status >> now.own;
    if (key == "RssFile:") status >> now.files;
  }
  return {now.own * 1024, now.files * 1024};  // kB
}

// Bytes that were read from storage for this process (page cache hits excluded).
int64_t storage_bytes() {
  std::ifstream io("/proc/self/io");
  for (std::string key; io >> key;) {
    int64_t value = 0;
    io >> value;
    if (key == "read_bytes:") return value;
  }
  return 0;
}

void first_token(Model& model) {
  for (const AttentionKind kind : {kSliding, kFull}) {
    std::vector<int32_t> pages(static_cast<size_t>(model.options().pages_per_seq[kind]));
    std::iota(pages.begin(), pages.end(), 0);
    model.set_pages(kind, 0, pages);
  }
  Batch batch;
  append_row(batch, model.config(), model.config().bos_id, 0, 0, -1);
  batch.logit_rows = {0};
  batch.sampling.resize(1);
  batch.sampling[0].temperature = 0;
  model.forward(batch);
}

}  // namespace

int bench_load(const LoadFlags& flags) {
  const std::unique_ptr<Backend> backend = make_backend(flags.backend, flags.threads);
  const Resident before = resident();
  const auto start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  Checkpoint checkpoint = open_checkpoint(flags.model);
  const std::string kind = checkpoint.kind;
  int64_t file_bytes = 0;
  for (const auto& file : checkpoint.files) file_bytes += static_cast<int64_t>(file->bytes().size());
  const double opened = seconds();
  const Config config = parse_config(checkpoint.config);
  Model model(checkpoint, config, *backend, options_for(config, 64, 16, 1));
  backend->sync();
  checkpoint = Checkpoint();  // frees what the model does not need, as the engine does
  const double loaded = seconds();
  const Resident after_load = resident();
  first_token(model);
  const double answered = seconds();
  const Resident after_token = resident();
  nlohmann::ordered_json out = {{"model", flags.model},
                                {"kind", kind},
                                {"backend", backend->name()},
                                {"opened_s", opened},
                                {"loaded_s", loaded},
                                {"first_token_s", answered},
                                {"file_bytes", file_bytes},
                                {"storage_read_bytes", storage_bytes()},
                                {"own_bytes_loaded", after_load.own - before.own},
                                {"file_bytes_loaded", after_load.files - before.files},
                                {"own_bytes_first_token", after_token.own - before.own},
                                {"file_bytes_first_token", after_token.files - before.files}};
  if (flags.json) return std::printf("%s\n", out.dump(2).c_str()), kExitOk;
  const auto mb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  std::printf("%s (%s) on %s: opened after %.3f s, loaded after %.3f s, first token after %.3f s\n",
              flags.model.c_str(), kind.c_str(), backend->name(), opened, loaded, answered);
  std::printf("files %.0f MB, of which the storage read %.0f MB\n", mb(file_bytes), mb(storage_bytes()));
  std::printf("resident, loaded:      %8.0f MB of its own, %8.0f MB of files\n", mb(after_load.own - before.own),
              mb(after_load.files - before.files));
  std::printf("resident, first token: %8.0f MB of its own, %8.0f MB of files\n", mb(after_token.own - before.own),
              mb(after_token.files - before.files));
  return kExitOk;
}

}  // namespace gemma4
