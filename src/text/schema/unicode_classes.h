// The characters of a Unicode property that patterns name: \p{L}, \p{Lu}, \p{Emoji}. Made by tools/unicode_classes.py.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace gemma4 {

// Code points first .. last, both included, sorted; empty for a property that is not known here.
std::vector<std::pair<uint32_t, uint32_t>> unicode_class(std::string_view name);

}  // namespace gemma4
