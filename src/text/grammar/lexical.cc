#include "text/grammar/lexical.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/utf8.h"
#include "text/grammar/character_set.h"

namespace gemma4 {
namespace {

constexpr uint32_t kIndentMax = 40;
constexpr const char* kHex = "0123456789abcdef";

ByteSet one_of_bytes(std::string_view bytes) {
  ByteSet set;
  for (const char c : bytes) set.set(static_cast<unsigned char>(c));
  return set;
}

// How JSON writes a character that may not stand in a string as it is.
std::string escaped(unsigned char c) {
  const size_t short_form = std::string_view("\"\\\b\f\n\r\t").find(static_cast<char>(c));
  if (short_form != std::string_view::npos) return std::string("\\") + "\"\\bfnrt"[short_form];
  return std::string("\\u00") + kHex[c >> 4] + kHex[c & 15];
}

// What makes the nodes of a character.
enum Maker : uint32_t { kUtf8, kAnyCharacter, kCharacters, kKeyCharacter };

// Nodes of the automaton for sequences of byte ranges: bytes after which the same may follow share a node, so that a
// class of many characters has few states.
class CharacterNodes {
 public:
  CharacterNodes(PushdownAutomaton& automaton, int next) : a_(automaton), next_(next) {}

  int node(const std::vector<std::string>& sequences) {  // in order, without overlap; at most 4 ranges each
    a_.budget().charge(20 + 4 * sequences.size());
    if (sequences[0].empty()) return next_;
    const auto [known, is_new] = nodes_.try_emplace(sequences, -1);
    if (!is_new) return known->second;
    std::map<std::vector<std::string>, ByteSet> after;  // what may follow, and after which bytes
    size_t from = 0;
    for (int byte = first_of(sequences.front()); byte <= last_of(sequences.back()); ++byte) {
      while (last_of(sequences[from]) < byte) ++from;
      std::vector<std::string> rests;
      for (size_t i = from; i < sequences.size() && first_of(sequences[i]) <= byte; ++i) {
        rests.push_back(sequences[i].substr(2));
      }
      if (!rests.empty()) after[std::move(rests)].set(static_cast<size_t>(byte));
    }
    std::vector<int> choices;
    for (const auto& [rests, set] : after) choices.push_back(a_.bytes(set, node(rests)));
    return known->second = a_.split(std::move(choices));
  }

 private:
  static int first_of(const std::string& sequence) { return static_cast<unsigned char>(sequence[0]); }
  static int last_of(const std::string& sequence) { return static_cast<unsigned char>(sequence[1]); }

  PushdownAutomaton& a_;
  const int next_;
  std::map<std::vector<std::string>, int> nodes_;
};

// A trie of names, for what is none of them: a character with which no name continues leads to `free`, where all is
// allowed. `wide` is any character past ASCII, then `free`.
class NameTrie {
 public:
  NameTrie(PushdownAutomaton& automaton, const std::vector<std::string>& names, const ByteSet& ascii, int end, int free,
           int wide, bool bare)
      : a_(automaton), names_(names), ascii_(ascii), end_(end), free_(free), wide_(wide), bare_(bare) {
    std::sort(names_.begin(), names_.end());
  }

  int build() {
    open_.push_back({{}, {}, ascii_, false, false, 0});
    for (const std::string& name : names_) {
      const auto differs = std::mismatch(path_.begin(), path_.end(), name.begin(), name.end()).first;
      size_t level = 1;  // the levels that this name shares with the last one
      while (level < open_.size() && open_[level].end <= static_cast<size_t>(differs - path_.begin())) ++level;
      close_to(level);
      for (size_t at = open_.back().end; at < name.size();) {
        const size_t length = std::max<size_t>(utf8_length(std::string_view(name).substr(at)), 1);
        at += length;
        open_.push_back({name.substr(at - length, length), {}, ascii_, false, false, at});
      }
      path_ = name;
      open_.back().is_name = true;
    }
    close_to(1);
    return close_level();
  }

 private:
  struct Level {
    std::string character;  // that leads here
    std::vector<int> choices;
    ByteSet left;        // the characters with which no name continues
    bool wide, is_name;  // a name continues with a character past ASCII; a name ends here
    size_t end;          // bytes of the path up to here
  };

  void close_to(size_t levels) {
    while (open_.size() > levels) {
      const std::string character = open_.back().character;
      const int node = a_.literal(character, close_level());
      open_.back().choices.push_back(node);
      if (character.size() == 1) open_.back().left.reset(static_cast<unsigned char>(character[0]));
      open_.back().wide |= character.size() > 1;
    }
  }

  int close_level() {
    Level level = std::move(open_.back());
    open_.pop_back();
    const bool first = open_.empty();
    if (!level.is_name && !(bare_ && first)) level.choices.push_back(end_);
    if (level.left.any()) level.choices.push_back(a_.bytes(level.left, free_));
    if (!level.wide) level.choices.push_back(wide_);
    return a_.split(std::move(level.choices));
  }

  PushdownAutomaton& a_;
  std::vector<std::string> names_;
  const ByteSet ascii_;
  const int end_, free_, wide_;
  const bool bare_;  // without quotes: not empty
  std::string path_;
  std::vector<Level> open_;
};

}  // namespace

// Of nodes that are equal but for what follows.
std::vector<uint32_t> LexicalGrammar::made_like(uint32_t maker, const std::vector<PointRange>& ranges) const {
  std::vector<uint32_t> what = {maker, static_cast<uint32_t>(syntax_)};
  for (const auto& [first, last] : ranges) what.insert(what.end(), {first, last});
  return what;
}

int LexicalGrammar::space(int next) {
  if (syntax_ != Syntax::kJson) return next;
  const int indent = a_.loop(a_.bytes(one_of_bytes(" \t"), a_.finish()), 0, kIndentMax, next);
  return a_.split({next, a_.byte(' ', next), a_.byte('\n', indent)});
}

int LexicalGrammar::open_quote(int next) {
  if (syntax_ == Syntax::kPlain) return next;
  return syntax_ == Syntax::kGemma ? a_.symbol(kQuote, next) : a_.byte('"', next);
}

int LexicalGrammar::utf8(const std::vector<PointRange>& ranges, int next) {
  const PushdownAutomaton::Group one(a_, made_like(kUtf8, ranges));
  std::vector<std::string> sequences;
  for (const auto& [first, last] : ranges) add_utf8_sequences(first, last, sequences);
  CHECK(!sequences.empty());
  return CharacterNodes(a_, next).node(sequences);
}

// The rest of an escape after the backslash. Surrogates are excluded, so that every string is valid Unicode.
int LexicalGrammar::escape(int next) {
  const ByteSet hex = one_of_bytes("0123456789abcdefABCDEF");
  const int two = a_.bytes(hex, a_.bytes(hex, next));
  const int plain = a_.bytes(one_of_bytes("0123456789abcefABCEF"), a_.bytes(hex, two));
  const int below = a_.bytes(one_of_bytes("dD"), a_.bytes(one_of_bytes("01234567"), two));
  return a_.split({a_.bytes(one_of_bytes("\"\\/bfnrt"), next), a_.byte('u', a_.split({plain, below}))});
}

int LexicalGrammar::character(int next) {
  const PushdownAutomaton::Group one(a_, made_like(kAnyCharacter, {}));
  if (syntax_ != Syntax::kJson) return utf8({{0, 0x10ffff}}, next);
  const int above = utf8({{0x80, 0x10ffff}}, next);
  const ByteSet ascii = byte_range(0x20, 0x7f) & ~one_of_bytes("\"\\");
  return a_.split({a_.bytes(ascii, next), above, a_.byte('\\', escape(next))});
}

int LexicalGrammar::characters(const std::vector<PointRange>& ranges, int next) {
  const PushdownAutomaton::Group one(a_, made_like(kCharacters, ranges));
  std::vector<int> choices;
  std::vector<PointRange> wide;
  ByteSet ascii;
  for (auto [first, last] : ranges) {
    if (first >= 0xd800 && first <= 0xdfff) first = 0xe000;  // surrogates are no characters
    if (last >= 0xd800 && last <= 0xdfff) last = 0xd7ff;
    if (first > last) continue;
    if (last >= 0x80) wide.emplace_back(std::max<uint32_t>(first, 0x80), last);
    if (first < 0x80) ascii |= byte_range(static_cast<int>(first), static_cast<int>(std::min<uint32_t>(last, 0x7f)));
  }
  if (!wide.empty()) choices.push_back(utf8(wide, next));
  std::vector<std::vector<int>> escapes;
  for (uint32_t c = 0; c < 0x80; ++c) {
    if (syntax_ != Syntax::kJson || !ascii[c] || (c >= 0x20 && c != '"' && c != '\\')) continue;
    ascii.reset(c);  // JSON writes these as escapes
    const std::string text = escaped(static_cast<unsigned char>(c));
    escapes.emplace_back(text.begin(), text.end());
  }
  if (!escapes.empty()) choices.push_back(a_.one_of(std::move(escapes), next));
  if (ascii.any()) choices.push_back(a_.bytes(ascii, next));
  if (choices.empty()) return a_.nothing();
  return a_.split(std::move(choices));
}

int LexicalGrammar::string(uint32_t least, uint32_t most, int next) {
  const int close = close_quote(next);
  if (least == 0 && most == kUnbounded) {
    const int again = a_.reserve();
    a_.set(again, a_.split({close, character(again)}));
    return open_quote(again);
  }
  return open_quote(a_.loop(character(a_.finish()), least, most, close));
}

std::vector<int> LexicalGrammar::quoted(std::string_view text) const {
  std::vector<int> inputs;
  const auto put = [&](std::string_view bytes) {
    for (const char c : bytes) inputs.push_back(static_cast<unsigned char>(c));
  };
  const bool gemma = syntax_ == Syntax::kGemma;
  inputs.push_back(gemma ? static_cast<int>(kQuote) : '"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (gemma || (byte >= 0x20 && c != '"' && c != '\\')) {
      inputs.push_back(byte);
    } else {
      put(escaped(byte));
    }
  }
  inputs.push_back(gemma ? static_cast<int>(kQuote) : '"');
  return inputs;
}

int LexicalGrammar::key_other_than(const std::vector<std::string>& names, int next) {
  const bool gemma = syntax_ == Syntax::kGemma;
  // Gemma's keys are bare words, so they cannot contain a delimiter.
  const std::string_view kEnds = gemma ? std::string_view(":,{}[]\" \t\r\n<>") : std::string_view("\"\\");
  std::vector<PointRange> allowed;
  for (uint32_t c = 0x20; c < 0x80; ++c) {
    if (kEnds.find(static_cast<char>(c)) == std::string_view::npos) allowed.emplace_back(c, c);
  }
  ByteSet ascii;
  for (const auto& range : allowed) ascii.set(range.first);
  const int end = gemma ? next : close_quote(next);
  const int free = a_.reserve();
  int wide = -1;
  {
    const PushdownAutomaton::Group one(a_, made_like(kKeyCharacter, {}));
    wide = utf8({{0x80, 0x10ffff}}, free);
    a_.set(free, a_.split({end, a_.bytes(ascii, free), wide}));
  }
  const int start = NameTrie(a_, names, ascii, end, free, wide, gemma).build();
  return gemma ? start : open_quote(start);
}

}  // namespace gemma4
