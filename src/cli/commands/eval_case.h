// The cases of a golden folder: inputs and outputs of the reference implementation.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace gemma4 {

struct GoldenCase {
  std::string name;
  std::vector<std::string> images;                // file names
  int budget = 0;                                 // soft tokens for each image
  std::vector<int32_t> input_ids;                 // [tokens]
  std::vector<float> logits;                      // [tokens, vocab]
  std::vector<int32_t> greedy_ids;                // [n]
  std::vector<float> greedy_logits;               // [n, vocab]: row i chose greedy_ids[i]
  std::vector<float> pixel_values;                // [patches, 3 * patch * patch], unpadded, image after image
  std::vector<int32_t> pixel_xy;                  // [patches, 2]
  std::vector<int32_t> patches_per_image;         // [images]
  std::vector<float> image_features;              // [soft tokens, hidden]
  std::vector<std::vector<float>> hidden_states;  // [layers + 1][tokens * hidden]: embedding, after each layer but the
                                                  // last, after the final norm
};

std::vector<std::string> golden_names(const std::filesystem::path& folder);  // of cases.json, in its order

// Throws Error if the folder lacks data of the case.
GoldenCase read_golden(const std::filesystem::path& folder, const std::string& name, int layers);

// The path of a case's image: in folder/../images if it is there, otherwise in folder.
std::filesystem::path find_image(const std::filesystem::path& folder, const std::string& name);

// [ids.size()]: for an image token the position of the last token of its image, otherwise -1.
std::vector<int32_t> image_blocks(const std::vector<int32_t>& ids, int32_t image_id);

}  // namespace gemma4
