#include "text/chat/call_parser.h"

#include <algorithm>

#include "base/exact_json.h"
#include "base/utf8.h"

namespace gemma4 {
namespace {

using nlohmann::json;

constexpr size_t kArgumentDepthMax = 101;
constexpr size_t kQuotedMax = 64;  // bytes of a quoted value that may become a number
constexpr size_t kCallNameMax = 1024;
constexpr size_t kReadTextMax = 4096;  // text that was read is dropped past this
constexpr std::string_view kWhiteSpace = " \t\r\n";

bool is_white(char c) { return kWhiteSpace.find(c) != std::string_view::npos; }

std::string_view strip(std::string_view text) {
  const size_t begin = text.find_first_not_of(kWhiteSpace);
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(kWhiteSpace) - begin + 1);
}

std::string json_string(std::string_view text) { return json(utf8_repair(text)).dump(); }

// The types of a word that is no text: true, false, null, None (as the chat template writes null), numbers. Else 0.
unsigned literal_types(std::string_view word) {
  if (word == "true" || word == "false") return ArgumentPlace::kBoolean;
  if (word == "null" || word == "None") return ArgumentPlace::kNull;
  if (word.empty() || (word[0] != '-' && (word[0] < '0' || word[0] > '9')) || !is_json(word)) return 0;
  const bool whole = word.find_first_of(".eE") == std::string_view::npos;
  return whole ? ArgumentPlace::kNumber | ArgumentPlace::kInteger : ArgumentPlace::kNumber;
}

std::string literal_json(const std::string& word) { return word == "None" ? "null" : word; }

}  // namespace

CallParser::CallParser(const Tokenizer& tokenizer, std::shared_ptr<const OfferedTools> tools, Reading reading)
    : tokenizer_(tokenizer),
      tools_(std::move(tools)),
      whole_(reading == kWhole),
      live_(reading == kLive),
      quote_(tokenizer.find("<|\"|>").value_or(-1)) {}

bool CallParser::push(int32_t id) {
  if (id == quote_) {
    text_ += kQuote;
  } else {
    for (const char c : tokenizer_.piece(id)) {
      if (c == kQuote) {
        text_ += "\xef\xbf\xbd";
      } else {
        text_ += c;
      }
    }
  }
  if (whole_) return true;
  while (step()) {
  }
  if (at_ > kReadTextMax) {
    text_.erase(0, at_);
    searched_ -= std::min(searched_, at_);
    at_ = 0;
  }
  return !failed();
}

bool CallParser::finish() {
  reading_all_ = true;
  while (step()) {
  }
  return state_ == kEnd;
}

bool CallParser::step() {
  if (state_ != kString && state_ != kFailed) {
    while (!at_end() && is_white(text_[at_])) ++at_;
    if (state_ == kEnd) return at_end() ? false : fail();
    if (at_end()) return wait();
  }
  switch (state_) {
    case kHead:
      return read_head();
    case kFirst:
      return read_first();
    case kKey:
      return read_key();
    case kColon:
      return read_colon();
    case kValue:
      return read_value();
    case kString:
      return read_string();
    case kAfter:
      return read_after();
    default:
      return false;
  }
}

// Where one of `any_of` or a quote token is, from `from` on. Looks at no byte twice while the ids of one word arrive.
size_t CallParser::find(std::string_view any_of, size_t from) {
  const size_t found = text_.find_first_of(std::string(any_of) + kQuote, std::max(from, searched_));
  searched_ = found == std::string::npos ? text_.size() : 0;
  return found;
}

bool CallParser::read_head() {
  constexpr std::string_view kCall = "call:";
  const std::string_view text = std::string_view(text_).substr(at_);
  if (!kCall.starts_with(text.substr(0, kCall.size()))) return fail();
  if (text.size() < kCall.size()) return wait();
  const size_t begin = at_ + kCall.size(), end = find("{", begin);
  if (end == std::string::npos) return text.size() > kCallNameMax ? fail() : wait();
  name_ = strip(std::string_view(text_).substr(begin, end - begin));
  if (text_[end] == kQuote || name_.empty() || name_.find_first_of(kWhiteSpace) != std::string::npos) return fail();
  if (tools_) {
    const auto* parameters = tools_->parameters(name_);
    if (parameters == nullptr) return fail();
    place_ = ArgumentPlace(*parameters);
  }
  name_ = utf8_repair(name_);
  at_ = end;
  return open(true);
}

bool CallParser::open(bool object) {
  if (open_.size() >= kArgumentDepthMax) return fail();
  put(object ? "{" : "[");
  open_.push_back({.object = object, .place = place_});
  ++at_;
  state_ = kFirst;
  return true;
}

bool CallParser::close() {
  ++at_;
  put(open_.back().object ? "}" : "]");
  open_.pop_back();
  return value_done();
}

bool CallParser::value_done() {
  state_ = kAfter;
  if (open_.empty()) return state_ = kEnd, true;
  Begun& top = open_.back();
  if (muted_at_ == open_.size()) {
    muted_at_ = 0;
    if (whole_ && top.values[top.key] != muted_) return fail();
  } else if (whole_ && top.object && muted_at_ == 0) {
    top.values[top.key] = out_.substr(top.begin);
  }
  return true;
}

bool CallParser::read_first() {
  const bool object = open_.back().object;
  if (text_[at_] == (object ? '}' : ']')) return close();
  if (!object) return begin_item();
  state_ = kKey;
  return true;
}

bool CallParser::begin_item() {
  Begun& top = open_.back();
  if (top.count > 0) put(",");
  place_ = top.place.item(top.count++);
  state_ = kValue;
  return true;
}

// A grammar makes keys bare words. One that comes twice is put twice.
bool CallParser::read_live_key() {
  const size_t end = text_.find_first_of(":{}[],\"\xff", at_);
  const bool ends = end != std::string::npos;
  const std::string_view rest = std::string_view(text_).substr(at_, ends ? end - at_ : std::string::npos);
  const std::string part(rest.substr(0, ends ? rest.size() : utf8_complete(rest)));
  if (!key_open_) {
    if (part.empty()) return ends ? fail() : wait();
    key_.clear();
    put("\"");
    key_open_ = true;
  }
  put_text(part);
  key_ += part;
  at_ += part.size();
  if (!ends) return wait();
  if (text_[end] != ':') return fail();
  ++at_;
  put("\":");
  key_open_ = false;
  place_ = open_.back().place.member(utf8_repair(key_));
  state_ = kValue;
  return true;
}

bool CallParser::read_key() {
  if (live_) return read_live_key();
  if (whole_ && text_[at_] == '}') return close();  // a comma too much
  if (text_[at_] == kQuote) {
    const size_t end = find("", at_ + 1);
    if (end == std::string::npos) return wait();
    key_ = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
  } else if (text_[at_] == '"') {
    const size_t end = find_json_quote(at_ + 1);
    if (end == std::string::npos) return wait();
    const json value = read_json_or_discard<json>(text_.substr(at_, end + 1 - at_));
    if (!value.is_string()) return fail();
    key_ = value.get<std::string>();
    at_ = end + 1;
  } else {
    const size_t end = find(":{}[],", at_);
    if (end == std::string::npos) return wait();
    key_ = strip(std::string_view(text_).substr(at_, end - at_));
    if (text_[end] != ':' || key_.empty()) return fail();
    at_ = end;
  }
  key_ = utf8_repair(key_);
  state_ = kColon;
  return true;
}

bool CallParser::read_colon() {
  if (text_[at_] != ':') return fail();
  ++at_;
  Begun& top = open_.back();
  if (top.values.try_emplace(key_).second) {
    put((top.count++ > 0 ? "," : "") + json_string(key_) + ":");
  } else if (muted_at_ == 0) {  // the first value stands
    muted_at_ = open_.size();
    muted_.clear();
  } else if (whole_) {
    return fail();
  }
  place_ = top.place.member(key_);
  top.begin = out_.size();
  top.key = key_;
  state_ = kValue;
  return true;
}

bool CallParser::read_value() {
  switch (text_[at_]) {
    case kQuote:
      ++at_;
      holding_ = !place_.may_be(ArgumentPlace::kString);
      if (!holding_) put("\"");
      state_ = kString;
      return true;
    case '{':
    case '[':
      return open(text_[at_] == '{');
    case '"':
      return read_json_string();
    case '`':
      return whole_ ? read_backticks() : read_bare();
    default:
      return read_bare();
  }
}

void CallParser::put_text(std::string_view text) {
  const std::string quoted = json_string(text);
  put(std::string_view(quoted).substr(1, quoted.size() - 2));
}

bool CallParser::read_string() {
  const size_t end = text_.find(kQuote, at_);
  const bool ends = end != std::string::npos;
  if (holding_) {
    if (ends) {
      const std::string text = text_.substr(at_, end - at_);
      at_ = end + 1;
      return put_value(typed(text, true));
    }
    if (text_.size() - at_ <= kQuotedMax) return wait();
    holding_ = false;
    put("\"");
  }
  const std::string_view rest = std::string_view(text_).substr(at_, ends ? end - at_ : std::string::npos);
  const size_t length = ends ? rest.size() : utf8_complete(rest);
  put_text(rest.substr(0, length));
  at_ += length;
  if (!ends) return wait();
  ++at_;
  return put_value("\"");
}

// The closing quote of a string in JSON's syntax, whose text begins at `from`.
size_t CallParser::find_json_quote(size_t from) const {
  for (size_t i = from; i < text_.size(); ++i) {
    if (text_[i] == '"' || text_[i] == kQuote) return i;
    i += text_[i] == '\\';
  }
  return std::string::npos;
}

bool CallParser::read_json_string() {
  const size_t end = find_json_quote(at_ + 1);
  if (end == std::string::npos) return wait();
  const json value = read_json_or_discard<json>(text_.substr(at_, end + 1 - at_));
  if (!value.is_string()) return fail();
  at_ = end + 1;
  return put_value(typed(value.get<std::string>(), true));
}

// `text`: where no backtick is within.
bool CallParser::read_backticks() {
  const size_t end = text_.find('`', at_ + 1);
  if (end == std::string::npos || text_.find_first_of(kQuote, at_ + 1) < end) return fail();
  const size_t after = text_.find_first_not_of(kWhiteSpace, end + 1);
  if (after == std::string::npos || std::string_view(",}]").find(text_[after]) == std::string_view::npos) return fail();
  const std::string text = text_.substr(at_ + 1, end - at_ - 1);
  at_ = end + 1;
  return put_value(typed(text, true));
}

bool CallParser::read_bare() {
  size_t end = find(",}]", at_);
  if (end == std::string::npos) return wait();
  const auto text = [&] { return std::string(strip(std::string_view(text_).substr(at_, end - at_))); };
  if (text_[end] == kQuote || text().empty()) return fail();
  if (live_ && literal_types(text()) == 0) return fail();
  if (whole_ && literal_types(text()) == 0) {
    if (!find_bare_end(end)) return fail();
    if (split_bare(end)) return !failed();
  }
  const std::string word = text();
  at_ = end;
  return put_value(typed(word, false));
}

// Whether a key and its colon come next.
bool CallParser::key_follows(size_t at, std::string* key) const {
  const auto skip = [&] { at = std::min(text_.find_first_not_of(kWhiteSpace, at), text_.size()); };
  skip();
  if (at >= text_.size()) return false;
  size_t begin = at, end = at;
  if (text_[at] == kQuote || text_[at] == '"') {
    ++begin;
    end = text_[at] == '"' ? find_json_quote(begin) : text_.find(kQuote, begin);
    if (end == std::string::npos) return false;
    at = end + 1;
  } else {
    constexpr std::string_view kEnds = ":{}[],\"`\xff \t\r\n";
    end = at = std::min(text_.find_first_of(kEnds, at), text_.size());
  }
  if (key != nullptr) *key = text_.substr(begin, end - begin);
  skip();
  return end > begin && at < text_.size() && text_[at] == ':';
}

// Moves `end` on from the first of ",}]" after a word without quotes: in an object a comma ends the word only where a
// key follows.
bool CallParser::find_bare_end(size_t& end) const {
  const bool object = open_.back().object;
  while (true) {
    const char c = text_[end];
    if (c == kQuote || (c == '}' && !object)) return false;
    if (!object || c == '}' || (c == ',' && key_follows(end + 1))) return true;
    const size_t next = text_.find_first_not_of(kWhiteSpace, end + 1);
    if (c == ',' && next != std::string::npos && text_[next] == '}') return true;  // a comma too much
    end = text_.find_first_of(",}]\xff", end + 1);
    if (end == std::string::npos) return false;
  }
}

// {a:1 b:2}: the text "1 b:2", or a member b after a comma that is missing. True where it is not the text: then the
// value is read, or it may be either and the call is given up.
bool CallParser::split_bare(size_t end) {
  std::string key;
  size_t at = at_;
  while (at < end && !(is_white(text_[at]) && key_follows(at, &key))) ++at;
  if (at >= end) return false;
  const Begun& top = open_.back();
  const std::string before(strip(std::string_view(text_).substr(at_, at - at_)));
  const unsigned types = literal_types(before);
  const bool text = place_.may_be(ArgumentPlace::kString);
  const bool member = top.object && (!tools_ || top.place.declares(key)) && !top.values.contains(key) &&
                      (text || (types != 0 && place_.may_be(types)));
  if (text && !member) return false;
  if (text == member) return fail(), true;
  at_ = at;
  put_value(typed(before, false));
  return true;
}

bool CallParser::read_after() {
  const bool object = open_.back().object;
  const char c = text_[at_];
  if (c == (object ? '}' : ']')) return close();
  if (c == ',') {
    ++at_;
    if (object && live_) put(",");
    if (object) return state_ = kKey, true;
    const size_t next = whole_ ? text_.find_first_not_of(kWhiteSpace, at_) : std::string::npos;
    if (next == std::string::npos || text_[next] != ']') return begin_item();
    at_ = next;  // a comma too much
    return close();
  }
  if (!whole_) return fail();
  if (object && key_follows(at_)) return state_ = kKey, true;  // a comma is missing
  if (!object && (c == kQuote || c == '{' || c == '[')) return begin_item();
  return fail();
}

// The value as JSON.
std::string CallParser::typed(const std::string& text, bool quoted) const {
  const unsigned types = place_.types(), literal = literal_types(text);
  if (quoted) {
    const bool is_text = (types & ArgumentPlace::kString) || (types & literal) == 0 || text.size() > kQuotedMax;
    return is_text ? json_string(text) : literal_json(text);
  }
  if (literal == 0) return json_string(text);
  const bool is_literal = (types & literal) || literal == ArgumentPlace::kNull || (types & ArgumentPlace::kString) == 0;
  return is_literal ? literal_json(text) : json_string(text);
}

std::string close_arguments(std::string_view begun) {
  std::string out(begun.empty() ? "{" : begun);
  std::string closers;
  bool in_string = false, in_key = false;
  size_t member = 0;  // where the last key, or the comma before it, begins
  for (size_t i = 0; i < out.size(); ++i) {
    const char c = out[i];
    if (in_string) {
      i += c == '\\';
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
      in_key = closers.ends_with('}') && (out[i - 1] == '{' || out[i - 1] == ',');
      if (out[i - 1] == '{') member = i;
    } else if (c == '{' || c == '[') {
      closers += c == '{' ? '}' : ']';
    } else if (c == '}' || c == ']') {
      closers.pop_back();
    } else if (c == ',') {
      member = i;
    }
  }
  if (in_string && !in_key) {
    out += '"';
  } else if (in_string || out.ends_with(':')) {
    out.erase(member);
  } else if (out.ends_with(',')) {
    out.pop_back();
  }
  return out.append(closers.rbegin(), closers.rend());
}

}  // namespace gemma4
