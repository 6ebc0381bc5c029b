// Rank commands survive encoding and decoding; bytes that are cut, too long or unknown are refused.
#include "model/rank_commands.h"

#include <gtest/gtest.h>

#include <numeric>

namespace gemma4 {
namespace {

bool same(const Row& a, const Row& b) {
  return a.seq == b.seq && a.pos == b.pos && a.first == b.first && a.last == b.last;
}

Batch some_batch() {
  Batch batch;
  batch.ids = {5, 6, 7, 8, 9, 10, 11};
  for (int32_t i = 0; i < 7; ++i) {
    batch.rows[kSliding].push_back({i % 2, i, i / 2, i});
    batch.rows[kFull].push_back({i % 2, i + 100, 0, i + 100});
  }
  batch.image_index = {1, 2, 4, 5, 6};
  static float values[4 * 8];
  batch.image_embeddings = {Tensor(values, DType::kBF16, {2, 8}), Tensor(values, DType::kF32, {3, 8})};
  batch.logit_rows = {3, 6};
  batch.sampling.resize(2);
  return batch;
}

TEST(RankCommands, BatchRoundTrips) {
  const Batch in = some_batch();
  const RankCommand command = decode_command(encode_forward(in));
  EXPECT_EQ(command.type, RankCommand::kForward);
  const Batch& out = command.batch;
  EXPECT_EQ(out.ids, in.ids);
  for (const AttentionKind kind : {kSliding, kFull}) {
    EXPECT_TRUE(
        std::equal(out.rows[kind].begin(), out.rows[kind].end(), in.rows[kind].begin(), in.rows[kind].end(), same));
  }
  EXPECT_EQ(out.image_index, in.image_index);
  ASSERT_EQ(out.image_embeddings.size(), 2u);
  EXPECT_EQ(out.image_embeddings[0].rows(), 2);
  EXPECT_EQ(out.image_embeddings[1].rows(), 3);
  EXPECT_FALSE(out.image_embeddings[0]) << "values stay with rank 0";
  EXPECT_EQ(out.logit_rows, in.logit_rows);
  EXPECT_TRUE(out.sampling.empty()) << "rank 0 chooses";
  const RankCommand empty = decode_command(encode_forward(Batch()));
  EXPECT_TRUE(empty.batch.ids.empty());
}

TEST(RankCommands, OthersRoundTrip) {
  ModelOptions options;
  int* const numbers[] = {&options.rows_max, &options.logits_max, &options.seqs_max,         &options.page,
                          &options.pages[0], &options.pages[1],   &options.pages_per_seq[0], &options.pages_per_seq[1]};
  int next = 1;
  for (int* number : numbers) *number = next++;
  options.vision = false;
  const RankCommand caches = decode_command(encode_caches(options));
  EXPECT_EQ(caches.type, RankCommand::kCaches);
  EXPECT_EQ(caches.options.pages[1], options.pages[1]);
  EXPECT_EQ(caches.options.pages_per_seq[0], options.pages_per_seq[0]);
  const RankCommand open = decode_command(encode_open(0x123456789abcdef0, options));
  EXPECT_EQ(open.type, RankCommand::kOpen);
  EXPECT_EQ(open.model, 0x123456789abcdef0u);
  const ModelOptions& got = open.options;
  EXPECT_EQ((std::vector{got.rows_max, got.logits_max, got.seqs_max, got.page, got.pages[0], got.pages[1],
                         got.pages_per_seq[0], got.pages_per_seq[1]}),
            (std::vector{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_FALSE(got.vision);

  const std::vector<int32_t> pages = {9, 3, 7};
  const RankCommand set = decode_command(encode_set_pages(kFull, 4, pages));
  EXPECT_EQ(set.type, RankCommand::kSetPages);
  EXPECT_EQ(set.kind, kFull);
  EXPECT_EQ(set.seq, 4);
  EXPECT_EQ(set.pages, pages);

  const RankCommand copy = decode_command(encode_copy_page(kSliding, 11, 12));
  EXPECT_EQ(copy.type, RankCommand::kCopyPage);
  EXPECT_EQ(copy.kind, kSliding);
  EXPECT_EQ(copy.from, 11);
  EXPECT_EQ(copy.to, 12);

  EXPECT_EQ(decode_command(encode_close()).type, RankCommand::kClose);
}

TEST(RankCommands, DamageIsRefused) {
  const std::vector<int32_t> pages = {9, 3, 7};
  for (const CommandBytes& whole : {encode_forward(some_batch()), encode_open(1, {}), encode_set_pages(kFull, 4, pages),
                                    encode_copy_page(kFull, 1, 2), encode_close()}) {
    EXPECT_NO_THROW(decode_command(whole));
    for (size_t size = 0; size < whole.size(); ++size)
      EXPECT_THROW(decode_command(std::span(whole).first(size)), Error) << size;
    CommandBytes longer = whole;
    longer.push_back(std::byte{0});
    EXPECT_THROW(decode_command(longer), Error);
  }
  CommandBytes unknown = encode_close();
  unknown[0] = std::byte{9};
  EXPECT_THROW(decode_command(unknown), Error);
  CommandBytes kind = encode_copy_page(kFull, 1, 2);
  kind[1] = std::byte{2};
  EXPECT_THROW(decode_command(kind), Error);
  CommandBytes many = encode_forward(some_batch());
  for (size_t i = 1; i < 5; ++i) many[i] = std::byte{0xff};  // 4 G ids
  EXPECT_THROW(decode_command(many), Error);
}

}  // namespace
}  // namespace gemma4
