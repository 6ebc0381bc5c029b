#!/usr/bin/env python3
"""Prints src/text/schema/unicode_classes.cc: the Unicode properties that patterns may name (\\p{L}).

Needs the package `regex`, which knows Unicode's properties:  python3 tools/unicode_classes.py > FILE
"""
import regex

# Each with the names that patterns use for it.
PROPERTIES = {
    "L": ["L", "Letter"], "Lu": ["Lu", "Uppercase_Letter"], "Ll": ["Ll", "Lowercase_Letter"],
    "M": ["M", "Mark"], "N": ["N", "Number"], "Nd": ["Nd", "Decimal_Number"],
    "P": ["P", "Punctuation"], "S": ["S", "Symbol"], "Z": ["Z", "Separator"], "Emoji": ["Emoji"],
    "Emoji_Component": ["Emoji_Component"], "Emoji_Presentation": ["Emoji_Presentation"],
    "Extended_Pictographic": ["Extended_Pictographic"], "Script=Latin": ["Script=Latin", "sc=Latin"],
    "Script=Greek": ["Script=Greek", "sc=Greek"], "Script=Cyrillic": ["Script=Cyrillic", "sc=Cyrillic"],
    "Script=Han": ["Script=Han", "sc=Han"], "Script=Hiragana": ["Script=Hiragana", "sc=Hiragana"],
    "Script=Katakana": ["Script=Katakana", "sc=Katakana"]}


def ranges(name):
    pattern = regex.compile(r"\p{" + name + "}")
    result = []
    for point in range(0x110000):
        if 0xd800 <= point < 0xe000 or not pattern.match(chr(point)):
            continue
        if result and result[-1][1] == point - 1:
            result[-1][1] = point
        else:
            result.append([point, point])
    return result


def main():
    print("// Made by tools/unicode_classes.py: not edited by hand.")
    print('#include "text/schema/unicode_classes.h"\n')
    print("namespace gemma4 {\nnamespace {\n")
    print("// Of each range: characters since the end of the last one, and characters in it after its first.")
    print("constexpr uint32_t kRanges[] = {")
    line, starts, count = "   ", [], 0
    for name in PROPERTIES:
        starts.append(count)
        end = 0
        for first, last in ranges(name):
            for number in (first - end, last - first):
                if len(line) + len(str(number)) + 2 > 120:
                    print(line)
                    line = "   "
                line += f" {number},"
            end = last + 1
            count += 2
    print(line + "\n};\n")
    print("struct Property {\n  std::string_view name;\n  uint32_t begin, end;  // in kRanges\n};")
    print("constexpr Property kProperties[] = {")
    for names, begin, end in zip(PROPERTIES.values(), starts, starts[1:] + [count]):
        for name in names:
            print(f'    {{"{name}", {begin}, {end}}},')
    print("};\n\n}  // namespace\n")
    print("""std::vector<std::pair<uint32_t, uint32_t>> unicode_class(std::string_view name) {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  for (const Property& property : kProperties) {
    if (property.name != name) continue;
    uint32_t at = 0;
    for (uint32_t i = property.begin; i < property.end; i += 2) {
      at += kRanges[i];
      ranges.emplace_back(at, at + kRanges[i + 1]);
      at += kRanges[i + 1] + 1;
    }
  }
  return ranges;
}

}  // namespace gemma4""")


if __name__ == "__main__":
    main()
