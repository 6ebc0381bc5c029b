// NgramIndex: drafts by look-up, without a model. Where did the last tokens of a conversation occur before? What came
// after them there is proposed again (code, quotations and lists repeat themselves). One index belongs to one sequence.
// A token is indexed, and drafts are found, in a bounded number of steps, whatever the conversation is.
// Source: Saxena, "Prompt Lookup Decoding" (2023); the chains are those of LZ77 compressors.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemma4 {

class NgramIndex {
 public:
  // For conversations of up to `tokens`.
  explicit NgramIndex(int tokens);

  // Indexes `ids`, a conversation that begins with the one of the last call.
  void extend(std::span<const int32_t> ids);

  // `count` tokens to follow `ids`, or none where its last two tokens are new. `ids`: as for extend(), which is called.
  std::vector<int32_t> draft(std::span<const int32_t> ids, int count);

 private:
  static constexpr int kPair = 2;              // tokens that a place must share with the end
  static constexpr int kLongest = 16;          // tokens that are compared at a place
  static constexpr int kCandidates = 32;       // places that are compared
  static constexpr int kBucketsMax = 1 << 15;  // 128 KiB: requests that wait have an index, too
  size_t bucket(int32_t first, int32_t second) const;

  // A position stands for the pair of tokens that ends before it; its tokens are what followed the pair.
  std::vector<int32_t> last_;    // [buckets, a power of two] the last position of a pair with this hash; -1: none
  std::vector<int32_t> before_;  // [positions indexed] the position before in the same bucket; -1: none
};

}  // namespace gemma4
