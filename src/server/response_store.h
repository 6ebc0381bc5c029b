// ResponseStore: the answers of /v1/responses that later requests go on from, and conversations. In memory, bounded,
// and apart for each API key: what one key stored does not exist for another. Without keys all clients share. Any
// thread may call it.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "server/json.h"

namespace gemma4 {

// Bytes of texts that exist: of one client, and in `all` of all clients.
struct StoredBytes {
  explicit StoredBytes(std::shared_ptr<std::atomic<int64_t>> of_all) : all(std::move(of_all)) {}
  void add(int64_t bytes) {
    own += bytes;
    *all += bytes;
  }

  std::atomic<int64_t> own = 0;
  const std::shared_ptr<std::atomic<int64_t>> all;
};

// The input and the output of one response. Those of a conversation share the turns before them.
struct StoredTurn {
  StoredTurn(std::shared_ptr<const StoredTurn> earlier, std::string input_items, std::shared_ptr<StoredBytes> counter);
  ~StoredTurn();  // not recursive: a conversation may have very many turns
  StoredTurn(const StoredTurn&) = delete;
  StoredTurn& operator=(const StoredTurn&) = delete;

  std::shared_ptr<const StoredTurn> before;
  const std::string input;             // items, as a JSON array
  std::string output;                  // also; written once, before others see the turn
  int64_t history_bytes;               // of this turn and all before it
  std::shared_ptr<StoredBytes> bytes;  // of its client
};

// All texts of items up to and with this turn, the oldest first.
std::vector<const std::string*> stored_texts(const StoredTurn& turn);

// Reads one of them. It was within the limits of a body when it came, and has grown by ids since: parse_body() could
// refuse it. Throws Error.
Json parse_stored(const std::string& text);

class ResponseStore {
 public:
  struct Limits {
    int64_t bytes = int64_t{64} << 20;          // of all clients together
    int64_t history_bytes = int64_t{32} << 20;  // of one conversation
    size_t count = 4096;                        // responses and conversations
  };
  ResponseStore() : ResponseStore(Limits()) {}
  explicit ResponseStore(const Limits& limits) : limits_(limits) {}

  // The turn of a response that begins. Older ones make space for it, of the client that holds most. Null if answers
  // that have not ended fill the memory, or the conversation is too long to be kept.
  std::shared_ptr<StoredTurn> begin(const std::string& client, std::shared_ptr<const StoredTurn> before,
                                    std::string input, std::string output = "") EXCLUDES(mutex_);
  // `response`: whole. From now on its turn and its items are found, and it ends `conversation` (if that is not "").
  void keep(const std::string& client, const std::string& id, const std::string& conversation,
            const std::shared_ptr<StoredTurn>& turn, const Json& response) EXCLUDES(mutex_);

  std::shared_ptr<const StoredTurn> turn(const std::string& client, const std::string& id) EXCLUDES(mutex_);
  std::optional<std::string> response(const std::string& client, const std::string& id) EXCLUDES(mutex_);
  std::optional<std::string> item(const std::string& client, const std::string& id) EXCLUDES(mutex_);
  bool remove(const std::string& client, const std::string& id) EXCLUDES(mutex_);  // a response or a conversation

  // `about`: what a client reads of it (JSON). `first`: its first items, or null.
  bool add_conversation(const std::string& client, const std::string& id, std::string about,
                        std::shared_ptr<const StoredTurn> first) EXCLUDES(mutex_);
  // Its last turn, which was `before`. False if that is another one by now, or the conversation is not there any more.
  bool set_turn(const std::string& client, const std::string& id, const std::shared_ptr<const StoredTurn>& before,
                std::shared_ptr<const StoredTurn> turn) EXCLUDES(mutex_);
  bool describe(const std::string& client, const std::string& id, std::string about) EXCLUDES(mutex_);  // anew
  bool has_conversation(const std::string& client, const std::string& id) EXCLUDES(mutex_);
  std::shared_ptr<const StoredTurn> conversation(const std::string& client, const std::string& id) EXCLUDES(mutex_);

  int64_t bytes() const { return *bytes_; }
  size_t count() EXCLUDES(mutex_);

 private:
  using Key = std::pair<std::string, std::string>;  // the client, the id
  struct Entry {
    Key key;
    std::string text;  // the response or what is said of the conversation, as JSON
    std::shared_ptr<const StoredTurn> turn;
    std::vector<std::string> items;  // ids of the output's
    int64_t bytes = 0;               // of `text`
  };
  using Entries = std::list<Entry>;  // the least recently used first
  struct Client {
    std::shared_ptr<StoredBytes> bytes;  // of its entries and of all its turns, also those that only others go on from
    size_t entries = 0;
  };

  static void set_output(StoredTurn& turn, std::string output);
  Client& client_of(const std::string& name) REQUIRES(mutex_);
  Entry* find(const Key& key) REQUIRES(mutex_);
  void insert(Entry entry) REQUIRES(mutex_);
  void erase(Entries::iterator entry) REQUIRES(mutex_);
  void erase_oldest(const std::string& client) REQUIRES(mutex_);
  void make_space() REQUIRES(mutex_);

  const Limits limits_;
  Mutex mutex_;
  const std::shared_ptr<std::atomic<int64_t>> bytes_ = std::make_shared<std::atomic<int64_t>>(0);
  Entries entries_ GUARDED_BY(mutex_);
  std::map<std::string, Client> clients_ GUARDED_BY(mutex_);  // as many as there are API keys
  std::map<Key, Entries::iterator> by_id_ GUARDED_BY(mutex_);
  std::map<Key, std::pair<Entries::iterator, std::string>> items_ GUARDED_BY(mutex_);  // by the item's id: its JSON
};

}  // namespace gemma4
