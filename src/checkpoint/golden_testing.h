// The checkpoints that the tests of this module read from the source folder, and their numbers.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "quant/pack.h"

namespace gemma4::testing_files {

inline const std::filesystem::path kRoot = SOURCE_DIR;
inline const std::filesystem::path kTiny = kRoot / "tests/golden/tiny";
inline const std::filesystem::path kDemo = kRoot / "models/demo";
inline const std::filesystem::path kQuantised = kRoot / "tests/golden/quantised";

inline std::filesystem::path golden(const std::string& name) { return kRoot / "tests/golden" / name; }

inline std::vector<float> row_of(const Matrix& m, int64_t row) {
  std::vector<float> values(static_cast<size_t>(m.cols));
  unpack_row(m, row, values.data());
  return values;
}

inline std::vector<float> row_of(const Checkpoint& checkpoint, const std::string& name, int64_t row) {
  const Weight* weight = checkpoint.find(name);
  EXPECT_NE(weight, nullptr) << name;
  return row_of(weight->matrix, row);
}

inline std::vector<float> floats_of(const Matrix& m) {  // [rows, cols]
  std::vector<float> all;
  for (int64_t row = 0; row < m.rows; ++row) {
    const std::vector<float> values = row_of(m, row);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

}  // namespace gemma4::testing_files
