// Numbers as people type them: decimal, whole, finite. No hex, no octal, no sign +, no spaces.
#pragma once

#include <charconv>
#include <cmath>
#include <string_view>
#include <type_traits>

namespace gemma4 {

enum class NumberText { kGood, kNone, kTooLarge };  // kNone: the text is no such number

// Writes `value` where the whole text is a number that T can hold.
template <class T>
NumberText read_number(std::string_view text, T& value) {
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc::invalid_argument || end != text.data() + text.size()) return NumberText::kNone;
  if (error != std::errc()) return NumberText::kTooLarge;
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(number)) return NumberText::kNone;  // "nan", "inf"
  }
  value = number;
  return NumberText::kGood;
}

}  // namespace gemma4
