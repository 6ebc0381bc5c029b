#include "backend/cuda/megakernel/recorder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "backend/cuda/gemm/select_kernel.h"
#include "backend/cuda/runtime/dispatch.cuh"
#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

constexpr size_t kInstructionsMin = 3;  // fewer run by their own kernels
constexpr size_t kListsMax = 256;       // kept on the device, about 70 KB each

bool activation(const Tensor& t) { return t.dtype == DType::kBF16 || t.dtype == DType::kF32; }
bool weight(const Tensor& t, int64_t size) {
  return t && t.dtype == DType::kF32 && t.size() == size && aligned(t.data);
}

// Member by member, so that the padding stays zero: lists are compared as bytes.
void copy_view(KvCacheView& to, const KvCacheView& from) {
  to.k = from.k, to.v = from.v, to.heads = from.heads, to.dim = from.dim, to.row = from.row, to.page = from.page;
  to.table = from.table, to.table_cols = from.table_cols, to.table_page = from.table_page;
  to.page_shift = from.page_shift, to.table_stride = from.table_stride;
  to.rotated = from.rotated, to.k_norm = from.k_norm;
}

}  // namespace

struct OpRecorder::Uploaded {
  std::vector<Instruction> instructions;
  Instruction* device;
};

OpRecorder::OpRecorder(const MegakernelWorkspace& workspace, Launch launch)
    : workspace_(workspace), launch_(std::move(launch)) {
#if GEMMA4_KERNEL_CLOCKS
  clocks_ = std::make_unique<KernelClocks>(workspace.decode.blocks);
  workspace_.clocks = clocks_->entries();
#endif
  const char* value = std::getenv("GEMMA4_CUDA_STEP");
  const std::string step = value ? value : "";
  enabled_ = megakernel_fits(workspace.decode) && step != "off";
  // CTA r computes the norms of row r.
  if (workspace.rows.limbs && workspace.ranks.world == 1 && step != "one") {
    rows_max_ = std::min(kRowsMax, workspace.decode.blocks);
  }
}

OpRecorder::~OpRecorder() {
  for (const Uploaded& list : uploaded_) cudaFree(list.device);
}

// A list has ops of one number of rows. Several rows are taken where one GPU has the whole model.
bool OpRecorder::takes_rows(int64_t rows) const {
  return rows >= 1 && rows <= rows_max_ && (rows_ == 0 || rows == rows_);
}

Instruction& OpRecorder::add(Opcode opcode, Fallback fallback) {
  instructions_.emplace_back().opcode = opcode;
  fallbacks_.push_back(std::move(fallback));
  ++recorded_ops_;
  return instructions_.back();
}

bool OpRecorder::last_is(Opcode opcode) const {
  return !instructions_.empty() && instructions_.back().opcode == opcode;
}

void OpRecorder::append_fallback(Fallback fallback) {
  fallbacks_.back() = [first = std::move(fallbacks_.back()), second = std::move(fallback)](cudaStream_t stream) {
    first(stream);
    second(stream);
  };
}

// A channel for `size` values. None if its use could overwrite values that a CTA still has to read: between two
// barriers over all CTAs a channel can be used once.
FlaggedChannel OpRecorder::channel(Values what, int64_t size) {
  if (size > kChannelValues || !workspace_.channels) return {};
  size_t i = 0;
  while (i < channels_.size() && (channels_[i].what != what || channels_[i].size != size)) ++i;
  if (i == channels_.size()) {
    if (i + 1 >= kChannels) return {};
    channels_.push_back({what, size, false});
  }
  if (channels_[i].used) return {};
  channels_[i].used = true;
  const int index = static_cast<int>(i) + 1;
  return {workspace_.channels + static_cast<int64_t>(index) * kChannelValues, index, ++epochs_[index]};
}

// Notes that from here on every CTA has finished all earlier instructions. This holds after a barrier over all CTAs,
// and after a norm, which needs values of every CTA.
void OpRecorder::all_blocks_barrier() {
  for (Channel& channel : channels_) channel.used = false;
  gemvs_ = 0;
}

// A channel for x [cols] of the next GEMV, if the instruction before produces x.
FlaggedChannel OpRecorder::channel_to_gemv(const Tensor& x, int64_t cols) {
  if (instructions_.empty() || gemvs_ >= 2) return {};  // the workspace has room for the partials of two GEMVs
  Instruction& before = instructions_.back();
  if (before.opcode == Opcode::kGemv && before.gemv.geglu && before.gemv.out == x.data &&
      before.gemv.rows == 2 * cols) {
    return before.gemv.to = channel(Values::kGeglu, cols);
  }
  if (before.opcode == Opcode::kAttention && before.attention.out == x.data &&
      before.attention.kv.heads * before.attention.group * before.attention.kv.dim == cols) {
    return before.attention.to = channel(Values::kAttention, cols);
  }
  return {};
}

// Of several rows: where the limbs of x come from. False: from nowhere in the list, or `w` is not a GEMV whose results
// they can take.
bool OpRecorder::limbs_for_gemv(const Tensor& x, const DeviceMatrix& w, bool geglu, bool from_norm,
                                LimbSource& limbs) const {
  if (gemvs_ >= 2 || (geglu ? w.rows % kRowTileRows != 0 : w.rows > kChannelValues)) return false;
  limbs = LimbSource::kNorm;
  if (from_norm) return true;
  if (instructions_.empty()) return w.cols <= kResidualDimMax;
  const Instruction& before = instructions_.back();
  if (before.opcode == Opcode::kGemv) {
    limbs = LimbSource::kGeglu;
    return before.gemv.geglu && before.gemv.out == x.data && before.gemv.rows == 2 * w.cols;
  }
  limbs = LimbSource::kAttention;
  return before.opcode == Opcode::kAttention && before.attention.out == x.data &&
         before.attention.kv.heads * before.attention.group * before.attention.kv.dim == w.cols;
}

bool OpRecorder::linear(const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu, Fallback fallback) {
  offered_ops_ += takes_rows(x.rows());
  if (!enabled_ || !open_ || attention_pending_ || !takes_rows(x.rows()) || !activation(x) || !activation(out))
    return false;
  const bool several = x.rows() > 1;
  if (several && x.stride % 4 != 0) return false;  // the rows are read as vectors
  const bool known = w.layout == Layout::kInt4G32 || w.layout == Layout::kInt4G64 || w.layout == Layout::kQ4_0;
  if (!known || (!instructions_.empty() && layout_ != Layout::kBF16 && layout_ != w.layout)) return false;
  if (geglu != w.paired || !aligned(x.data) || w.cols % kWeightTileCols != 0) return false;
  const int64_t row_tiles = (w.rows + kRowTileRows - 1) / kRowTileRows, col_tiles = w.cols / kWeightTileCols;
  if (row_tiles * col_tiles * col_tiles >= (int64_t{1} << 32))
    return false;  // GemvInstruction::quotient() is exact below that
  const int64_t blocks = workspace_.decode.blocks, even = row_tiles * col_tiles / blocks;  // units of a CTA
  const int64_t spare = even < col_tiles ? spare_units(even) : 0;
  const int64_t each = row_tiles * (col_tiles - spare) / blocks,
                most = each + 1 + spare * (each / (col_tiles - spare) + 1);
  const bool from_norm = last_is(Opcode::kRmsNorm), whole = from_norm || most >= col_tiles;
  const bool fits = several ? col_tiles <= kRowsTilesMax && each > 0
                            : (whole ? col_tiles : most) <= megakernel_input_tiles(workspace_.decode);
  if (!fits) return false;
  if (last_is(Opcode::kGemv) && instructions_.back().gemv.all_reduce) return false;
  if (from_norm && (instructions_.back().rms_norm.out != x.data || instructions_.back().rms_norm.dim != w.cols))
    return false;
  const FlaggedChannel from = from_norm || several ? FlaggedChannel() : channel_to_gemv(x, w.cols);
  LimbSource limbs = LimbSource::kNorm;
  if (several && !limbs_for_gemv(x, w, geglu, from_norm, limbs)) return false;
  if (!several && !from_norm && !from.values) all_blocks_barrier();  // mark_barriers() puts one here
  const bool from_memory = several && instructions_.empty();
  GemvInstruction& op = add(Opcode::kGemv, std::move(fallback)).gemv;
  op.from = from, op.second_partials = gemvs_++ % 2 == 1;
  op.weights = static_cast<const uint8_t*>(w.data);
  op.x = x.data, op.out = out.data;
  op.rows = static_cast<int>(w.rows), op.col_tiles = static_cast<int>(col_tiles),
  op.row_tiles = static_cast<int>(row_tiles);
  const auto inverse = [](int64_t n) {
    return ((uint64_t{1} << 32) + static_cast<uint64_t>(n) - 1) / static_cast<uint64_t>(n);
  };
  op.each = static_cast<int>(each), op.more = static_cast<int>(row_tiles * (col_tiles - spare) % blocks);
  op.spare = static_cast<int>(spare), op.whole = whole;
  op.inverse_col_tiles = inverse(col_tiles), op.inverse_counted = inverse(col_tiles - spare);
  op.x_f32 = x.dtype == DType::kF32, op.out_f32 = out.dtype == DType::kF32;
  op.paired = w.paired, op.geglu = geglu, op.from_norm = from_norm;
  op.limbs = limbs, op.from_memory = from_memory, op.x_stride = x.stride;
  layout_ = w.layout, rows_ = x.rows();
  return true;
}

bool OpRecorder::qk_norm_rope_cache(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Backend::QkNorms& norms, const Tensor& pos, const Rope& rope,
                                    const KvCacheView& kv, const Tensor& rows, Fallback fallback) {
  if (!enabled_ || !open_ || attention_pending_ || !last_is(Opcode::kGemv)) return false;
  const bool sliding = kv.dim == 256 && kv.rotated == 0 && v, full = kv.dim == 512 && kv.rotated == 64 && !v;
  const int64_t count = rows.rows();
  if (!(sliding || full) || rope.block != kv.dim || !takes_rows(count) || q.rows() != count || pos.size() != count)
    return false;
  const bool several = count > 1;
  if (several && (rows.stride != 4 || pos.stride != 1)) return false;
  if (!kv.table || kv.table_page % 16 != 0 || q.shape[1] % kv.heads != 0 || q.shape[1] / kv.heads > 8) return false;
  const bool types = activation(q) && q.dtype == k.dtype && (!v || v.dtype == q.dtype);
  if (!types || !aligned(q.data) || !aligned(k.data) || (v && !aligned(v.data))) return false;
  if (!weight(norms.q, kv.dim) || !weight(norms.k, kv.dim) || !weight(rope.inv_freq, kv.dim / 2)) return false;
  if (kv.heads > workspace_.decode.blocks) return false;
  GemvInstruction& gemv = instructions_.back().gemv;
  const auto index = [&](const Tensor& t) {  // of t's first element in the GEMV's output
    return (static_cast<const char*>(t.data) - static_cast<const char*>(gemv.out)) /
           static_cast<int64_t>(dtype_size(t.dtype));
  };
  const auto within = [&](const Tensor& t) { return index(t) >= 0 && index(t) + t.row_size() <= gemv.rows; };
  const bool all = !gemv.geglu && !gemv.all_reduce && gemv.out_f32 == (q.dtype == DType::kF32) && within(q) &&
                   within(k) && (!v || within(v)) && gemv.rows % 4 == 0;
  const void*& step_rows = step_rows_[full];
  if (several && (!all || (step_rows && step_rows != rows.data))) return false;
  const FlaggedChannel from = all && !several ? channel(Values::kQkv, gemv.rows) : FlaggedChannel();
  gemv.to = from;
  if (!several && !from.values) all_blocks_barrier();
  const auto address = [&](const Tensor& t) -> const void* {
    if (several) return workspace_.rows.values + index(t);
    return from.values ? from.values + index(t) : t.data;
  };
  AttentionInstruction& op = add(Opcode::kAttention, std::move(fallback)).attention;
  op.from = from;
  op.q = address(q), op.k = address(k), op.v = v ? address(v) : nullptr;
  op.q_norm = static_cast<const float*>(norms.q.data), op.k_norm = static_cast<const float*>(norms.k.data);
  op.inv_freq = static_cast<const float*>(rope.inv_freq.data);
  op.pos = static_cast<const int32_t*>(pos.data), op.row = static_cast<const int32_t*>(rows.data);
  copy_view(op.kv, kv);
  op.eps = norms.eps;
  op.group = static_cast<int>(q.shape[1] / kv.heads), op.splits = workspace_.decode.blocks / kv.heads;
  op.f32 = q.dtype == DType::kF32;
  query_ = query.data, rows_ = count, step_rows = rows.data;
  attention_pending_ = true;
  return true;
}

bool OpRecorder::attention(const Tensor& out, const Tensor& query, const KvCacheView& kv, const Tensor& rows,
                           Fallback fallback) {
  offered_ops_ += takes_rows(query.rows());
  if (!attention_pending_) return false;
  AttentionInstruction& op = instructions_.back().attention;
  if (query_ != query.data || op.kv.v != kv.v || op.row != rows.data) return false;
  if (out.dtype != DType::kBF16 || !aligned(out.data)) return false;
  op.out = out.data;
  attention_pending_ = false;
  append_fallback(std::move(fallback));
  return true;
}

// If the GEMV before can send its result to the ranks instead of writing it, makes it the step's next all-reduce. On
// one GPU too: waiting for flagged values is faster than waiting for all CTAs.
bool OpRecorder::make_all_reduce(const Tensor& x) {
  if (!last_is(Opcode::kGemv) || !workspace_.ranks.receive[0]) return false;
  GemvInstruction& op = instructions_.back().gemv;
  const int64_t size = x.row_size();
  if (op.out != x.data || op.rows != size || op.geglu || op.paired || op.all_reduce) return false;
  if (size > kResidualDimMax || size % kWeightTileRows != 0) return false;
  const bool several = x.rows() > 1;  // their values carry whole epochs
  if (!several && all_reduce_dim_ && all_reduce_dim_ != size) return false;
  // A CTA without a range sends nothing, so the norm would not wait for it. All ranks decide alike: their matrices
  // differ by a group of columns at most.
  if (op.each == 0) return false;
  if (!several) all_reduce_dim_ = size;
  op.all_reduce = ++epochs_[0];
  return true;
}

bool OpRecorder::all_reduce(const Tensor& x, Fallback fallback) {
  offered_ops_ += x.rows() == 1;
  if (!enabled_ || !open_ || attention_pending_ || workspace_.ranks.world < 2 || x.rows() != 1) return false;
  if (!make_all_reduce(x)) return false;
  append_fallback(std::move(fallback));
  ++recorded_ops_;
  return true;
}

bool OpRecorder::add_rms_norm(const Tensor& out, const Tensor& x, const Tensor& y, const Tensor& post, float scale,
                              const Tensor& next, float eps, Fallback fallback) {
  if (takes_rows(x.rows())) layer_ops_ = ++offered_ops_;
  if (!enabled_ || !open_ || attention_pending_ || !takes_rows(x.rows()) || x.dtype != DType::kF32 || !activation(y))
    return false;
  const bool several = x.rows() > 1;
  const int64_t dim = x.row_size();
  if (dim % kWeightTileCols != 0 || dim > kResidualDimMax || (x_ && (x_ != x.data || dim_ != dim))) return false;
  if (!weight(post, dim) || (out && !weight(next, dim)) || (out && out.dtype != DType::kBF16)) return false;
  if (!aligned(x.data) || !aligned(y.data) || (out && !aligned(out.data))) return false;
  if (!instructions_.empty() && !last_is(Opcode::kGemv)) return false;
  const GemvInstruction* gemv = instructions_.empty() ? nullptr : &instructions_.back().gemv;
  if (gemv && gemv->all_reduce && (gemv->out != y.data || y.row_size() != dim)) return false;
  if (workspace_.ranks.world == 1 && y.row_size() == dim) make_all_reduce(y);
  if (several && (!(gemv && gemv->all_reduce) || x.stride % 4 != 0 || (out && out.stride % 4 != 0))) return false;
  const int all_reduce = gemv ? gemv->all_reduce : 0;
  RmsNormInstruction& op = add(Opcode::kRmsNorm, std::move(fallback)).rms_norm;
  op.y = y.data, op.x = static_cast<float*>(x.data);
  op.post = static_cast<const float*>(post.data);
  op.next = out ? static_cast<const float*>(next.data) : nullptr;
  op.out = out ? static_cast<__nv_bfloat16*>(out.data) : nullptr;
  op.dim = static_cast<int>(dim), op.scale = scale, op.eps = eps;
  op.all_reduce = all_reduce;
  op.y_f32 = y.dtype == DType::kF32;
  op.x_stride = x.stride, op.out_stride = out ? out.stride : 0;
  op.load_x = x_ == nullptr;
  x_ = op.x, dim_ = op.dim, ++norms_, rows_ = x.rows(), x_stride_ = x.stride;
  all_blocks_barrier();
  return true;
}

// A list with a single norm is not safe: one CTA may still read x when another writes it at the end. A last GEMV that
// feeds an all-reduce is not complete: the norm after it computes the sum. Of several rows, results that no instruction
// takes are nowhere.
bool OpRecorder::worthwhile() const {
  if (rows_ > 1 && !last_is(Opcode::kRmsNorm)) return false;  // who reads the last GEMV's results?
  return instructions_.size() >= kInstructionsMin && !attention_pending_ && layout_ != Layout::kBF16 && norms_ != 1 &&
         !(last_is(Opcode::kGemv) && instructions_.back().gemv.all_reduce);
}

const Instruction* OpRecorder::upload(bool capturing) {
  const size_t bytes = instructions_.size() * sizeof(Instruction);
  for (const Uploaded& list : uploaded_) {
    if (list.instructions.size() == instructions_.size() &&
        std::memcmp(list.instructions.data(), instructions_.data(), bytes) == 0) {
      return list.device;
    }
  }
  if (capturing || uploaded_.size() >= kListsMax) return nullptr;
  Instruction* device = nullptr;
  CUDA_CHECK(cudaMalloc(&device, bytes));
  uploaded_.push_back({instructions_, device});
  CUDA_CHECK(cudaMemcpy(device, instructions_.data(), bytes, cudaMemcpyHostToDevice));
  return device;
}

void OpRecorder::clear() {
  instructions_.clear(), fallbacks_.clear();
  recorded_ops_ = 0;
  attention_pending_ = false;
  layout_ = Layout::kBF16;
  x_ = nullptr, dim_ = 0, norms_ = 0;
  rows_ = 0, step_rows_[0] = step_rows_[1] = nullptr;
  std::fill(std::begin(epochs_), std::end(epochs_), 0);
  all_blocks_barrier();
}

// Instructions that read all of their input from memory wait for every CTA.
void OpRecorder::mark_barriers() {
  for (size_t i = 1; i < instructions_.size(); ++i) {
    const Instruction& op = instructions_[i];
    const bool waits = op.opcode == Opcode::kGemv        ? !op.gemv.from_norm && !op.gemv.from.values
                       : op.opcode == Opcode::kAttention ? !op.attention.from.values
                                                         : !op.rms_norm.all_reduce;
    instructions_[i - 1].arrive = waits;
  }
}

OpCounts OpRecorder::counts() const { return {std::max(layer_ops_, megakernel_ops_), megakernel_ops_}; }

void OpRecorder::begin() {
  offered_ops_ = layer_ops_ = megakernel_ops_ = 0;
  open_ = true;
}

void OpRecorder::flush(bool capturing, cudaStream_t stream) {
  if (instructions_.empty()) return;
  mark_barriers();
  const Instruction* instructions = nullptr;
  if (worthwhile()) instructions = launch_ ? instructions_.data() : upload(capturing);
  if (instructions) {
    InstructionList list = {
        instructions, static_cast<int>(instructions_.size()), layout_, x_, dim_, static_cast<int>(rows_),
        x_stride_,    {step_rows_[0], step_rows_[1]},         {}};
    std::copy(std::begin(epochs_), std::end(epochs_), list.epochs);
    launch_ ? launch_(list) : launch_megakernel(list, workspace_, stream);
    megakernel_ops_ += recorded_ops_;
#if GEMMA4_KERNEL_CLOCKS
    clocks_->launched(instructions_);
#endif
  } else {
    for (const Fallback& fallback : fallbacks_) fallback(stream);
  }
  clear();
}

}  // namespace gemma4::cuda
