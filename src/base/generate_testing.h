// Structured inputs for fuzz targets: JSON texts that readers mostly accept, with strings from a dictionary of what is
// hard: NUL, half surrogate pairs, names of control tokens, long runs, duplicate keys, white space.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace gemma4 {

class Generator {
 public:
  using Members = std::vector<std::pair<std::string, std::string>>;  // names, and values as JSON

  explicit Generator(std::mt19937_64& random) : random_(random) {}

  uint64_t below(uint64_t n) { return n ? random_() % n : 0; }
  bool chance(int percent) { return below(100) < static_cast<uint64_t>(percent); }
  // Mostly few, now and then many.
  size_t count(size_t few, size_t many) { return chance(2) ? below(many) : below(few + 1); }
  std::string pick(std::initializer_list<const char*> words) { return words.begin()[below(words.size())]; }
  template <typename Make>
  std::string repeated(size_t times, const char* between, const Make& make) {
    std::string out;
    for (size_t i = 0; i < times; ++i) out += (i ? between : "") + make(i);
    return out;
  }

  // What stands between the quotes of a JSON string.
  std::string letters() {
    std::string out;
    for (size_t i = count(5, 40); i-- > 0;) {
      const std::string one = pick({"a",
                                    "hello ",
                                    "0",
                                    " ",
                                    "\\n",
                                    "\\n\\n",
                                    "\\t",
                                    "\\u0000",
                                    "\\ud83d",
                                    "\\udc00",
                                    "\\ud83d\\ude00",
                                    "\\uD83D\\ud83d",
                                    "\xc3\xa9",
                                    "\xf0\x9f\x98\x80",
                                    "\xe2\x96\x81",
                                    "\xef\xbf\xbd",
                                    "\\u2028",
                                    "<|turn>",
                                    "<turn|>",
                                    "<|image|>",
                                    "<bos>",
                                    "<|tool_call>",
                                    "<tool_call|>",
                                    "<|channel>thought\\n",
                                    "<channel|>",
                                    "<|\\\"|>",
                                    "\\\\",
                                    "\\\"",
                                    "{",
                                    "}",
                                    "[",
                                    "]",
                                    ":",
                                    ",",
                                    "call:f{",
                                    "true",
                                    "null",
                                    "-1.5e3",
                                    "\\u001f"});
      for (size_t n = chance(2) ? 1 + below(3000) : 1; n-- > 0;) out += one;
    }
    return out;
  }
  std::string string() { return '"' + letters() + '"'; }
  std::string name() { return pick({"f", "g", "get_weather", "a.b-c", "F_1"}); }

  // Mostly as given; now and then a member is doubled, null or after others.
  std::string object(Members members) {
    if (!members.empty() && chance(4)) members.push_back(members[below(members.size())]);
    if (!members.empty() && chance(10)) std::swap(members.front(), members.back());
    const std::string space = chance(10) ? " \n" : "";
    return "{" +
           repeated(members.size(), ",",
                    [&](size_t i) { return space + '"' + members[i].first + "\":" + space + members[i].second; }) +
           "}";
  }
  // An optional member.
  template <typename Make>
  void maybe(Members& members, int percent, const char* name, const Make& make) {
    if (chance(percent)) members.emplace_back(name, chance(3) ? "null" : make());
  }

  std::string value(int depth = 3) {
    switch (below(depth > 0 ? 8 : 6)) {
      case 0:
        return pick({"true", "false", "null"});
      case 1:
        return pick({"0", "-1", "1e300", "0.1", "1e-7", "12345678901234567890123", "-0", "1E2", "9007199254740993"});
      case 6:
        return "[" + repeated(count(3, 100), ",", [&](size_t) { return value(depth - 1); }) + "]";
      case 7:
        return any_object(depth);
      default:
        return string();
    }
  }
  std::string any_object(int depth = 3) {
    Members members;
    for (size_t i = count(3, 100); i-- > 0;) members.emplace_back(letters(), value(depth - 1));
    return object(std::move(members));
  }

  // As tools have it in `parameters`.
  std::string schema(int depth = 3) {
    Members members;
    const std::string type = pick(depth > 0 ? std::initializer_list<const char*>{"object", "array", "string", "integer"}
                                            : std::initializer_list<const char*>{"string", "number", "boolean"});
    members.emplace_back("type", chance(5) ? "[\"" + type + "\",\"null\"]" : '"' + type + '"');
    maybe(members, 40, "description", [&] { return string(); });
    if (type == "object") {
      Members properties;
      for (size_t i = count(3, 50); i-- > 0;) properties.emplace_back(letters(), schema(depth - 1));
      maybe(members, 50, "required", [&] {
        return "[" + repeated(properties.size(), ",", [&](size_t i) { return '"' + properties[i].first + '"'; }) + "]";
      });
      members.emplace_back("properties", object(properties));
    }
    if (type == "array") members.emplace_back("items", schema(depth - 1));
    if (type == "string") {
      maybe(members, 20, "enum",
            [&] { return "[" + repeated(1 + count(3, 50), ",", [&](size_t) { return string(); }) + "]"; });
    }
    maybe(members, 10, "nullable", [&] { return pick({"true", "false"}); });
    return object(std::move(members));
  }

 private:
  std::mt19937_64& random_;
};

}  // namespace gemma4
