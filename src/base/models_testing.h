// The two models that tests run, and the demo's pictures: paths from the source folder, where tests run.
#pragma once

#include <string>

namespace gemma4 {

inline const std::string kDemo = SOURCE_DIR "/models/demo";
inline const std::string kTiny = SOURCE_DIR "/tests/golden/tiny";
inline const std::string kImages = SOURCE_DIR "/tests/golden/demo_eval/images/";

}  // namespace gemma4
