// What a chat understands of a typed or pasted line: paths, commands, settings, completion; and the history file.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/check.h"
#include "cli/terminal/chat_commands.h"
#include "cli/terminal/chat_settings.h"
#include "cli/terminal/history.h"
#include "cli/terminal/line_editor.h"
#include "cli/terminal/path_text.h"
#include "cli/terminal/style.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

struct Folder {
  Folder() {
    std::string name = (fs::temp_directory_path() / ("gemma4_terminal_" + std::string(6, 'X'))).string();
    if (mkdtemp(name.data()) != nullptr) path = name;
  }
  ~Folder() { fs::remove_all(path); }
  void touch(const std::string& name) const { std::ofstream(path / name) << "x"; }
  fs::path path;
};

class Variable {  // of the environment, for one test
 public:
  Variable(const char* name, const char* value) : name_(name) {
    const char* before = std::getenv(name);
    if (before != nullptr) before_ = before;
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~Variable() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

std::string contents(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string refusal(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(TypedPath, ReadsQuotesBackslashesSpacesAndHome) {
  const Variable home("HOME", "/home/me");
  EXPECT_EQ(typed_path("/a/b.png"), "/a/b.png");
  EXPECT_EQ(typed_path("  /a/b c.png "), "/a/b c.png") << "spaces inside belong to the path";
  EXPECT_EQ(typed_path("'/a/b c.png'"), "/a/b c.png");
  EXPECT_EQ(typed_path("\"/a/b \\\"c\\\".png\""), "/a/b \"c\".png");
  EXPECT_EQ(typed_path("/a/b\\ c\\'s.png"), "/a/b c's.png");
  EXPECT_EQ(typed_path("~/x.png"), "/home/me/x.png");
  EXPECT_EQ(typed_path("'~/x y.png'"), "/home/me/x y.png");
  EXPECT_EQ(typed_path("~other/x.png"), "~other/x.png");
  EXPECT_EQ(typed_path("/a/it's.png"), "/a/it's.png") << "an apostrophe inside is no quote";
  EXPECT_EQ(refusal([] { typed_path("'/a/b"); }), "the quote ' is not closed");
}

TEST(TypedPath, CompletesWhatItCanReadBack) {
  const Folder folder;
  for (const char* name : {"one.png", "on two.png", "it's.png", ".hidden"}) folder.touch(name);
  fs::create_directory(folder.path / "onward");
  const std::string in = folder.path.string() + "/";
  EXPECT_EQ(paths_beginning(in + "on"),
            (std::vector<std::string>{in + "on\\ two.png", in + "one.png", in + "onward/"}));
  EXPECT_EQ(paths_beginning(in + "on\\ "), (std::vector<std::string>{in + "on\\ two.png"}));
  EXPECT_EQ(paths_beginning(in + "."), (std::vector<std::string>{in + ".hidden"}));
  EXPECT_TRUE(paths_beginning(in + "none/x").empty());
  for (const std::string& path : paths_beginning(in)) EXPECT_TRUE(fs::exists(typed_path(path))) << path;
}

TEST(LineHistoryFile, KeepsEntriesForTheirOwnerAlone) {
  const Folder folder;
  const fs::path file = folder.path / "state" / "gemma4" / "history";
  {
    LineHistory history(file);
    history.add("one");
    history.add("two\nlines \\n");
    history.add("two\nlines \\n");  // twice in a row: once
    history.add(std::string(LineHistory::kEntryBytesMax + 1, 'x'));
    EXPECT_EQ(history.entries().size(), 3u);
    EXPECT_EQ(history.problem(), "");
  }
  EXPECT_EQ(contents(file), "one\ntwo\\nlines \\\\n\n");
  struct stat status = {};
  ASSERT_EQ(stat(file.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  ASSERT_EQ(stat(file.parent_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
  EXPECT_EQ(LineHistory(file).entries(), (std::vector<std::string>{"one", "two\nlines \\n"}));
}

TEST(LineHistoryFile, StaysSmall) {
  const Folder folder;
  const fs::path file = folder.path / "history";
  {
    std::ofstream out(file);
    for (size_t i = 0; i < 2 * LineHistory::kEntriesMax + 5; ++i) out << i << "\n";
  }
  EXPECT_EQ(LineHistory(file).entries().size(), LineHistory::kEntriesMax);
  const std::string kept = contents(file);
  EXPECT_EQ(static_cast<size_t>(std::count(kept.begin(), kept.end(), '\n')), LineHistory::kEntriesMax);
  EXPECT_TRUE(kept.ends_with("2004\n")) << "the newest";
}

TEST(LineHistoryFile, AFileThatIsNoneIsSaidAndNotWritten) {
  const Folder folder;
  fs::create_directory(folder.path / "history");
  LineHistory history(folder.path / "history");
  history.add("x");
  EXPECT_NE(history.problem(), "");
  EXPECT_EQ(history.entries(), std::vector<std::string>{"x"}) << "this chat has it";
  folder.touch("precious");
  fs::create_symlink(folder.path / "precious", folder.path / "link");
  LineHistory linked(folder.path / "link");
  linked.add("mine");
  EXPECT_EQ(contents(folder.path / "precious"), "x") << "no link is followed";
}

TEST(LineHistoryFile, StandsWhereXdgSays) {
  const Variable home("HOME", "/home/me");
  {
    const Variable state("XDG_STATE_HOME", "/state");
    EXPECT_EQ(LineHistory::default_file(), "/state/gemma4/history");
  }
  const Variable state("XDG_STATE_HOME", nullptr);
  EXPECT_EQ(LineHistory::default_file(), "/home/me/.local/state/gemma4/history");
  const Variable no_home("HOME", nullptr);
  EXPECT_EQ(LineHistory::default_file(), "");
}

TEST(Paste, BecomesOneMessage) {
  EXPECT_EQ(cleaned_paste("one\r\ntwo\rthree\nfour\n\n"), "one\ntwo\nthree\nfour");
  using namespace std::string_literals;
  EXPECT_EQ(cleaned_paste("a\tb\033[31mred\a\0c"s), "a\tb[31mredc") << "no control characters";
  EXPECT_EQ(cleaned_paste("caf\xe9"), "caf\xef\xbf\xbd");
}

TEST(TerminalText, HasNoControlCharacters) {
  EXPECT_EQ(without_controls("a\033]52;c;x\a\x7f"
                             "b\r\n\tc"),
            "a]52;c;xb\n\tc");
  EXPECT_EQ(without_controls("\xc2\x9b"
                             "31mé\xc2\xa0"),
            "31mé\xc2\xa0")
      << "U+009B is a control sequence's beginning";
}

TEST(ChatCommands, AreRecognisedAndNamed) {
  EXPECT_FALSE(is_chat_command("hello /help"));
  EXPECT_FALSE(is_chat_command(" /help"));
  EXPECT_FALSE(is_chat_command("/etc/passwd\nis pasted"));
  EXPECT_EQ(parse_chat_command("/image  a b.png ").kind, ChatCommandKind::kImage);
  EXPECT_EQ(parse_chat_command("/image  a b.png ").argument, "a b.png");
  EXPECT_EQ(refusal([] { parse_chat_command("/hlep"); }), "/hlep is no command; did you mean /help?");
  EXPECT_EQ(refusal([] { parse_chat_command("/etc/passwd"); }),
            "/etc/passwd is no command; /help lists them, and a message may begin with a space");
  EXPECT_EQ(refusal([] { parse_chat_command("/clear it"); }), "/clear takes no argument");
}

TEST(ChatCommands, EachIsInTheHelp) {
  for (const char* name : {"/image", "/system", "/set", "/retry", "/undo", "/save", "/load", "/tools", "/result",
                           "/think", "/clear", "/help", "/quit"}) {
    EXPECT_NE(chat_help().find("  " + std::string(name) + " "), std::string::npos) << name;
    EXPECT_NO_THROW(parse_chat_command(name)) << name;
  }
}

TEST(ChatCommands, TabCompletes) {
  const auto completed = [](const std::string& line) { return complete_chat_line(line).candidates; };
  EXPECT_EQ(completed("/s"), (std::vector<std::string>{"/system", "/set", "/save"}));
  EXPECT_EQ(completed("/set top"), (std::vector<std::string>{"top_k", "top_p"}));
  EXPECT_EQ(completed("/set stats o"), (std::vector<std::string>{"off", "on"}));
  EXPECT_EQ(completed("/think of"), (std::vector<std::string>{"off"}));
  EXPECT_TRUE(completed("hello").empty());
  const Folder folder;
  folder.touch("a b.png");
  const LineCompletion path = complete_chat_line("/image " + folder.path.string() + "/a");
  EXPECT_EQ(path.candidates, (std::vector<std::string>{folder.path.string() + "/a\\ b.png"}));
  EXPECT_EQ(path.replaced, folder.path.string().size() + 2);
  EXPECT_EQ(complete_chat_line("/save --force " + folder.path.string() + "/a").candidates, path.candidates);
}

TEST(ChatSettings, AreSetShownAndReset) {
  Request base, request;
  base.sampling.temperature = 0.5f;
  request = base;
  ChatView view;
  ChatDefaults defaults;
  defaults.checkpoint = {.temperature = 1.5f, .top_p = 0.95f, .top_k = 64, .eos_ids = {}};
  const auto set = [&](const std::string& name, const std::string& value) {
    return apply_setting(name, value, base, request, view, defaults);
  };
  EXPECT_EQ(set("temperature", ""), "temperature is 0.5");
  EXPECT_EQ(set("temperature", "1.25"), "temperature is 1.25");
  EXPECT_EQ(request.sampling.temperature, 1.25f);
  EXPECT_EQ(set("temperature", "default"), "temperature is 0.5");
  EXPECT_EQ(set("top-k", "7"), "top_k is 7");
  EXPECT_EQ(request.sampling.top_k, 7);
  EXPECT_EQ(set("top_k", "default"), "top_k is 64 (the checkpoint's)");
  EXPECT_EQ(set("seed", "42"), "seed is 42");
  EXPECT_EQ(request.sampling.seed, 42u);
  EXPECT_EQ(set("min_p", "0.1"), "min_p is 0.1");
  EXPECT_EQ(set("repetition_penalty", "1.5"), "repetition_penalty is 1.5");
  EXPECT_EQ(set("stats", "off"), "stats is off");
  EXPECT_FALSE(view.stats);
  EXPECT_EQ(set("stats", "on"), "stats is on");
  for (const std::string& name : setting_names()) {
    EXPECT_NE(list_settings(request, view, defaults).find("  " + name + " "), std::string::npos) << name;
  }
}

TEST(ChatSettings, AreListedInColumnsWithTheValuesThatHold) {
  Request request;
  request.sampling.top_p = 0.5f;
  ChatDefaults defaults;
  defaults.checkpoint = {.temperature = 1.5f, .top_p = 0.95f, .top_k = 64, .eos_ids = {}};
  const std::string list = list_settings(request, ChatView(), defaults);
  EXPECT_NE(list.find("\n  top_k               64 (the checkpoint's)   choose among this many; 0: all\n"
                      "  top_p               0.5                     choose among the likeliest"),
            std::string::npos)
      << list;
  EXPECT_TRUE(list.starts_with("  temperature         1.5 (the checkpoint's)  0: always")) << list;
  EXPECT_NE(list.find("\n  seed                drawn for each answer   of"), std::string::npos) << list;
  EXPECT_NE(list.find("\n  thinking_budget     no limit                tokens"), std::string::npos) << list;
  defaults.thinking_budget = 7;
  EXPECT_NE(list_settings(request, ChatView(), defaults).find(" 7 (of --thinking-budget) "), std::string::npos);
  defaults.checkpoint.do_sample = false;
  EXPECT_NE(list_settings(request, ChatView(), defaults).find(" 0 (the checkpoint's) "), std::string::npos)
      << "a checkpoint that does not sample takes the likeliest";
}

TEST(ChatSettings, RefuseWhatIsNone) {
  const Request base;
  Request request;
  ChatView view;
  const auto refused = [&](const std::string& name, const std::string& value) {
    return refusal([&] { apply_setting(name, value, base, request, view, {}); });
  };
  EXPECT_EQ(refused("temperature", "5"), "temperature is a number from 0 to 2, or default");
  EXPECT_EQ(refused("temperature", "nan"), "temperature is a number from 0 to 2, or default");
  EXPECT_EQ(refused("temperature", "1x"), "temperature is a number from 0 to 2, or default");
  EXPECT_EQ(refused("top_k", "1.5"), "top_k is a whole number from 0 to 1073741824, or default");
  EXPECT_EQ(refused("stats", "maybe"), "stats is on or off");
  EXPECT_EQ(refused("temprature", "1"), "there is no setting temprature; did you mean temperature?");
  EXPECT_EQ(refused("zzz", "1"), "there is no setting zzz; /set lists them");
  EXPECT_FALSE(request.sampling.temperature) << "and change nothing";
}

}  // namespace
}  // namespace gemma4
