#include "text/schema/string_set.h"

#include <algorithm>
#include <set>

#include "base/utf8.h"

namespace gemma4 {
namespace {

constexpr size_t kNfaNodesMax = 20'000, kSetsMax = 2000;
constexpr size_t kStatesKept = 5000;  // while a string is read
constexpr uint64_t kNfaNodeBytes = 64, kDfaStepsMax = 2'500'000;
constexpr int32_t kNotMade = -2, kDead = -1;

bool in_ranges(const std::vector<PointRange>& ranges, uint32_t point) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), PointRange(point, kLastPoint));
  return after != ranges.begin() && std::prev(after)->second >= point;
}

bool looks_ahead(const Regex& regex) {
  return regex.type == Regex::kLookahead || std::any_of(regex.operands.begin(), regex.operands.end(), looks_ahead);
}

}  // namespace

std::unique_ptr<StringSet> StringSet::make(const Terms& terms, WorkBudget& budget) {
  std::unique_ptr<StringSet> set(new StringSet(budget));
  const Regex* main = nullptr;
  for (const Regex* regex : terms.found) {
    if (main == nullptr || looks_ahead(*regex)) main = regex;
  }
  int32_t begin = set->anything(set->add({kAccept}));
  if (main != nullptr) begin = set->search(*main, begin, false);
  const auto require = [&](int32_t condition, bool negative) {
    if (condition < 0) return;
    begin = set->add({kLook, negative, condition, begin});
  };
  for (const Regex* regex : terms.found) {
    if (regex != main) require(set->search(*regex, set->add({kAccept}), true), false);
  }
  for (const Regex* regex : terms.not_found) require(set->search(*regex, set->add({kAccept}), true), true);
  if (terms.least > 0 || terms.most != kNoLimit) {
    Regex any{Regex::kCharacters};
    any.ranges = {{0, kLastPoint}};
    const Regex length = Regex::repeat(std::move(any), terms.least, terms.most);
    require(set->build(length, set->add({kEndHere, false, -1, set->add({kAccept})}), true), false);
  }
  set->begin_ = begin;
  if (set->too_large_) return nullptr;
  set->divide_alphabet();
  set->obligation_sets_.emplace_back();
  set->obligation_set_numbers_.emplace(Nodes(), 0);
  return set;
}

// The nondeterministic automaton.

int32_t StringSet::add(Node node) {
  if (nodes_.size() >= kNfaNodesMax) too_large_ = true;
  if (too_large_) return 0;
  spend(10);
  held_.add(kNfaNodeBytes);
  nodes_.push_back(node);
  return static_cast<int32_t>(nodes_.size()) - 1;
}

int32_t StringSet::add_set(const std::vector<PointRange>& ranges, int32_t next) {
  spend(ranges.size());
  const auto [found, is_new] = set_numbers_.try_emplace(ranges, static_cast<int32_t>(sets_.size()));
  if (is_new) sets_.push_back(ranges);
  if (sets_.size() > kSetsMax) too_large_ = true;
  return add({kSet, false, found->second, next});
}

int32_t StringSet::add_split(Nodes choices) {
  lists_.push_back(std::move(choices));
  return add({kSplit, false, static_cast<int32_t>(lists_.size()) - 1});
}

int32_t StringSet::anything(int32_t next) {
  const int32_t again = add_split({next});
  const int32_t any = add_set({{0, kLastPoint}}, again);
  if (!too_large_) lists_[static_cast<size_t>(nodes_[static_cast<size_t>(again)].a)].push_back(any);
  return again;
}

int32_t StringSet::search(const Regex& regex, int32_t next, bool inside) {
  return anything(build(regex, next, inside));
}

int32_t StringSet::build(const Regex& regex, int32_t next, bool inside) {
  if (too_large_) return 0;
  switch (regex.type) {
    case Regex::kCharacters:
      return add_set(regex.ranges, next);
    case Regex::kSequence:
      for (size_t i = regex.operands.size(); i-- > 0;) next = build(regex.operands[i], next, inside);
      return next;
    case Regex::kChoice: {
      Nodes choices;
      for (const Regex& operand : regex.operands) choices.push_back(build(operand, next, inside));
      return add_split(std::move(choices));
    }
    case Regex::kRepeat:
      return build_repeat(regex, next, inside);
    case Regex::kLookahead:
      if (inside) too_large_ = true;  // a condition within a condition
      return add({kLook, regex.negative, build(regex.operands[0], add({kAccept}), true), next});
    case Regex::kBegin:
      return add({kBeginHere, false, -1, next});
    case Regex::kEnd:
      return add({kEndHere, false, -1, next});
    case Regex::kWordBoundary:
      boundaries_ = true;
      return add({kBoundary, regex.negative, -1, next});
    case Regex::kGroup:
      return build(regex.operands[0], next, inside);
    case Regex::kBackReference:
    case Regex::kLookbehind:
    case Regex::kAtomic:
      too_large_ = true;  // no automaton says these; callers take without_references()
      break;
  }
  return next;
}

int32_t StringSet::build_repeat(const Regex& regex, int32_t next, bool inside) {
  const Regex& body = regex.operands[0];
  if (regex.most == kNoLimit) {
    const int32_t again = add_split({next});
    const int32_t one = build(body, again, inside);
    if (too_large_) return 0;
    lists_[static_cast<size_t>(nodes_[static_cast<size_t>(again)].a)].push_back(one);
    next = again;
  } else {
    for (uint32_t i = regex.least; i < regex.most && !too_large_; ++i) {
      next = add_split({next, build(body, next, inside)});
    }
  }
  for (uint32_t i = 0; i < regex.least && !too_large_; ++i) next = build(body, next, inside);
  return next;
}

// Characters that are in the same sets are one class.
void StringSet::divide_alphabet() {
  if (boundaries_) {
    word_set_ = static_cast<int32_t>(sets_.size());
    sets_.push_back({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
  }
  std::set<uint32_t> begins = {0};
  for (const std::vector<PointRange>& set : sets_) {
    for (const auto& [first, last] : set) {
      begins.insert(first);
      if (last < kLastPoint) begins.insert(last + 1);
    }
  }
  std::map<std::vector<bool>, int32_t> classes;
  for (const uint32_t begin : begins) {
    spend(sets_.size());
    std::vector<bool> in_set;
    for (const std::vector<PointRange>& set : sets_) in_set.push_back(in_ranges(set, begin));
    const auto [found, is_new] = classes.try_emplace(in_set, static_cast<int32_t>(class_in_set_.size()));
    if (is_new) class_in_set_.push_back(std::move(in_set));
    interval_begins_.push_back(begin);
    interval_classes_.push_back(found->second);
  }
}

int32_t StringSet::class_of(uint32_t point) const {
  const auto after = std::upper_bound(interval_begins_.begin(), interval_begins_.end(), point);
  return interval_classes_[static_cast<size_t>(after - interval_begins_.begin()) - 1];
}

// Walking it.

// Of a condition, which has no conditions in it.
bool StringSet::follow(Nodes from, const Where& where, Nodes& out) const {
  std::set<int32_t> seen;
  while (!from.empty()) {
    const int32_t at = from.back();
    from.pop_back();
    if (!seen.insert(at).second) continue;
    spend(5);
    const Node& node = nodes_[static_cast<size_t>(at)];
    const bool known = where.following != kUnknown;
    if (node.op == kAccept) return true;
    if (node.op == kSplit) {
      const Nodes& list = lists_[static_cast<size_t>(node.a)];
      from.insert(from.end(), list.begin(), list.end());
    } else if (node.op == kBeginHere) {
      if (where.at_start) from.push_back(node.next);
    } else if (node.op == kSet || !known) {
      out.push_back(at);
    } else if (node.op == kEndHere ? where.following == kAtEnd
                                   : (where.after_word != (where.following == kWord)) != node.negative) {
      from.push_back(node.next);
    }
  }
  std::sort(out.begin(), out.end());
  return false;
}

int32_t StringSet::with_obligation(int32_t obligations, bool negative, const Nodes& nodes) {
  const std::pair<bool, Nodes> key(negative, nodes);
  const auto [found, is_new] = obligation_numbers_.try_emplace(key, static_cast<int32_t>(obligations_.size()));
  if (is_new) obligations_.push_back(key);
  Nodes set = obligation_sets_[static_cast<size_t>(obligations)];
  const auto at = std::lower_bound(set.begin(), set.end(), found->second);
  if (at != set.end() && *at == found->second) return obligations;
  set.insert(at, found->second);
  spend(20 + nodes.size());
  held_.add((set.size() + nodes.size()) * 8 + 100);
  const auto [number, is_new_set] =
      obligation_set_numbers_.try_emplace(set, static_cast<int32_t>(obligation_sets_.size()));
  if (is_new_set) obligation_sets_.push_back(std::move(set));
  return number->second;
}

template <typename Advance>
int32_t StringSet::advanced(int32_t obligations, const Where& where, const Advance& advance) {
  int32_t result = 0;
  const Nodes all = obligation_sets_[static_cast<size_t>(obligations)];
  for (const int32_t one : all) {
    const auto [negative, nodes] = obligations_[static_cast<size_t>(one)];
    Nodes after;
    const bool met = follow(advance(nodes), where, after);
    const bool over = met || after.empty() || where.following == kAtEnd;
    if (over && met == negative) return kDead;
    if (!over) result = with_obligation(result, negative, after);
  }
  return result;
}

// The items that read a character, or wait for what is not known yet.
std::vector<StringSet::Item> StringSet::closure(std::vector<Item> work, const Where& where) {
  std::set<Item> seen;
  std::vector<Item> out;
  while (!work.empty()) {
    const Item item = work.back();
    work.pop_back();
    if (!seen.insert(item).second) continue;
    spend(10);
    const Node node = nodes_[static_cast<size_t>(item.node)];
    const bool known = where.following != kUnknown;
    if (node.op == kSplit) {
      for (const int32_t choice : lists_[static_cast<size_t>(node.a)]) work.push_back({choice, item.obligations});
    } else if (node.op == kBeginHere) {
      if (where.at_start) work.push_back({node.next, item.obligations});
    } else if (node.op == kLook) {
      Nodes nodes;
      const bool met = follow({node.a}, where, nodes), over = met || nodes.empty() || where.following == kAtEnd;
      if (over && met == node.negative) continue;
      work.push_back({node.next, over ? item.obligations : with_obligation(item.obligations, node.negative, nodes)});
    } else if (node.op == kSet || node.op == kAccept || !known) {
      out.push_back(item);
    } else if (node.op == kEndHere ? where.following == kAtEnd
                                   : (where.after_word != (where.following == kWord)) != node.negative) {
      work.push_back({node.next, item.obligations});
    }
  }
  std::sort(out.begin(), out.end());
  // Where a path is free of obligations, the same path with some adds nothing.
  int32_t free = -1;
  std::erase_if(out, [&](const Item& item) {
    if (item.obligations == 0) free = item.node;
    return item.obligations != 0 && item.node == free;
  });
  return out;
}

int32_t StringSet::number_of(State state) {
  if (state.items.empty()) return kDead;
  Nodes key = {state.at_start, state.after_word};
  for (const Item& item : state.items) key.insert(key.end(), {item.node, item.obligations});
  spend(10 + key.size());
  const auto [found, is_new] = state_numbers_.try_emplace(std::move(key), static_cast<int32_t>(states_.size()));
  if (is_new) {
    held_.add(state.items.size() * 24 + class_in_set_.size() * 4 + 200);
    states_.push_back(std::move(state));
    steps_.emplace_back(class_in_set_.size(), kNotMade);
  }
  return found->second;
}

int32_t StringSet::start() {
  State state;
  state.at_start = true;
  state.items = closure({{begin_, 0}}, {true, false, kUnknown});
  return number_of(std::move(state));
}

int32_t StringSet::step(int32_t number, int32_t character_class) {
  if (number == kDead) return kDead;
  const int32_t known = steps_[static_cast<size_t>(number)][static_cast<size_t>(character_class)];
  if (known != kNotMade) return known;
  const std::vector<bool>& in_set = class_in_set_[static_cast<size_t>(character_class)];
  const State from = states_[static_cast<size_t>(number)];
  const bool word = word_set_ >= 0 && in_set[static_cast<size_t>(word_set_)];
  const Where here{from.at_start, from.after_word, word ? kWord : kNoWord}, there{false, word, kUnknown};
  std::vector<Item> items = from.items, moved;
  if (boundaries_) items = closure(std::move(items), here);
  std::map<int32_t, int32_t> after;  // of obligations
  const auto move = [&](const Nodes& nodes) {
    Nodes next, settled;
    if (boundaries_) {
      if (follow(nodes, here, settled)) return Nodes{0};  // the first node is kAccept
    } else {
      settled = nodes;
    }
    for (const int32_t at : settled) {
      const Node& node = nodes_[static_cast<size_t>(at)];
      if (node.op == kSet && in_set[static_cast<size_t>(node.a)]) next.push_back(node.next);
    }
    return next;
  };
  for (const Item& item : items) {
    const Node node = nodes_[static_cast<size_t>(item.node)];
    spend(2);
    if (node.op != kSet || !in_set[static_cast<size_t>(node.a)]) continue;
    const auto [found, is_new] = after.try_emplace(item.obligations, kDead);
    if (is_new) found->second = advanced(item.obligations, there, move);
    if (found->second != kDead) moved.push_back({node.next, found->second});
  }
  State to;
  to.after_word = boundaries_ && word;
  to.items = closure(std::move(moved), there);
  const int32_t result = number_of(std::move(to));
  return steps_[static_cast<size_t>(number)][static_cast<size_t>(character_class)] = result;
}

bool StringSet::accepts(int32_t number) {
  if (number == kDead) return false;
  const State state = states_[static_cast<size_t>(number)];
  const Where end{state.at_start, state.after_word, kAtEnd};
  for (const Item& item : closure(state.items, end)) {
    if (nodes_[static_cast<size_t>(item.node)].op != kAccept) continue;
    if (advanced(item.obligations, end, [](const Nodes& nodes) { return nodes; }) != kDead) return true;
  }
  return false;
}

bool StringSet::contains(std::string_view text) {
  int32_t state = start();
  while (!text.empty() && state != kDead) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    if (states_.size() > kStatesKept) {
      State now = states_[static_cast<size_t>(state)];
      states_.clear();
      steps_.clear();
      state_numbers_.clear();
      state = number_of(std::move(now));
    }
    state = step(state, class_of(utf8_point(text)));
    text.remove_prefix(length);
  }
  return accepts(state);
}

// Numbers for the states from which a string comes to its end, in their order; -1 for the others.
std::vector<int32_t> StringSet::live_numbers(const std::vector<std::vector<int32_t>>& users,
                                             const std::vector<bool>& accepting) {
  std::vector<bool> live = accepting;
  Nodes work;
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i]) work.push_back(static_cast<int32_t>(i));
  }
  while (!work.empty()) {
    const auto at = static_cast<size_t>(work.back());
    work.pop_back();
    spend(1 + users[at].size());
    for (const int32_t user : users[at]) {
      if (live[static_cast<size_t>(user)]) continue;
      live[static_cast<size_t>(user)] = true;
      work.push_back(user);
    }
  }
  std::vector<int32_t> numbers(live.size(), -1);
  int32_t count = 0;
  for (size_t i = 0; i < live.size(); ++i) {
    if (live[i]) numbers[i] = count++;
  }
  return numbers;
}

std::optional<StringSet::Dfa> StringSet::dfa(size_t states_max) {
  Dfa result;
  states_.clear();  // numbers begin with that of the start
  steps_.clear();
  state_numbers_.clear();
  const int32_t first = start();
  if (first == kDead) return result;
  std::vector<std::vector<int32_t>> users;
  std::vector<bool> accepting;
  for (size_t at = 0; at < states_.size(); ++at) {  // states_ grows on the way
    if (states_.size() > states_max || spent_ > kDfaStepsMax) return std::nullopt;
    accepting.push_back(accepts(static_cast<int32_t>(at)));
    for (size_t c = 0; c < class_in_set_.size(); ++c) {
      const int32_t to = step(static_cast<int32_t>(at), static_cast<int32_t>(c));
      users.resize(states_.size());
      if (to != kDead) users[static_cast<size_t>(to)].push_back(static_cast<int32_t>(at));
    }
  }
  users.resize(states_.size());
  const std::vector<int32_t> numbers = live_numbers(users, accepting);
  if (numbers[static_cast<size_t>(first)] < 0) return result;
  for (size_t at = 0; at < states_.size(); ++at) {
    if (numbers[at] < 0) continue;
    Dfa::State state;
    state.accepts = accepting[at];
    std::map<int32_t, std::vector<PointRange>> to;
    spend(interval_begins_.size());
    for (size_t i = 0; i < interval_begins_.size(); ++i) {
      const int32_t target = steps_[at][static_cast<size_t>(interval_classes_[i])];
      if (target == kDead || numbers[static_cast<size_t>(target)] < 0) continue;
      const uint32_t begin = interval_begins_[i];
      const uint32_t last = i + 1 < interval_begins_.size() ? interval_begins_[i + 1] - 1 : kLastPoint;
      std::vector<PointRange>& ranges = to[numbers[static_cast<size_t>(target)]];
      if (!ranges.empty() && ranges.back().second + 1 == begin) {
        ranges.back().second = last;
      } else {
        ranges.emplace_back(begin, last);
      }
    }
    for (auto& [target, ranges] : to) state.next.emplace_back(std::move(ranges), target);
    result.states.push_back(std::move(state));
  }
  return result;
}

}  // namespace gemma4
