#include "server/response_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gemma4 {
namespace {

using ::testing::ElementsAre;
using ::testing::Pointee;

Json kept_response(const std::string& id, const std::string& text) {
  return {{"id", id}, {"output", {{{"type", "message"}, {"id", "msg_" + id}, {"content", text}}}}};
}

// Stores a response that follows `before`.
std::shared_ptr<StoredTurn> store_turn(ResponseStore& store, const std::string& client, const std::string& id,
                                       const std::string& input, std::shared_ptr<const StoredTurn> before = nullptr,
                                       const std::string& conversation = "") {
  auto turn = store.begin(client, std::move(before), input);
  if (turn) store.keep(client, id, conversation, turn, kept_response(id, "answer to " + input));
  return turn;
}

TEST(ResponseStore, AResponseHasTheTurnsBeforeIt) {
  ResponseStore store;
  store_turn(store, "", "a", "[1]");
  store_turn(store, "", "b", "[2]", store.turn("", "a"));
  const auto turn = store.turn("", "b");
  ASSERT_TRUE(turn);
  const std::string first = dump(kept_response("a", "answer to [1]")["output"]);
  const std::string second = dump(kept_response("b", "answer to [2]")["output"]);
  EXPECT_THAT(stored_texts(*turn), ElementsAre(Pointee(std::string("[1]")), Pointee(first),
                                               Pointee(std::string("[2]")), Pointee(second)));
  EXPECT_EQ(*store.response("", "a"), dump(kept_response("a", "answer to [1]")));
  EXPECT_EQ(*store.item("", "msg_b"), dump(kept_response("b", "answer to [2]")["output"][0]));
}

TEST(ResponseStore, ClientsHaveNothingInCommon) {
  ResponseStore store;
  store_turn(store, "one", "a", "[1]");
  EXPECT_FALSE(store.turn("two", "a"));
  EXPECT_FALSE(store.response("two", "a"));
  EXPECT_FALSE(store.item("two", "msg_a"));
  EXPECT_FALSE(store.remove("two", "a"));
  EXPECT_TRUE(store.remove("one", "a"));
  EXPECT_FALSE(store.item("one", "msg_a"));
  EXPECT_EQ(store.bytes(), 0);
}

TEST(ResponseStore, WhatIsSaidOfAConversationChanges) {
  ResponseStore store;
  EXPECT_FALSE(store.describe("one", "c", "x"));
  store.add_conversation("one", "c", "about", nullptr);
  EXPECT_FALSE(store.describe("two", "c", "x"));
  EXPECT_TRUE(store.describe("one", "c", "more about it"));
  EXPECT_EQ(store.response("one", "c"), "more about it");
  EXPECT_TRUE(store.remove("one", "c"));
  EXPECT_EQ(store.bytes(), 0);
}

TEST(ResponseStore, AConversationThatIsGoneGetsNoTurns) {
  ResponseStore store;
  store.add_conversation("one", "c", "about", nullptr);
  const auto turn = store.begin("one", nullptr, "[1]");
  EXPECT_FALSE(store.set_turn("two", "c", nullptr, turn));
  EXPECT_TRUE(store.set_turn("one", "c", nullptr, turn));
  EXPECT_FALSE(store.set_turn("one", "c", nullptr, turn)) << "it has another last turn";
  EXPECT_EQ(store.conversation("one", "c"), turn);
  EXPECT_EQ(store.response("one", "c"), "about");
  store.remove("one", "c");
  EXPECT_FALSE(store.set_turn("one", "c", turn, turn));
  EXPECT_FALSE(store.has_conversation("one", "c"));
}

TEST(ResponseStore, WhatIsDeletedStaysInTheConversationsAfterIt) {
  ResponseStore store;
  store_turn(store, "", "a", "[1]");
  store_turn(store, "", "b", "[2]", store.turn("", "a"));
  store.remove("", "a");
  EXPECT_FALSE(store.turn("", "a"));
  EXPECT_EQ(stored_texts(*store.turn("", "b")).size(), 4u);
}

TEST(ResponseStore, TheOldestOfTheClientWithMostGoFirst) {
  ResponseStore store({.bytes = 30000, .history_bytes = 1 << 20, .count = 1000});
  store_turn(store, "small", "s", "[1]");
  for (int i = 0; i < 100; ++i) store_turn(store, "large", "l" + std::to_string(i), std::string(1000, 'x'));
  EXPECT_LE(store.bytes(), 30000);
  EXPECT_TRUE(store.turn("small", "s"));
  EXPECT_FALSE(store.turn("large", "l0"));
  EXPECT_TRUE(store.turn("large", "l99"));
}

TEST(ResponseStore, TheirNumberIsLimited) {
  ResponseStore store({.bytes = 1 << 30, .history_bytes = 1 << 20, .count = 10});
  for (int i = 0; i < 50; ++i) store_turn(store, "", std::to_string(i), "[]");
  EXPECT_EQ(store.count(), 10u);
  EXPECT_TRUE(store.turn("", "49"));
}

TEST(ResponseStore, WhatIsInFlightCounts) {
  ResponseStore store({.bytes = 10000, .history_bytes = 1 << 20, .count = 1000});
  const auto held = store.begin("", nullptr, std::string(9000, 'x'));
  ASSERT_TRUE(held);
  EXPECT_FALSE(store.begin("", nullptr, std::string(2000, 'x')));
  ResponseStore narrow({.bytes = 1 << 30, .history_bytes = 1000, .count = 9});
  EXPECT_FALSE(narrow.begin("", nullptr, std::string(1001, 'x')));
}

// A few large ones are not the price of many small ones.
TEST(ResponseStore, TheClientWithMostEntriesMakesPlaceForThem) {
  ResponseStore store({.bytes = 1 << 30, .history_bytes = 1 << 20, .count = 10});
  store_turn(store, "few", "f", std::string(100000, 'x'));
  for (int i = 0; i < 50; ++i) store.add_conversation("many", "c" + std::to_string(i), "{}", nullptr);
  EXPECT_EQ(store.count(), 10u);
  EXPECT_TRUE(store.turn("few", "f"));
}

TEST(ResponseStore, WhatIsDeletedCountsWhileAConversationHoldsIt) {
  ResponseStore store({.bytes = 400000, .history_bytes = 1 << 20, .count = 1000});
  store_turn(store, "other", "o", std::string(30000, 'x'));
  for (int i = 0; i < 20; ++i) {
    const std::string n = std::to_string(i);
    store_turn(store, "deletes", "long" + n, std::string(10000, 'x'));
    store_turn(store, "deletes", "short" + n, "[]", store.turn("deletes", "long" + n));
    store.remove("deletes", "long" + n);
  }
  EXPECT_TRUE(store.turn("other", "o"));
}

TEST(ResponseStore, EveryTurnOfAConversationCountsForItsClient) {
  ResponseStore store({.bytes = 100000, .history_bytes = 1 << 20, .count = 1000});
  store_turn(store, "other", "o", std::string(5000, 'x'));
  for (int i = 0; i < 100; ++i) {
    const std::string id = "c" + std::to_string(i / 10);
    const auto turn = store.begin("grows", store.conversation("grows", id), std::string(2000, 'x'));
    ASSERT_TRUE(turn);
    store.add_conversation("grows", id, "{}", turn);
  }
  EXPECT_TRUE(store.turn("other", "o"));
  EXPECT_FALSE(store.conversation("grows", "c0"));
  EXPECT_TRUE(store.conversation("grows", "c9"));
}

TEST(ResponseStore, WhatIsInFlightCostsItsClient) {
  ResponseStore store({.bytes = 10000, .history_bytes = 1 << 20, .count = 1000});
  store_turn(store, "other", "o", std::string(500, 'x'));
  const auto held = store.begin("slow", nullptr, std::string(5000, 'x'));
  ASSERT_TRUE(held);
  EXPECT_FALSE(store.begin("slow", nullptr, std::string(5000, 'x')));
  EXPECT_TRUE(store.turn("other", "o"));
}

// Its turns are freed one after the other, not one within the other.
TEST(ResponseStore, AVeryLongConversationIsFreed) {
  ResponseStore store({.bytes = int64_t{1} << 30, .history_bytes = int64_t{1} << 30, .count = 2});
  std::shared_ptr<const StoredTurn> last;
  for (int i = 0; i < 50000; ++i) last = store_turn(store, "", "r" + std::to_string(i % 2), "[]", last);
  EXPECT_GT(store.bytes(), 50000 * 100);
  last.reset();
  store.remove("", "r0");
  store.remove("", "r1");
  EXPECT_EQ(store.bytes(), 0);
}

TEST(ResponseStore, AConversationGrowsWithEachResponse) {
  ResponseStore store;
  EXPECT_FALSE(store.has_conversation("", "c"));
  EXPECT_TRUE(store.add_conversation("", "c", "{}", nullptr));
  store_turn(store, "", "a", "[1]", store.conversation("", "c"), "c");
  store_turn(store, "", "b", "[2]", store.conversation("", "c"), "c");
  EXPECT_EQ(stored_texts(*store.conversation("", "c")).size(), 4u);
  EXPECT_TRUE(store.remove("", "c"));
  store.remove("", "a");
  store.remove("", "b");
  EXPECT_EQ(store.bytes(), 0);
}

}  // namespace
}  // namespace gemma4
