// The values of `format` that are enforced, as patterns. Every other format is an annotation, as JSON Schema has it.
#pragma once

#include <string>
#include <vector>

namespace gemma4 {

// What a pattern of a format is for. They differ for host names, addresses and URIs.
enum class FormatUse {
  kAlone,     // to write one: the usual forms, with limits on their lengths
  kCombined,  // beside other limits: without limits within it, which would make many states
  kCheck,     // to check one, or beside a pattern, which says which form it has: all forms
};

// A pattern of whole strings; null where the format is an annotation.
const std::string* format_pattern(const std::string& format, FormatUse use);

std::vector<std::string> enforced_formats();  // sorted

}  // namespace gemma4
