// Fuzz target: the messages of rank 0's process to the others, decoded to a RankCommand. An accepted one encodes to the
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
  return {text(encode_open(0x0123456789abcdef, options)),
          text(encode_caches(options)),
          text(encode_close()),
          text(encode_set_pages(kFull, 4, pages)),
          text(encode_copy_page(kSliding, 8, 9)),
          text(encode_forward(batch))};
}

CommandBytes encode(const RankCommand& command) {
  switch (command.type) {
    case RankCommand::kOpen:
      return encode_open(command.model, command.options);
    case RankCommand::kCaches:
      return encode_caches(command.options);
    case RankCommand::kClose:
      return encode_close();
    case RankCommand::kSetPages:
      return encode_set_pages(command.kind, command.seq, command.pages);
    case RankCommand::kCopyPage:
      return encode_copy_page(command.kind, command.from, command.to);
    case RankCommand::kForward:
      return encode_forward(command.batch);
  }
  return {};
}

void run(const std::string& input) {
  const RankCommand command = decode_command(std::as_bytes(std::span(input)));
  const CommandBytes once = encode(command);  // one byte may differ: any value but 0 is true
  CHECK(once.size() == input.size() && text(encode(decode_command(once))) == text(once));
}

const RegisterFuzz kRankCommands({"calls", seeds, run, {std::string(4, '\xff'), std::string(4, '\0'), "\x01\x02"}});

}  // namespace
}  // namespace gemma4
