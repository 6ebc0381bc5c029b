// Is this a slow build? Those with sanitizers are: in them tests do less of what differs only in its numbers. Each such
// test runs whole in an optimised build, too (TESTS_ONLY of the preset `test` in CMakePresets.json).
#pragma once

namespace gemma4 {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSlowBuild = true;
#else
constexpr bool kSlowBuild = false;
#endif

}  // namespace gemma4
