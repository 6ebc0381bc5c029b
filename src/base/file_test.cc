// Writing files: nothing is replaced unless asked for, two writers never mix, links are not followed.
#include "base/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>
#include <thread>
#include <vector>

#include "base/check.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;

class OutputFiles : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  static std::string error_of(const std::function<void()>& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  size_t count() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {})); }

  const fs::path folder_ = fs::path(testing::TempDir()) / ("gemma4_output_" + std::to_string(getpid()));
};

TEST_F(OutputFiles, AFileIsReplacedOnlyWhereAskedFor) {
  const fs::path path = folder_ / "x";
  write_file(path, "one", Overwrite::kRefuse);
  const std::string refused = error_of([&] { write_file(path, "two", Overwrite::kRefuse); });
  EXPECT_EQ(refused, "the output " + path.string() + " exists already; choose another or replace it with --force");
  EXPECT_EQ(read_file(path), "one");
  write_file(path, "two", Overwrite::kReplace);
  EXPECT_EQ(read_file(path), "two");
  for (const fs::path& wrong : {folder_, fs::path("/dev/null")}) {
    EXPECT_NE(error_of([&] { write_file(wrong, "x", Overwrite::kReplace); }), "");
  }
  EXPECT_EQ(count(), 1u);
}

TEST_F(OutputFiles, AMissingFolderIsSaidBeforeTheWorkBegins) {
  const fs::path path = folder_ / "nowhere" / "x";
  const std::string wanted =
      "cannot write " + path.string() + ": the folder " + path.parent_path().string() + " does not exist";
  EXPECT_EQ(error_of([&] { check_output_file(path, Overwrite::kRefuse); }), wanted);
  EXPECT_EQ(error_of([&] { write_file(path, "x", Overwrite::kReplace); }), wanted);
  write_file(folder_ / "nowhere", "a file", Overwrite::kRefuse);
  EXPECT_EQ(error_of([&] { check_output_file(path, Overwrite::kRefuse); }),
            "cannot write " + path.string() + ": " + path.parent_path().string() + " is not a folder");
  check_output_file("x_of_this_folder", Overwrite::kRefuse);
}

TEST_F(OutputFiles, AFileThatAppearsMeanwhileStays) {
  const fs::path path = folder_ / "x";
  {
    AtomicFile file(path);
    file.write("ours", 4);
    fs::create_symlink("nowhere", path);
    EXPECT_NE(error_of([&] { file.commit(); }).find("exists already"), std::string::npos);
  }
  EXPECT_TRUE(fs::is_symlink(path));
  EXPECT_EQ(count(), 1u);
}

TEST_F(OutputFiles, LinksAreNotFollowed) {
  const fs::path target = folder_ / "target", path = folder_ / "x", partial = folder_ / "x.partial";
  write_file(target, "precious");
  fs::create_symlink(target, partial);
  write_file(path, "new", Overwrite::kRefuse);
  EXPECT_EQ(read_file(target), "precious");
  EXPECT_TRUE(fs::is_symlink(partial));
  fs::remove(path);
  fs::create_symlink(target, path);
  EXPECT_NE(error_of([&] { write_file(path, "new", Overwrite::kRefuse); }), "");
  write_file(path, "new", Overwrite::kReplace);  // the link, not what it points to
  EXPECT_EQ(read_file(target), "precious");
  EXPECT_FALSE(fs::is_symlink(path));
  // A link of the name that a partial file has.
  fs::create_symlink(target, folder_ / "x.abc123.partial");
  write_file(path, "newer");
  EXPECT_EQ(read_file(target), "precious");
  EXPECT_TRUE(fs::is_symlink(folder_ / "x.abc123.partial"));
}

TEST_F(OutputFiles, TheSecondWriterIsRefusedWhileTheFirstWrites) {
  const fs::path path = folder_ / "x";
  AtomicFile first(path);
  first.write("first", 5);
  EXPECT_EQ(error_of([&] { AtomicFile second(path); }), "another process is writing " + path.string());
  AtomicFile other(folder_ / "y");
  first.commit();
  EXPECT_EQ(read_file(path), "first");
}

TEST_F(OutputFiles, WhatAKilledProcessLeftIsRemovedAndNothingElse) {
  const fs::path path = folder_ / "x";
  for (const char* name : {"x.k3b9x0.partial", "x.partial", "x.K3b9x0.partial", "xx.k3b9x0.partial", "x.k3b9x0"}) {
    write_file(folder_ / name, "left");
  }
  write_file(path, "new");
  EXPECT_FALSE(fs::exists(folder_ / "x.k3b9x0.partial"));
  EXPECT_EQ(count(), 5u);
}

// Many writers at once: each either writes a whole file or is refused.
TEST_F(OutputFiles, RacingWritersLeaveOneWholeFile) {
  const fs::path path = folder_ / "x";
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 30; ++i) {
        error_of([&] { write_file(path, std::string(10'000, static_cast<char>('a' + t)), Overwrite::kReplace); });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = read_file(path);
  EXPECT_EQ(text, std::string(10'000, text[0]));
  EXPECT_EQ(count(), 1u);
}

TEST_F(OutputFiles, ADirectoryIsNewOrEmptyUnlessAskedFor) {
  const fs::path out = folder_ / "a/b";
  { const OutputDirectory directory(out, Overwrite::kRefuse); }
  EXPECT_FALSE(fs::exists(out)) << "nothing was written";
  fs::create_directories(out);
  { const OutputDirectory directory(out, Overwrite::kRefuse); }
  EXPECT_TRUE(fs::exists(out)) << "it was there";
  write_file(out / "model.k3b9x0.partial", "left by a killed process");
  { const OutputDirectory directory(out, Overwrite::kRefuse); }
  write_file(out / "notes", "mine");
  const std::string refused = error_of([&] { OutputDirectory(out, Overwrite::kRefuse); });
  EXPECT_NE(refused.find("is not empty (it holds notes)"), std::string::npos) << refused;
  { const OutputDirectory directory(out, Overwrite::kReplace); }
  EXPECT_EQ(read_file(out / "notes"), "mine");
  EXPECT_NE(error_of([&] { OutputDirectory(out / "notes", Overwrite::kReplace); }).find("not a directory"),
            std::string::npos);
}

TEST_F(OutputFiles, ADirectoryHasOneWriterAtATime) {
  const fs::path out = folder_ / "out";
  {
    const OutputDirectory first(out, Overwrite::kRefuse);
    for (const Overwrite overwrite : {Overwrite::kRefuse, Overwrite::kReplace}) {
      EXPECT_EQ(error_of([&] { OutputDirectory(out, overwrite); }),
                "another process is writing to " + out.string() + "; choose another directory");
    }
    write_file(out / "x", "first");
  }
  const OutputDirectory later(out, Overwrite::kReplace);
}

}  // namespace
}  // namespace gemma4
