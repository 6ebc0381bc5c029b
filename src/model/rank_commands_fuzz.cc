// Fuzz target: what rank 0's process sends the others, as far as it becomes a RankCommand. What is taken packs into the
// same bytes again: nothing of a call is lost or made up.
#include "base/check.h"
#include "base/mutate_testing.h"
#include "model/rank_commands.h"

namespace gemma4 {
namespace {

std::string text(const CommandBytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

std::vector<std::string> seeds() {
  ModelOptions options;
  options.rows_max = 512, options.pages[kSliding] = 7, options.pages_per_seq[kFull] = 9;
  Batch batch;
  batch.ids = {5, 6, 7};
  for (auto& rows : batch.rows) rows = {{0, 0, 0, 0}, {0, 1, 0, 1}, {1, 9, 2, 9}};
  batch.image_index = {1, 2};
  batch.image_embeddings.emplace_back(nullptr, DType::kF32, std::initializer_list<int64_t>{2});
  batch.logit_rows = {2};
  const std::vector<int32_t> pages = {3, 1, 2};
  return {text(pack_open(0x0123456789abcdef, options)), text(pack_close()), text(pack_set_pages(kFull, 4, pages)),
          text(pack_copy_page(kSliding, 8, 9)), text(pack_forward(batch))};
}

CommandBytes pack(const RankCommand& call) {
  switch (call.what) {
    case RankCommand::kOpen:
      return pack_open(call.model, call.options);
    case RankCommand::kClose:
      return pack_close();
    case RankCommand::kSetPages:
      return pack_set_pages(call.kind, call.seq, call.pages);
    case RankCommand::kCopyPage:
      return pack_copy_page(call.kind, call.from, call.to);
    case RankCommand::kForward:
      return pack_forward(call.batch);
  }
  return {};
}

void run(const std::string& input) {
  const RankCommand call = unpack(std::as_bytes(std::span(input)));
  const CommandBytes once = pack(call);  // one byte may differ: any value but 0 is true
  CHECK(once.size() == input.size() && text(pack(unpack(once))) == text(once));
}

const RegisterFuzz kCalls({"calls", seeds, run, {std::string(4, '\xff'), std::string(4, '\0'), "\x01\x02"}});

}  // namespace
}  // namespace gemma4
