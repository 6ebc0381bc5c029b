#include "model/rank_commands.h"

#include <cstring>
#include <type_traits>

#include "base/bytes.h"

namespace gemma4 {
namespace {

template <typename T>
void put(CommandBytes& out, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));  // insert() from pointers makes GCC 12 warn wrongly
}

template <typename T>
void put_all(CommandBytes& out, std::span<const T> values) {
  put(out, static_cast<uint32_t>(values.size()));
  const auto bytes = std::as_bytes(values);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

template <typename T>
std::vector<T> take_all(Reader& in) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto count = in.read<uint32_t>();
  const auto bytes = in.take(uint64_t{count} * sizeof(T));
  std::vector<T> values(count);
  if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

AttentionKind take_kind(Reader& in) {
  const auto kind = in.read<uint8_t>();
  if (kind >= kAttentionKinds) throw Error(in.what() + " names a kind of layer that there is not");
  return static_cast<AttentionKind>(kind);
}

CommandBytes begin(RankCommand::Type type) { return {static_cast<std::byte>(type)}; }

void put_options(CommandBytes& out, const ModelOptions& o) {
  static_assert(kAttentionKinds == 2);
  for (const int value : {o.rows_max, o.logits_max, o.seqs_max, o.page}) put(out, int32_t{value});
  for (const int value : {o.pages[0], o.pages[1], o.pages_per_seq[0], o.pages_per_seq[1]}) put(out, int32_t{value});
  put(out, static_cast<uint8_t>(o.vision));
}

ModelOptions take_options(Reader& in) {
  ModelOptions o;
  for (int* value : {&o.rows_max, &o.logits_max, &o.seqs_max, &o.page}) *value = in.read<int32_t>();
  for (int* value : {&o.pages[0], &o.pages[1], &o.pages_per_seq[0], &o.pages_per_seq[1]}) *value = in.read<int32_t>();
  o.vision = in.read<uint8_t>() != 0;
  return o;
}

Batch take_batch(Reader& in) {
  Batch batch;
  batch.ids = take_all<int32_t>(in);
  for (auto& rows : batch.rows) rows = take_all<Row>(in);
  batch.image_index = take_all<int32_t>(in);
  for (const int64_t rows : take_all<int64_t>(in)) {
    if (rows < 0) throw Error(in.what() + " has a picture of fewer rows than none");
    batch.image_embeddings.emplace_back(nullptr, DType::kF32, std::initializer_list<int64_t>{rows});
  }
  batch.logit_rows = take_all<int32_t>(in);
  return batch;
}

}  // namespace

CommandBytes encode_open(uint64_t fingerprint, const ModelOptions& options) {
  CommandBytes out = begin(RankCommand::kOpen);
  put(out, fingerprint);
  put_options(out, options);
  return out;
}

CommandBytes encode_caches(const ModelOptions& options) {
  CommandBytes out = begin(RankCommand::kCaches);
  put_options(out, options);
  return out;
}

CommandBytes encode_close() { return begin(RankCommand::kClose); }

CommandBytes encode_set_pages(AttentionKind kind, int seq, std::span<const int32_t> pages) {
  CommandBytes out = begin(RankCommand::kSetPages);
  put(out, static_cast<uint8_t>(kind));
  put(out, int32_t{seq});
  put_all(out, pages);
  return out;
}

CommandBytes encode_copy_page(AttentionKind kind, int32_t from, int32_t to) {
  CommandBytes out = begin(RankCommand::kCopyPage);
  put(out, static_cast<uint8_t>(kind));
  put(out, from);
  put(out, to);
  return out;
}

CommandBytes encode_forward(const Batch& batch) {
  CommandBytes out = begin(RankCommand::kForward);
  put_all(out, std::span<const int32_t>(batch.ids));
  for (const auto& rows : batch.rows) put_all(out, std::span<const Row>(rows));
  put_all(out, std::span<const int32_t>(batch.image_index));
  std::vector<int64_t> soft_rows;
  for (const Tensor& soft : batch.image_embeddings) soft_rows.push_back(soft.rows());
  put_all(out, std::span<const int64_t>(soft_rows));
  put_all(out, std::span<const int32_t>(batch.logit_rows));
  return out;
}

RankCommand decode_command(std::span<const std::byte> bytes) {
  Reader in(bytes, "a call of rank 0");
  RankCommand command;
  command.type = static_cast<RankCommand::Type>(in.read<uint8_t>());
  switch (command.type) {
    case RankCommand::kOpen:
      command.model = in.read<uint64_t>();
      command.options = take_options(in);
      break;
    case RankCommand::kCaches:
      command.options = take_options(in);
      break;
    case RankCommand::kClose:
      break;
    case RankCommand::kSetPages:
      command.kind = take_kind(in);
      command.seq = in.read<int32_t>();
      command.pages = take_all<int32_t>(in);
      break;
    case RankCommand::kCopyPage:
      command.kind = take_kind(in);
      command.from = in.read<int32_t>();
      command.to = in.read<int32_t>();
      break;
    case RankCommand::kForward:
      command.batch = take_batch(in);
      break;
    default:
      throw Error(in.what() + " is of no known kind");
  }
  if (in.remaining() > 0) throw Error(in.what() + " is longer than it should be");
  return command;
}

// FNV-1a.
uint64_t model_fingerprint(const Checkpoint& checkpoint, const std::string& backend) {
  uint64_t fingerprint = 0xcbf29ce484222325;
  for (const std::string* text : {&checkpoint.config, &checkpoint.kind, &backend}) {
    for (const char c : *text) fingerprint = (fingerprint ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return fingerprint;
}

namespace {

// The caches are as large as rank 0 says, once all have loaded their weights.
PlanCaches plan_of_rank_0(ControlChannel& channel) {
  return [&channel](ModelOptions& options, const CacheMemory&) {
    const auto bytes = channel.next_command();
    const RankCommand command = bytes ? decode_command(*bytes) : RankCommand();
    if (command.type != RankCommand::kCaches) throw Error("rank 0 has not said how large the caches are");
    options = command.options;
  };
}

}  // namespace

void worker_loop(const Checkpoint& checkpoint, const Ranks& ranks) {
  const Config config = parse_config(checkpoint.config);
  std::unique_ptr<Model> model;
  while (const auto bytes = ranks.channel()->next_command()) {
    const RankCommand command = decode_command(*bytes);
    if (command.type == RankCommand::kClose || command.type == RankCommand::kOpen) model.reset();
    if (command.type == RankCommand::kOpen) {
      if (command.model != model_fingerprint(checkpoint, ranks[0].name())) {
        throw Error(checkpoint.path.string() + " holds another model than rank 0's, or is run by another backend");
      }
      model = std::make_unique<Model>(checkpoint, config, ranks, command.options, plan_of_rank_0(*ranks.channel()));
    } else if (command.type != RankCommand::kClose) {
      if (!model) throw Error("rank 0 calls a model that it has not opened");
      if (command.type == RankCommand::kSetPages) model->set_pages(command.kind, command.seq, command.pages);
      if (command.type == RankCommand::kCopyPage) model->copy_page(command.kind, command.from, command.to);
      if (command.type == RankCommand::kForward) model->forward(command.batch);
    }
  }
  ranks[0].sync();
}

}  // namespace gemma4
