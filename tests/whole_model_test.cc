// Whole models on one backend: generating, prefill in chunks, sampling by a seed, two sequences side by side, and
// exported programs. The counterparts of ExecuTorch's tests/test_cuda_pipeline.py (docs/parity_with_executorch.md).
// unit_tests runs them on `cpu`, cuda_tests on `cuda`, where they are skipped without a GPU.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "base/bf16.h"
#include "base/json.h"
#include "cli/cli.h"
#include "engine/engine_testing.h"
#include "model/difference_testing.h"
#include "model/model.h"
#include "program/export.h"
#include "program/program.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kBackend = TESTED_BACKEND;

// How far apart logits of one row may be that two kernels computed, for rows alone and rows of a batch. `cuda` rounds
// the inputs of products to bfloat16.
const double kTolerance = kBackend == "cuda" ? 0.02 : 1e-4;

// A greedy choice is clear where the best token leads by this many nats. Rounding does not change a clear choice.
constexpr float kClearLead = 1;

int call(int (*command)(int, char**), std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return command(static_cast<int>(argv.size()), argv.data());
}

class WholeModel : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    try {
      make_backend(kBackend, 1);
    } catch (const DeviceError&) {
      throw;
    } catch (const Error& error) {
      why_ = error.what();
    }
    folder_ = fs::path(testing::TempDir()) / ("gemma4_whole_model_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  static void TearDownTestSuite() { fs::remove_all(folder_); }
  void SetUp() override {
    if (!why_.empty()) GTEST_SKIP() << "NOT TESTED, there is no GPU: " << why_;
  }
  static std::string at(const std::string& name) { return folder_ / name; }

 private:
  static inline fs::path folder_;
  static inline std::string why_;
};

// --- Generating

struct Question {
  Request request;  // greedy, through end tokens
  std::vector<int32_t> reference;
};

// Questions about pictures and about text, with the answers that transformers computed.
std::vector<Question> demo_questions(size_t count_each) {
  const std::string folder = SOURCE_DIR "/tests/golden/demo_eval/";
  const json pictures = read_json<json>(read_file(folder + "demo_eval.json")).at("rows");
  const json texts = read_json<json>(read_file(folder + "demo_text_eval.json"));
  std::vector<Question> questions;
  for (size_t i = 0; i < count_each; ++i) {
    const json& row = pictures[i];
    questions.push_back({chat_request(row.at("question"), 0, {demo_image(row.at("image"))}), row.at("reference_ids")});
    questions.push_back({raw_request(texts[i].at("prompt"), 0), texts[i].at("reference_ids")});
  }
  for (Question& question : questions) {
    question.request.max_new_tokens = static_cast<int>(question.reference.size());
    question.request.ignore_eos = true;
    question.request.logprobs = 2;
  }
  return questions;
}

EngineOptions engine_options(const std::string& backend, const std::string& model) {
  EngineOptions options = demo_options();
  options.backend = backend;
  options.model = model;
  options.prefix_cache = false;
  return options;
}

// All questions are submitted before the first answer is read; options.max_seqs says how many run at a time.
std::vector<Heard> answers(const EngineOptions& options, const std::vector<Question>& questions) {
  Engine engine(options);
  std::vector<std::unique_ptr<Ask>> asks;
  for (const Question& question : questions) asks.push_back(std::make_unique<Ask>(engine, question.request));
  std::vector<Heard> heard;
  for (const auto& ask : asks) {
    heard.push_back(ask->get());
    EXPECT_EQ(heard.back().error, "");
  }
  return heard;
}

// By how much, in nats, the best token of an answer leads at least.
float smallest_lead(const Heard& answer) {
  float lead = INFINITY;
  for (const TokenLogprobs& token : answer.logprobs) {
    lead = std::min(lead, token.top.at(0).logprob - token.top.at(1).logprob);
  }
  return lead;
}

// Every answer is the reference's. `cpu`, which rounds little, also shows that every token of these answers is clear,
// so that another backend's rounding may not change one.
void expect_references(const EngineOptions& options, const std::vector<Question>& questions) {
  const auto heard = answers(options, questions);
  ASSERT_EQ(heard.size(), questions.size());
  for (size_t i = 0; i < heard.size(); ++i) {
    EXPECT_EQ(heard[i].ids, questions[i].reference)
        << "question " << i << ", chunk " << options.chunk << ", " << options.max_seqs << " at a time";
    if (kBackend == "cpu") {
      EXPECT_GE(smallest_lead(heard[i]), kClearLead) << "question " << i;
    }
  }
}

// test_generate, test_inference_produces_valid_output, test_chunked_prefill_matches_sequential: prompts of text and
// with pictures, whole and in chunks.
TEST_F(WholeModel, AnswersAboutTextAndPicturesEqualTheReference) {
  for (const int chunk : {512, 7}) {
    EngineOptions options = engine_options(kBackend, kDemo);
    options.chunk = chunk;
    expect_references(options, demo_questions(6));
  }
}

// No bleed: prompts and tokens of several sequences in one step.
TEST_F(WholeModel, AnswersAmongOthersEqualTheReference) {
  for (const int seqs : {2, 5}) {
    EngineOptions options = engine_options(kBackend, kDemo);
    options.max_seqs = seqs;
    options.chunk = 24;
    expect_references(options, demo_questions(5));
  }
}

// GGUF, generate: 4-bit blocks leave these answers as they are.
TEST_F(WholeModel, AnswersOfAGgufEqualTheReference) {
  ASSERT_EQ(call(export_command, {"export", "--format", "gguf", "--model-dir", kDemo, "--mmproj", "--type", "q4_0",
                                  "--output", at("demo.gguf")}),
            kExitOk);
  expect_references(engine_options(kBackend, at("demo.gguf")), demo_questions(5));
}

// Logits of the tiny checkpoint against those that transformers computed, text and pictures, whole and in chunks.
// `eval` knows each backend's tolerance and compares the best token wherever it is clear. (On `cpu` Golden.* has all
// cases.)
TEST_F(WholeModel, LogitsEqualHuggingFaces) {
  for (const char* chunk : {"0", "7"}) {
    std::vector<std::string> words = {"eval",      "--model", kTiny,     "--golden", kTiny + "/golden",
                                      "--backend", kBackend,  "--chunk", chunk};
    if (kBackend == "cpu") words.insert(words.end(), {"--case", "image_one"});
    EXPECT_EQ(call(eval_command, words), kExitOk) << "chunks of " << chunk;
  }
}

// test_deterministic.
TEST_F(WholeModel, OneSeedGivesOneAnswer) {
  const auto sampled = [](Engine& engine, uint64_t seed) {
    Request request = raw_request("<bos><|turn>user\nList the shapes as JSON.<turn|>\n<|turn>model\n", 40);
    request.sampling.temperature = 1.5f;
    request.sampling.seed = seed;
    request.ignore_eos = true;
    return Ask(engine, request).get().ids;
  };
  std::vector<int32_t> want;
  {
    Engine engine(engine_options(kBackend, kDemo));
    want = sampled(engine, 7);
    EXPECT_EQ(want.size(), 40u);
    EXPECT_EQ(sampled(engine, 7), want);
    EXPECT_NE(sampled(engine, 8), want);
  }
  Engine engine(engine_options(kBackend, kDemo));
  EXPECT_EQ(sampled(engine, 7), want);
}

// --- The text decoder alone

std::vector<int32_t> some_ids(int count, int vocab, int seed = 0) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(100 + (i * 7919 + i * i * 31 + seed * 977) % (vocab - 100));
  return ids;
}

struct Session {
  Session(const Checkpoint& checkpoint, int max_seq_len, int rows_max, int seqs = 1)
      : backend(make_backend(kBackend, 2)) {
    const Config config = parse_config(checkpoint.config);
    ModelOptions options = options_for(config, max_seq_len, rows_max, seqs);
    options.logits_max = rows_max;
    options.vision = false;
    model = std::make_unique<Model>(checkpoint, config, *backend, options);
    for (const AttentionKind kind : {kSliding, kFull}) {
      for (int seq = 0; seq < seqs; ++seq) {  // the pages of the sequences alternate
        std::vector<int32_t> pages(static_cast<size_t>(options.pages_per_seq[kind]));
        for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i) * seqs + seq;
        model->set_pages(kind, seq, pages);
      }
    }
  }

  void append(Batch& batch, int32_t id, int seq, int pos) const {
    append_row(batch, model->config(), id, seq, pos, -1);
  }
  // The logits of all rows of `batch`.
  std::vector<float> logits(Batch batch) {
    batch.logit_rows.resize(batch.ids.size());
    std::iota(batch.logit_rows.begin(), batch.logit_rows.end(), 0);
    model->forward(batch);
    std::vector<float> out(batch.ids.size() * static_cast<size_t>(model->config().vocab));
    model->read_logits(out.data());
    return out;
  }
  // The logits of all of `ids`, computed `chunk` tokens at a time.
  std::vector<float> logits(const std::vector<int32_t>& ids, int chunk) {
    std::vector<float> all;
    for (int begin = 0; begin < static_cast<int>(ids.size()); begin += chunk) {
      Batch batch;
      for (int i = begin; i < std::min(begin + chunk, static_cast<int>(ids.size())); ++i) append(batch, ids[i], 0, i);
      const auto part = logits(batch);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  // The greedy continuation of a prompt that is computed in one pass.
  std::vector<int64_t> greedy(const std::vector<int64_t>& prompt, size_t count) {
    std::vector<int64_t> out;
    std::vector<int64_t> next = prompt;
    for (int pos = 0; out.size() < count; next = {out.back()}) {
      Batch batch;
      for (const int64_t id : next) append(batch, static_cast<int32_t>(id), 0, pos++);
      batch.logit_rows = {static_cast<int32_t>(next.size()) - 1};
      batch.sampling.emplace_back();
      batch.sampling.back().temperature = 0;
      out.push_back(model->forward(batch)[0]);
    }
    return out;
  }

  std::unique_ptr<Backend> backend;
  std::unique_ptr<Model> model;
};

// test_chunked_prefill_matches_sequential, by the logits: far past the window, in rings just long enough for each
// chunk.
TEST_F(WholeModel, PrefillInChunksEqualsWholePrefill) {
  const Checkpoint tiny = open_checkpoint(kTiny);
  const Config config = parse_config(tiny.config);
  const int tokens = 260;
  const auto ids = some_ids(tokens, config.vocab);
  const auto want = Session(tiny, tokens, tokens).logits(ids, tokens);
  for (const int chunk : {1, 7, 64}) {
    Session session(tiny, tokens, chunk);
    ASSERT_LT(session.model->options().pages_per_seq[kSliding], session.model->options().pages_per_seq[kFull]);
    EXPECT_LE(max_difference(want, session.logits(ids, chunk)), kTolerance) << "chunks of " << chunk;
  }
  // One other token within the window of the last one is seen.
  auto others = ids;
  others[others.size() - static_cast<size_t>(config.window)] += 1;
  auto moved = Session(tiny, tokens, 64).logits(others, 64);
  const auto vocab = static_cast<size_t>(config.vocab);
  moved.erase(moved.begin(), moved.end() - static_cast<int64_t>(vocab));
  EXPECT_GT(max_difference({want.end() - static_cast<int64_t>(vocab), want.end()}, moved), 5 * kTolerance);
}

// Sequence 0 in chunks of 8 tokens and then token by token, past the window; sequence 1 beside it in the same steps,
// unless `neighbour` is empty. Returns the logits of sequence 0. `last_of`: the sequence whose keys its last row reads;
// 1 is wrong on purpose.
std::vector<float> logits_beside(const Checkpoint& checkpoint, const std::vector<int32_t>& ids,
                                 const std::vector<int32_t>& neighbour, int last_of = 0) {
  Session session(checkpoint, static_cast<int>(ids.size()) + 1, 16, 2);
  const auto vocab = static_cast<size_t>(session.model->config().vocab);
  std::vector<float> all;
  const int count = static_cast<int>(ids.size());
  for (int begin = 0, end = 0; begin < count; begin = end) {
    end = begin + (begin < 40 ? 8 : 1);
    Batch batch;
    const int seq = end < count ? 0 : last_of;
    for (int i = begin; i < end && !neighbour.empty() && seq == 0; ++i) session.append(batch, neighbour[i], 1, i);
    for (int i = begin; i < end; ++i) session.append(batch, ids[i], seq, i);
    const auto out = session.logits(batch);
    all.insert(all.end(), out.end() - static_cast<int64_t>(vocab * static_cast<size_t>(end - begin)), out.end());
  }
  return all;
}

// No bleed: what runs beside a sequence does not change its logits.
TEST_F(WholeModel, ASequenceBesideAnotherIsTheSequenceAlone) {
  const Checkpoint tiny = open_checkpoint(kTiny);
  const int vocab = parse_config(tiny.config).vocab;
  const auto ids = some_ids(64, vocab), one = some_ids(64, vocab, 1), another = some_ids(64, vocab, 2);
  const auto beside = logits_beside(tiny, ids, one);
  EXPECT_LE(max_difference(beside, logits_beside(tiny, ids, another)), 1e-4);
  EXPECT_LE(max_difference(beside, logits_beside(tiny, ids, {})), kTolerance);
  EXPECT_GT(max_difference(beside, logits_beside(tiny, ids, one, 1)), 5 * kTolerance);  // a row that reads other keys
}

// --- Exported programs

std::vector<int64_t> range(int64_t first, int64_t count) {
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

// The greedy continuation by the methods of an exported program.
std::vector<int64_t> call_program(const std::string& path, const std::vector<int64_t>& prompt, size_t count) {
  Program program(path);
  const std::vector<float> greedy = {0};
  const auto n = static_cast<int64_t>(prompt.size());
  std::vector<int64_t> out = {
      program.call("prefill", {{prompt, {1, n}}, {range(0, n), {n}}, {greedy, {1}}})[0].integers[0]};
  while (out.size() < count) {
    const std::vector<int64_t> id = {out.back()};
    out.push_back(
        program.call("decode", {{id, {1, 1}}, {range(program.position(), 1), {1}}, {greedy, {1}}})[0].integers[0]);
  }
  return out;
}

std::vector<int64_t> widen(const std::vector<int32_t>& ids) { return {ids.begin(), ids.end()}; }

// test_export_from_quantized_checkpoint: the int4 weights that ExecuTorch's quantiser made of the tiny checkpoint.
TEST_F(WholeModel, AProgramOfInt4GivesTheIdsOfItsCheckpoint) {
  fs::create_directories(at("int4"));
  for (const char* name : {"config.json", "tokenizer.json"}) {
    fs::copy_file(kTiny + "/" + name, at("int4/") + name, fs::copy_options::overwrite_existing);
  }
  fs::copy_file(SOURCE_DIR "/tests/golden/quantised/tiny_default/model.safetensors", at("int4/model.safetensors"),
                fs::copy_options::overwrite_existing);
  const Checkpoint int4 = open_checkpoint(at("int4"));
  export_program(int4, {.backend = kBackend, .max_seq_len = 200, .vision = false, .source = at("int4")},
                 at("int4_program"));
  EXPECT_EQ(open_checkpoint(at("int4_program")).kind, "program");
  const Checkpoint bf16 = open_checkpoint(kTiny);
  const int vocab = parse_config(int4.config).vocab;
  bool differs = false;
  for (const int seed : {0, 1}) {
    const auto prompt = widen(some_ids(40, vocab, seed));  // longer than the window
    const auto want = Session(int4, 200, 48).greedy(prompt, 40);
    EXPECT_EQ(call_program(at("int4_program"), prompt, 40), want) << "prompt " << seed;
    differs |= want != Session(bf16, 200, 48).greedy(prompt, 40);
  }
  EXPECT_TRUE(differs);  // so that a program of other weights would be seen
}

// One block of ggml's Q6_K, of 256 values: 4 bits of each code, 2 bits of each code, 16 scales, the scale of the
// scales. The order of the codes is that of dequantize_row_q6_K in ggml-quants.c.
void pack_q6_k(const float* x, uint8_t* block) {
  std::memset(block, 0, 210);
  float largest[16] = {}, top = 0;
  for (int i = 0; i < 256; ++i) largest[i / 16] = std::max(largest[i / 16], std::fabs(x[i]));
  for (const float value : largest) top = std::max(top, value);
  const uint16_t scale_bits = float_to_f16(top / (31 * 127));
  const float scale = f16_to_float(scale_bits);
  std::memcpy(block + 208, &scale_bits, 2);
  for (int i = 0; i < 256 && scale > 0; ++i) {
    const int sub = static_cast<int>(std::lround(std::min(largest[i / 16] / 31 / scale, 127.0f)));
    block[192 + i / 16] = static_cast<uint8_t>(sub);
    if (sub == 0) block[192 + i / 16] = 1;
    const float step = scale * static_cast<float>(std::max(sub, 1));
    const int code = static_cast<int>(std::clamp(std::lround(x[i] / step), -32l, 31l)) + 32;
    const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
    block[half * 64 + quarter % 2 * 32 + lane] |= static_cast<uint8_t>((code & 15) << (quarter / 2 * 4));
    block[128 + half * 32 + lane] |= static_cast<uint8_t>(code >> 4 << (quarter * 2));
  }
}

// The checkpoint with the embedding table and the matrices of all text layers as Q6_K.
Checkpoint as_q6_k(Checkpoint checkpoint) {
  for (auto& [name, weight] : checkpoint.weights) {
    const bool text = name == "embed_tokens.weight" || name.rfind("layers.", 0) == 0;
    if (!text || weight.shape.size() != 2 || weight.matrix.cols % 256 != 0) continue;
    const Matrix from = weight.matrix;
    Matrix& to = weight.matrix;
    to = Matrix();
    to.format = Format::kQ6_K, to.rows = from.rows, to.cols = from.cols;
    const int64_t size = row_bytes(to);
    const auto bytes = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(size * from.rows));
    std::vector<float> row(static_cast<size_t>(from.cols));
    for (int64_t r = 0; r < from.rows; ++r) {
      unpack_row(from, r, row.data());
      for (int64_t b = 0; b < from.cols / 256; ++b) pack_q6_k(&row[b * 256], &(*bytes)[r * size + b * 210]);
    }
    to.codes = Tensor(bytes->data(), DType::kU8, {from.rows, size});
    weight.bytes = bytes->size();
    checkpoint.owned.push_back(bytes);
  }
  return checkpoint;
}

// test_cuda_packers, e2e_q6k_export_lower_decode.
TEST_F(WholeModel, AProgramOfQ6KGivesTheIdsOfItsCheckpoint) {
  const Checkpoint bf16 = open_checkpoint(kDemo), q6_k = as_q6_k(bf16);
  ASSERT_EQ(q6_k.find("embed_tokens.weight")->matrix.format, Format::kQ6_K);
  ASSERT_EQ(q6_k.find("layers.0.mlp.down_proj.weight")->matrix.format, Format::kQ6_K);
  export_program(q6_k, {.backend = kBackend, .max_seq_len = 600, .vision = false, .source = kDemo}, at("q6_k_program"));
  const json texts = read_json<json>(read_file(SOURCE_DIR "/tests/golden/demo_eval/demo_text_eval.json"));
  size_t as_reference = 0;
  for (size_t i = 0; i < 8; ++i) {
    const std::vector<int64_t> prompt = texts[i].at("prompt_ids"), reference = texts[i].at("reference_ids");
    const auto want = Session(q6_k, 600, 512).greedy(prompt, reference.size());
    EXPECT_EQ(call_program(at("q6_k_program"), prompt, reference.size()), want) << "text " << i;
    as_reference += want == reference;
  }
  EXPECT_GE(as_reference, 6u);  // 6 bits change few answers
  const auto ids = some_ids(40, parse_config(bf16.config).vocab);
  const double moved = max_difference(Session(bf16, 64, 40).logits(ids, 40), Session(q6_k, 64, 40).logits(ids, 40));
  EXPECT_GT(moved, 5 * kTolerance);  // the weights are other ones, ...
  EXPECT_LT(moved, 3);               // ... but near
}

}  // namespace
}  // namespace gemma4
