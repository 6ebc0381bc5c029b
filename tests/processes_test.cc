// One process for each rank, as a launcher starts them: N times gemma4, with the environment variables of its rank.
#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>

#include "distributed/control_channel.h"
#include "distributed/free_port_testing.h"
#include "distributed/stranger_testing.h"
#include "program_testing.h"
#include "server/server_testing.h"

namespace gemma4 {
namespace {

using Arguments = std::vector<std::string>;
using Variables = std::vector<std::pair<std::string, std::string>>;

// A gemma4 process with its own environment variables, whose output goes to files. The destructor kills it if it still
// runs.
class Process {
 public:
  Process(Arguments arguments, const Variables& variables) : out_(scratch_.path / "out"), err_(scratch_.path / "err") {
    arguments.insert(arguments.begin(), GEMMA4_BINARY);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ != 0) return;
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
    redirect("/dev/null", O_RDONLY, STDIN_FILENO);
    redirect(out_, O_WRONLY | O_CREAT, STDOUT_FILENO);
    redirect(err_, O_WRONLY | O_CREAT, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(98);
  }
  ~Process() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) const { kill(child_, signal); }
  std::string out() const { return slurp(out_); }

  // Waits for its end. The code stays -1 if it does not end in time.
  Ran wait(std::chrono::seconds most) {
    const auto end = std::chrono::steady_clock::now() + most;
    int status = 0;
    while (waitpid(child_, &status, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > end) return {-1, slurp(out_), slurp(err_)};
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    child_ = -1;
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1 - WTERMSIG(status), slurp(out_), slurp(err_)};
  }

 private:
  Scratch scratch_;
  std::string out_, err_;
  pid_t child_ = -1;
};

Variables variables_of(int rank, int world, int port) {
  const std::string name = std::to_string(rank);
  return {{"RANK", name},
          {"WORLD_SIZE", std::to_string(world)},
          {"LOCAL_RANK", name},
          {"MASTER_PORT", std::to_string(port)}};
}

// Starts the last rank first, so it has to wait for rank 0.
std::vector<std::unique_ptr<Process>> start(int world, Arguments arguments) {
  arguments.push_back("--one-process-per-gpu");
  const int port = free_port();
  std::vector<std::unique_ptr<Process>> all(static_cast<size_t>(world));
  for (int r = world - 1; r >= 0; --r) {
    all[static_cast<size_t>(r)] = std::make_unique<Process>(arguments, variables_of(r, world, port));
  }
  return all;
}

std::vector<Ran> run_all(int world, const Arguments& arguments) {
  std::vector<Ran> ran;
  for (const auto& process : start(world, arguments)) ran.push_back(process->wait(std::chrono::seconds(300)));
  return ran;
}

void expect_quiet_ends(const std::vector<Ran>& ran) {
  for (size_t r = 1; r < ran.size(); ++r) {
    EXPECT_EQ(ran[r].code, 0) << ran[r].err;
    EXPECT_EQ(ran[r].out + ran[r].err, "") << r;
  }
}

struct Setting {
  int world;
  std::string backend;
};

// A build with sanitizers is slow, so each number of processes and each backend is tested once.
const std::vector<Setting>& settings() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static const std::vector<Setting> all = {{2, "ref"}, {4, "cpu"}};
#else
  static const std::vector<Setting> all = {{2, "ref"}, {2, "cpu"}, {4, "ref"}, {4, "cpu"}};
#endif
  return all;
}

TEST(Processes, GoldenCasesPass) {
  for (const auto& [world, backend] : settings()) {
    const auto ran = run_all(world, {"eval", "--model", kTiny, "--golden", kTiny + "/golden", "--backend", backend});
    EXPECT_EQ(ran[0].code, 0) << ran[0].out << ran[0].err;
    EXPECT_NE(ran[0].out.find("PASS: 5 cases, backend " + backend), std::string::npos) << ran[0].out;
    expect_quiet_ends(ran);
  }
}

// The whole output of eval, with its measured errors, equals that of as many ranks in one process: the sums are the
// same.
TEST(Processes, EqualTheRanksOfOneProcess) {
  const Arguments eval = {"eval", "--model", kTiny, "--golden", kTiny + "/golden", "--backend", "ref"};
  Arguments within = eval;
  within.insert(within.end(), {"--gpus", "2"});
  const std::string together = run_all(2, eval)[0].out;
  EXPECT_EQ(together, run_gemma4(within).out);
  EXPECT_NE(together, run_gemma4(eval).out) << "one rank rounds otherwise";
}

TEST(Processes, AnswerAboutAPictureLikeOneProcess) {
  const Arguments ask = {"run",     "--model",           kDemo,      "--temperature",       "0", "--max-seq-len", "512",
                         "--image", kImages + "002.png", "--prompt", "What is at the left?"};
  for (const auto& [world, backend] : settings()) {
    Arguments arguments = ask;
    arguments.insert(arguments.end(), {"--backend", backend});
    const auto ran = run_all(world, arguments);
    EXPECT_EQ(ran[0].code, 0) << ran[0].err;
    EXPECT_EQ(ran[0].out, "A pink circle.\n");
    expect_quiet_ends(ran);
  }
}

TEST(Processes, AllRefuseAModelThatDoesNotDivide) {
  for (const Ran& ran : run_all(3, {"run", "--model", kDemo, "--prompt", "x"})) {
    EXPECT_EQ(ran.code, 2);
    EXPECT_EQ(ran.out, "");
    const std::string why = "cannot split the model over 3 devices: its 4 query heads do not divide\n";
    EXPECT_TRUE(ran.err.ends_with(why)) << ran.err;
    EXPECT_EQ(std::ranges::count(ran.err, '\n'), 1) << ran.err;
  }
}

TEST(Processes, BadInputOfRank0EndsAll) {
  const auto ran = run_all(2, {"run", "--model", kDemo, "--prompt-file", "/no/such/file"});
  EXPECT_EQ(ran[0].code, 2);
  EXPECT_EQ(ran[0].err, "gemma4: cannot open /no/such/file: No such file or directory\n");
  EXPECT_EQ(ran[1].code, 2);
  EXPECT_EQ(ran[1].err, "gemma4: rank 0: cannot open /no/such/file: No such file or directory\n");
}

TEST(Processes, WithoutALauncherIsRefused) {
  const Ran alone = run_gemma4({"run", "--model", kDemo, "--prompt", "x", "--one-process-per-gpu"});
  EXPECT_EQ(alone.code, 2);
  EXPECT_NE(alone.err.find("none of their variables is set"), std::string::npos) << alone.err;
  const Ran both = run_gemma4({"run", "--model", kDemo, "--prompt", "x", "--one-process-per-gpu", "--gpus", "2"});
  EXPECT_EQ(both.code, 2);
  for (const auto& [flag, value, why] : {std::tuple("--gpu-layers", "auto", "leave it away, or --gpu-layers"),
                                         std::tuple("--split", "layers", "--split requires --gpus")}) {
    const Ran layers = run_gemma4({"run", "--model", kDemo, "--prompt", "x", "--one-process-per-gpu", flag, value});
    EXPECT_EQ(layers.code, 2);
    EXPECT_NE(layers.err.find(why), std::string::npos) << layers.err;
  }
}

// One process is killed during an answer that would take minutes: the others end within seconds, with a message.
void expect_death_of_one_ends_all(size_t victim, const std::string& backend) {
  const auto all = start(4, {"run", "--model", kDemo, "--backend", backend, "--max-seq-len", "4096", "--temperature",
                             "0", "--ignore-eos", "--prompt", "Count from 9 to 17."});
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(300);
  while (all[0]->out().size() < 8) {
    ASSERT_LT(std::chrono::steady_clock::now(), end);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  all[victim]->send(SIGKILL);
  const auto killed = std::chrono::steady_clock::now();
  for (size_t r = 0; r < all.size(); ++r) {
    const Ran ran = all[r]->wait(std::chrono::seconds(60));
    EXPECT_EQ(ran.code, r == victim ? -1 - SIGKILL : 3) << r << ": " << ran.err;
    if (r == victim) continue;
    EXPECT_NE(ran.err.find("gemma4: rank " + std::to_string(victim) + " has ended before its time"), std::string::npos)
        << r << ": " << ran.err;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(8));
}

TEST(Processes, OneThatIsKilledEndsTheOthersWithCode3) {
  expect_death_of_one_ends_all(2, "cpu");
  expect_death_of_one_ends_all(0, "ref");
}

const Arguments kServe = {"serve", "--model", kDemo, "--port", "0", "--threads", "1"};

void wait_until_it_serves(const Process& rank_0) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(300);
  while (rank_0.out().find('\n') == std::string::npos && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_NE(rank_0.out().find('\n'), std::string::npos) << "the server did not start";
}

// A server over two processes. It prints its address when it listens.
std::vector<std::unique_ptr<Process>> serve_over_two(const Arguments& more = {}) {
  Arguments arguments = kServe;
  arguments.insert(arguments.end(), more.begin(), more.end());
  auto all = start(2, arguments);
  wait_until_it_serves(*all[0]);
  return all;
}

std::unique_ptr<Process> serve_as_rank_0(int port) {
  Arguments arguments = kServe;
  arguments.push_back("--one-process-per-gpu");
  return std::make_unique<Process>(arguments, variables_of(0, 2, port));
}

void expect_end_by_signal(Process& process, int signal) {
  process.send(signal);
  const Ran ran = process.wait(std::chrono::seconds(1));
  EXPECT_EQ(ran.code, -1 - signal) << ran.err;
}

// A launcher sends its signal to all processes: rank 0 lets answers finish, the others wait for it.
TEST(Processes, ASignalToAllEndsAServerInOrder) {
  const auto all = serve_over_two();
  for (const auto& process : all) process->send(SIGTERM);
  EXPECT_EQ(all[0]->wait(std::chrono::seconds(60)).code, 0);
  const Ran worker = all[1]->wait(std::chrono::seconds(60));
  EXPECT_EQ(worker.code, 0);
  EXPECT_EQ(worker.out + worker.err, "");
}

// Without any request the server ends, too.
TEST(Processes, AnIdleServerEndsWhenAWorkerIsKilled) {
  const auto all = serve_over_two();
  all[1]->send(SIGKILL);
  const Ran server = all[0]->wait(std::chrono::seconds(30));
  EXPECT_EQ(server.code, 3);
  EXPECT_NE(server.err.find("rank 1 has ended before its time"), std::string::npos) << server.err;
}

// Rank 0 took the first that spoke as rank 1, and then waited for ever for what it would say.
TEST(Processes, AStrangerWhoSpeaksFirstIsNotRank1) {
  const int port = free_port();
  const auto rank_0 = serve_as_rank_0(port);
  const Stranger old(port, old_hello(2)), silent(port, ""), http(port, "GET / HTTP/1.1\r\n\r\n");
  Arguments arguments = kServe;
  arguments.push_back("--one-process-per-gpu");
  Process rank_1(arguments, variables_of(1, 2, port));
  wait_until_it_serves(*rank_0);
  rank_0->send(SIGTERM);
  EXPECT_EQ(rank_0->wait(std::chrono::seconds(60)).code, 0);
  EXPECT_EQ(rank_1.wait(std::chrono::seconds(60)).code, 0);
}

TEST(Processes, AnotherTokenIsTurnedAway) {
  const int port = free_port();
  Variables first = variables_of(0, 2, port), second = variables_of(1, 2, port);
  first.emplace_back("GEMMA4_RENDEZVOUS_TOKEN", "the token of this job");
  second.emplace_back("GEMMA4_RENDEZVOUS_TOKEN", "the token of another");
  Arguments arguments = kServe;
  arguments.push_back("--one-process-per-gpu");
  Process rank_0(arguments, first);
  const Ran turned_away = Process(arguments, second).wait(std::chrono::seconds(30));
  EXPECT_EQ(turned_away.code, 2);
  EXPECT_NE(turned_away.err.find("did not take this process as rank 1 of 2"), std::string::npos) << turned_away.err;
  second.back().second = first.back().second;
  Process rank_1(arguments, second);
  wait_until_it_serves(rank_0);
  rank_0.send(SIGTERM);
  const Ran ran = rank_0.wait(std::chrono::seconds(60));
  EXPECT_EQ(ran.code, 0);
  EXPECT_NE(ran.err.find("gemma4: a connection from 127.0.0.1 was turned away: it does not know the token of this job"),
            std::string::npos)
      << ran.err;
  EXPECT_EQ(rank_1.wait(std::chrono::seconds(60)).code, 0);
}

TEST(Processes, ASignalEndsTheRendezvousOfEachRank) {
  const int port = free_port();
  const auto rank_0 = serve_as_rank_0(port);
  const Stranger stranger(port, old_hello(2));  // rank 0 listens
  expect_end_by_signal(*rank_0, SIGTERM);
  Arguments arguments = kServe;
  arguments.push_back("--one-process-per-gpu");
  Process rank_1(arguments, variables_of(1, 2, free_port()));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  expect_end_by_signal(rank_1, SIGINT);
}

// This test is rank 1, and it never becomes ready: rank 0 opens its engine until a signal comes.
TEST(Processes, ASignalEndsAServerThatLoads) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const int port = free_port();
    const auto rank_0 = serve_as_rank_0(port);
    const auto channel = ControlChannel::rendezvous({1, 2, 1, 2, "127.0.0.1", port}, std::chrono::milliseconds(60'000));
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    expect_end_by_signal(*rank_0, signal);
  }
}

// A stopped process keeps its connections open. With the default timeout this takes a minute.
TEST(Processes, ARankThatIsStoppedEndsTheOthersWithCode3) {
  for (const size_t victim : {1, 0}) {
    const auto all = serve_over_two({"--rank-timeout", "2"});
    all[victim]->send(SIGSTOP);
    const auto stopped = std::chrono::steady_clock::now();
    const Ran other = all[1 - victim]->wait(std::chrono::seconds(30));
    EXPECT_LT(std::chrono::steady_clock::now() - stopped, std::chrono::seconds(25));
    const std::string name = "rank " + std::to_string(victim);
    EXPECT_EQ(other.code, 3);
    EXPECT_NE(other.err.find("gemma4: " + name + " has not answered for 2 s"), std::string::npos) << other.err;
    all[victim]->send(SIGCONT);
    EXPECT_EQ(all[victim]->wait(std::chrono::seconds(30)).code, 3);
  }
}

// Rank 0 waits for the stopped rank in the middle of an answer, and ignored two signals.
TEST(Processes, SignalsEndAServerWhoseRankIsStopped) {
  const auto all = serve_over_two();
  const std::string line = all[0]->out();
  test::Socket client(std::stoi(line.substr(line.rfind(':') + 1)));
  all[1]->send(SIGSTOP);
  client.send(test::http_text("POST", "/v1/completions", R"({"model": "demo", "prompt": "Count", "max_tokens": 8})"));
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  all[0]->send(SIGTERM);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  all[0]->send(SIGTERM);
  const Ran server = all[0]->wait(std::chrono::seconds(20));
  EXPECT_EQ(server.code, 3) << server.err;
  EXPECT_NE(server.err.find("rank 1 has not answered for 5 s"), std::string::npos) << server.err;
}

}  // namespace
}  // namespace gemma4
