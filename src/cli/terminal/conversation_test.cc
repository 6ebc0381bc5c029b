#include "cli/terminal/conversation.h"

#include <gtest/gtest.h>

#include "base/json.h"

namespace gemma4 {
namespace {

Request base_with(const std::string& system) {
  Request base;
  if (!system.empty()) base.messages.push_back(Message::text("system", system));
  return base;
}

std::string told(const Conversation& conversation) {  // "user:a assistant:b"
  std::string text;
  for (const Message& message : conversation.request.messages) {
    text += (text.empty() ? "" : " ") + message.role + ":";
    for (const ContentPart& part : message.content) text += part.type == ContentPart::kImage ? "<image>" : part.text;
  }
  return text;
}

TEST(Conversation, UndoAndDropAnswerTakeTurnsBack) {
  Conversation chat(base_with("Be brief."));
  chat.pending = {"one"};
  chat.say("first");
  chat.hear("answer 1", "", {});
  chat.pending = {"two", "three"};
  chat.say("second");
  chat.hear("answer 2", "", {});
  EXPECT_EQ(told(chat),
            "system:Be brief. user:<image>first assistant:answer 1 user:<image><image>second assistant:answer 2");
  EXPECT_TRUE(chat.drop_answer());
  EXPECT_TRUE(told(chat).ends_with("user:<image><image>second"));
  EXPECT_EQ(chat.undo(), "second");
  EXPECT_EQ(chat.request.images, std::vector<std::string>{"one"});
  EXPECT_EQ(chat.undo(), "first");
  EXPECT_TRUE(chat.request.images.empty());
  EXPECT_FALSE(chat.undo());
  EXPECT_FALSE(chat.drop_answer()) << "the system message is not asked";
  EXPECT_EQ(told(chat), "system:Be brief.");
}

TEST(Conversation, ATurnThatFailsLosesNothing) {
  Conversation chat(base_with(""));
  chat.say("first");
  chat.hear("answer", "", {});
  chat.pending = {"picture"};
  const Conversation::Mark mark = chat.mark();
  chat.say("look");
  EXPECT_TRUE(chat.pending.empty());
  chat.restore(mark);
  EXPECT_EQ(told(chat), "user:first assistant:answer");
  EXPECT_EQ(chat.pending, std::vector<std::string>{"picture"});
  EXPECT_TRUE(chat.request.images.empty());
}

TEST(Conversation, TheSystemMessageMayChange) {
  Conversation chat(base_with(""));
  chat.say("hello");
  chat.set_system("Be brief.");
  EXPECT_EQ(told(chat), "system:Be brief. user:hello");
  chat.set_system("Be long.");
  EXPECT_EQ(chat.system(), "Be long.");
  chat.clear();
  EXPECT_EQ(told(chat), "system:Be long.");
  chat.set_system("");
  EXPECT_EQ(told(chat), "");
}

TEST(Conversation, CallsWaitForTheirResults) {
  Conversation chat(base_with(""));
  EXPECT_THROW(chat.add_result("x"), Error);
  chat.say("both");
  chat.hear("", "", {{"", "a", R"({"n":1})"}, {"", "b", R"({"n":[2)"}});
  ASSERT_EQ(chat.open_calls().size(), 2u);
  EXPECT_EQ(chat.request.messages.back().tool_calls[1].arguments, R"({"n":[2]})") << "a cut call is closed";
  chat.add_result("1");
  ASSERT_EQ(chat.open_calls().size(), 1u);
  EXPECT_EQ(chat.open_calls()[0].name, "b");
  chat.add_result("2");
  EXPECT_TRUE(chat.open_calls().empty());
  EXPECT_EQ(told(chat), "user:both assistant: tool:1 tool:2");
  EXPECT_EQ(chat.undo(), "both");
}

TEST(Conversation, WhatIsSavedIsLoaded) {
  Conversation chat(base_with("Be brief."));
  chat.request.tools = R"([{"type":"function","function":{"name":"a","description":"A.",)"
                       R"("parameters":{"type":"object","properties":{}}}}])";
  const std::string png = std::string("\x89PNG\0\xff", 6);
  chat.pending = {png};
  chat.say("look \"here\"\nand there");
  chat.hear("", "a thought", {{"", "a", "{}"}});
  chat.add_result(R"({"ok": true})");
  chat.hear("Done.", "", {});
  const std::string saved = chat.save();
  EXPECT_NE(saved.find("data:image/png;base64,"), std::string::npos) << saved;
  Conversation other(base_with("another"));
  other.pending = {"dropped"};
  other.load(saved);
  EXPECT_EQ(told(other), told(chat));
  EXPECT_EQ(other.request.images, std::vector<std::string>{png});
  EXPECT_EQ(other.request.tools, chat.request.tools);
  EXPECT_EQ(other.request.messages[2].tool_calls[0].id, chat.request.messages[2].tool_calls[0].id);
  EXPECT_TRUE(other.pending.empty());
  EXPECT_EQ(other.save(), saved);
}

TEST(Conversation, WhatIsNoConversationChangesNothing) {
  Conversation chat(base_with(""));
  chat.say("hello");
  chat.pending = {"picture"};
  for (const char* text : {"", "{", "[]", "{}", R"({"messages": []})", R"({"messages": [{"role": "king"}]})",
                           R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url":
                               {"url": "https://example.com/x.png"}}]}]})"}) {
    EXPECT_THROW(chat.load(text), Error) << text;
    EXPECT_EQ(told(chat), "user:hello");
    EXPECT_EQ(chat.pending.size(), 1u);
  }
  try {
    chat.load("# A chat\n");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "it is not the JSON that /save writes");
  }
}

}  // namespace
}  // namespace gemma4
