#include "server/response_store.h"

#include <algorithm>

#include "base/exact_json.h"

namespace gemma4 {
namespace {

constexpr int64_t kTurnBytes = 300;  // beside its texts, with its places in maps

int64_t size_of(const std::string& text) { return static_cast<int64_t>(text.size()); }

}  // namespace

StoredTurn::StoredTurn(std::shared_ptr<const StoredTurn> earlier, std::string input_items,
                       std::shared_ptr<StoredBytes> counter)
    : before(std::move(earlier)),
      input(std::move(input_items)),
      history_bytes(size_of(input) + kTurnBytes + (before ? before->history_bytes : 0)),
      bytes(std::move(counter)) {
  bytes->add(size_of(input) + kTurnBytes);
}

StoredTurn::~StoredTurn() {
  bytes->add(-(size_of(input) + size_of(output) + kTurnBytes));
  while (before && before.use_count() == 1) {
    // Takes over what the last owner of an earlier turn would free.
    std::shared_ptr<const StoredTurn> earlier = std::move(const_cast<StoredTurn*>(before.get())->before);
    before = std::move(earlier);
  }
}

std::vector<const std::string*> stored_texts(const StoredTurn& last) {
  std::vector<const std::string*> texts;
  for (const StoredTurn* turn = &last; turn != nullptr; turn = turn->before.get()) {
    if (!turn->output.empty()) texts.push_back(&turn->output);
    texts.push_back(&turn->input);
  }
  std::ranges::reverse(texts);
  return texts;
}

Json parse_stored(const std::string& text) {
  constexpr int kDepthMax = 80;                   // more than a body may have
  constexpr int kValuesMax = 2 * kJsonValuesMax;  // an item is a value at least, and gets one: its id
  return parse_exact_json(text, kDepthMax, kValuesMax);
}

ResponseStore::Client& ResponseStore::client_of(const std::string& name) {
  Client& client = clients_[name];
  if (!client.bytes) client.bytes = std::make_shared<StoredBytes>(bytes_);
  return client;
}

ResponseStore::Entry* ResponseStore::find(const Key& key) {
  const auto found = by_id_.find(key);
  if (found == by_id_.end()) return nullptr;
  entries_.splice(entries_.end(), entries_, found->second);
  return &*found->second;
}

void ResponseStore::erase(Entries::iterator entry) {
  for (const std::string& id : entry->items) {
    const auto item = items_.find({entry->key.first, id});
    if (item != items_.end() && item->second.first == entry) items_.erase(item);
  }
  Client& client = client_of(entry->key.first);
  client.bytes->add(-entry->bytes);
  --client.entries;
  by_id_.erase(entry->key);
  entries_.erase(entry);
}

void ResponseStore::erase_oldest(const std::string& client) {
  erase(std::ranges::find(entries_, client, [](const Entry& entry) { return entry.key.first; }));
}

// Of the client that holds the most of what is short, so that one does not cost the others theirs.
void ResponseStore::make_space() {
  while (entries_.size() > limits_.count) {
    const auto entries = [](const auto& client) { return client.second.entries; };
    erase_oldest(std::ranges::max_element(clients_, {}, entries)->first);
  }
  while (*bytes_ > limits_.bytes) {
    const auto held = [](const auto& client) { return client.second.bytes->own.load(); };
    const auto most = std::ranges::max_element(clients_, {}, held);
    if (most == clients_.end() || most->second.entries == 0) return;  // its answers have not ended
    erase_oldest(most->first);
  }
}

void ResponseStore::insert(Entry entry) {
  if (const auto same = by_id_.find(entry.key); same != by_id_.end()) erase(same->second);
  entry.bytes = size_of(entry.text) + kTurnBytes;
  Client& client = client_of(entry.key.first);
  client.bytes->add(entry.bytes);
  ++client.entries;
  const Key key = entry.key;
  by_id_[key] = entries_.insert(entries_.end(), std::move(entry));
}

std::shared_ptr<StoredTurn> ResponseStore::begin(const std::string& client, std::shared_ptr<const StoredTurn> before,
                                                 std::string input, std::string output) {
  const MutexLock lock(mutex_);
  auto turn = std::make_shared<StoredTurn>(std::move(before), std::move(input), client_of(client).bytes);
  set_output(*turn, std::move(output));
  if (turn->history_bytes > limits_.history_bytes) return nullptr;
  make_space();
  return *bytes_ > limits_.bytes ? nullptr : turn;
}

// Once for each turn.
void ResponseStore::set_output(StoredTurn& turn, std::string output) {
  turn.output = std::move(output);
  turn.history_bytes += size_of(turn.output);
  turn.bytes->add(size_of(turn.output));
}

// The output's items are stored twice: as the turn's text, and each for references to it.
void ResponseStore::keep(const std::string& client, const std::string& id, const std::string& conversation,
                         const std::shared_ptr<StoredTurn>& turn, const Json& response) {
  set_output(*turn, dump(response["output"]));
  std::vector<std::pair<std::string, std::string>> items;
  Entry entry{{client, id}, dump(response), turn, {}, 0};
  for (const Json& item : response["output"]) {
    items.emplace_back(item["id"].get<std::string>(), dump(item));
    entry.items.push_back(items.back().first);
  }
  const MutexLock lock(mutex_);
  insert(std::move(entry));
  const Entries::iterator kept = std::prev(entries_.end());
  for (auto& [item, text] : items) {
    kept->bytes += size_of(text) + kTurnBytes;
    client_of(client).bytes->add(size_of(text) + kTurnBytes);
    items_[{client, item}] = {kept, std::move(text)};
  }
  if (!conversation.empty()) {
    if (Entry* whole = find({client, conversation})) whole->turn = turn;
  }
  make_space();
}

std::shared_ptr<const StoredTurn> ResponseStore::turn(const std::string& client, const std::string& id) {
  const MutexLock lock(mutex_);
  const Entry* entry = find({client, id});
  return entry == nullptr ? nullptr : entry->turn;
}

std::optional<std::string> ResponseStore::response(const std::string& client, const std::string& id) {
  const MutexLock lock(mutex_);
  const Entry* entry = find({client, id});
  if (entry == nullptr) return std::nullopt;
  return entry->text;
}

std::optional<std::string> ResponseStore::item(const std::string& client, const std::string& id) {
  const MutexLock lock(mutex_);
  const auto found = items_.find({client, id});
  if (found == items_.end()) return std::nullopt;
  return found->second.second;
}

bool ResponseStore::remove(const std::string& client, const std::string& id) {
  const MutexLock lock(mutex_);
  const auto found = by_id_.find({client, id});
  if (found == by_id_.end()) return false;
  erase(found->second);
  return true;
}

bool ResponseStore::add_conversation(const std::string& client, const std::string& id, std::string about,
                                     std::shared_ptr<const StoredTurn> first) {
  const MutexLock lock(mutex_);
  insert({{client, id}, std::move(about), std::move(first), {}, 0});
  make_space();
  return by_id_.contains({client, id});
}

bool ResponseStore::set_turn(const std::string& client, const std::string& id,
                             const std::shared_ptr<const StoredTurn>& before, std::shared_ptr<const StoredTurn> turn) {
  const MutexLock lock(mutex_);
  Entry* entry = find({client, id});
  if (entry == nullptr || entry->turn != before) return false;
  entry->turn = std::move(turn);
  return true;
}

bool ResponseStore::describe(const std::string& client, const std::string& id, std::string about) {
  const MutexLock lock(mutex_);
  Entry* entry = find({client, id});
  if (entry == nullptr) return false;
  const int64_t more = size_of(about) - size_of(entry->text);
  entry->text = std::move(about);
  entry->bytes += more;
  client_of(client).bytes->add(more);
  make_space();
  return by_id_.contains({client, id});
}

bool ResponseStore::has_conversation(const std::string& client, const std::string& id) {
  const MutexLock lock(mutex_);
  return find({client, id}) != nullptr;
}

std::shared_ptr<const StoredTurn> ResponseStore::conversation(const std::string& client, const std::string& id) {
  return turn(client, id);
}

size_t ResponseStore::count() {
  const MutexLock lock(mutex_);
  return entries_.size();
}

}  // namespace gemma4
