// CallParser: converts a tool call in the model's own syntax, call:NAME{key:value,...}, to JSON. Ids arrive one by one,
// and JSON goes out as soon as it is certain: text in a string at once, and where a grammar makes the call right, keys
// too; numbers when they are whole. Strings stand between two <|"|> tokens, so they may contain any text. Values get
// the types that the tool's schema gives them: zip:94103 is "94103" where zip is a string. Called by OutputParser.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat/offered_tools.h"
#include "text/tokenizer/tokenizer.h"

namespace gemma4 {

class CallParser {
 public:
  enum Reading {
    kLive,       // a grammar makes the call right
    kBeginning,  // nothing does, and the rest may be missing
    // Nothing does, and all ids come before finish(). Slips of the model are repaired, where only one reading is
    // possible: a comma that is missing between members, or too much at the end; a string without its quotes, or
    // between backticks; a member that comes twice with the same value.
    kWhole
  };
  // `tools`: those that may be called; null: any.
  CallParser(const Tokenizer& tokenizer, std::shared_ptr<const OfferedTools> tools, Reading reading);

  bool push(int32_t id);  // an id between <|tool_call> and <tool_call|>; false: this is no call
  bool finish();          // after the last id; false: it is no whole call

  bool named() const { return state_ > kHead && state_ != kFailed; }
  bool failed() const { return state_ == kFailed; }
  const std::string& name() const { return name_; }
  std::string take() { return std::exchange(out_, ""); }  // JSON of the arguments since the last take()

 private:
  enum State { kHead, kFirst, kKey, kColon, kValue, kString, kAfter, kEnd, kFailed };
  static constexpr char kQuote = '\xff';  // a quote token: no byte of UTF-8
  struct Begun {
    bool object;
    ArgumentPlace place;                        // of the object or array itself
    size_t count = 0;                           // of members or items that were put
    std::map<std::string, std::string> values;  // by key, as JSON; without them if the parser is not for whole calls
    std::string key;                            // the last one
    size_t begin = 0;                           // where its value begins in out_
  };

  bool step();  // false: nothing more can be read now
  bool read_head();
  bool read_first();
  bool read_key();
  bool read_live_key();
  bool read_colon();
  bool read_value();
  bool read_string();
  bool read_after();
  bool read_json_string();
  bool read_backticks();
  bool read_bare();
  bool find_bare_end(size_t& end) const;
  bool split_bare(size_t end);

  bool fail() { return state_ = kFailed, false; }
  bool wait() { return reading_all_ ? fail() : false; }
  bool at_end() const { return at_ >= text_.size(); }
  size_t find(std::string_view any_of, size_t from);
  size_t find_json_quote(size_t from) const;
  bool key_follows(size_t at, std::string* key = nullptr) const;
  bool open(bool object);
  bool close();
  bool begin_item();
  bool value_done();
  bool put_value(const std::string& json) { return put(json), value_done(); }
  void put(std::string_view json) { (muted_at_ > 0 ? muted_ : out_) += json; }
  void put_text(std::string_view text);  // part of a JSON string
  std::string typed(const std::string& text, bool quoted) const;

  const Tokenizer tokenizer_;
  const std::shared_ptr<const OfferedTools> tools_;
  const bool whole_, live_;
  bool reading_all_ = false;  // no more ids come
  const int32_t quote_;
  State state_ = kHead;
  std::string text_;  // what is not read yet, from at_
  size_t at_ = 0;
  size_t searched_ = 0;  // no end of the token at at_ before this
  std::string name_, key_, out_;
  bool key_open_ = false;  // a part of a key was put
  bool holding_ = false;   // a quoted value may yet become a number
  std::vector<Begun> open_;
  ArgumentPlace place_;  // of the value that comes next
  size_t muted_at_ = 0;  // open_.size() of the object that has a key for the second time; its value is not put
  std::string muted_;
};

// The arguments of a call that was cut, as a whole JSON object: its last text, arrays and objects are closed, and a key
// without a value is left out. `begun`: what a CallParser gave.
std::string close_arguments(std::string_view begun);

}  // namespace gemma4
