#include "backend/cuda/megakernel/recorder.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "backend/cuda/runtime/error.h"

namespace gemma4::cuda {
namespace {

constexpr size_t kLeastOps = 3;        // fewer are launched one by one
constexpr size_t kMostPrograms = 256;  // kept on the device, some 70 KB each

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
bool activation(const Tensor& t) { return t.dtype == DType::kBF16 || t.dtype == DType::kF32; }
bool weight(const Tensor& t, int64_t size) {
  return t && t.dtype == DType::kF32 && t.size() == size && aligned(t.data);
}

// Member by member: what lies between them stays zero.
void copy_view(KvCacheView& to, const KvCacheView& from) {
  to.k = from.k, to.v = from.v, to.heads = from.heads, to.dim = from.dim, to.row = from.row, to.page = from.page;
  to.table = from.table, to.table_cols = from.table_cols, to.table_page = from.table_page;
  to.page_shift = from.page_shift, to.table_stride = from.table_stride;
  to.rotated = from.rotated, to.k_norm = from.k_norm;
}

}  // namespace

struct StepRecorder::Uploaded {
  std::vector<StepOp> ops;
  StepOp* device;
};

StepRecorder::StepRecorder(const StepWorkspace& workspace) : workspace_(workspace) {
  const char* value = std::getenv("GEMMA4_CUDA_STEP");
  enabled_ = step_fits(workspace.decode) && !(value && std::string(value) == "off");
}

StepRecorder::~StepRecorder() {
  for (const Uploaded& program : uploaded_) cudaFree(program.device);
}

StepOp& StepRecorder::add(StepKind kind, Plain plain) {
  ops_.emplace_back().kind = kind;
  plain_.push_back(std::move(plain));
  return ops_.back();
}

// Words for `size` values; none where they would overwrite words that a block may still have to read: one use of a
// region is safe until all blocks met.
StepWords StepRecorder::words(Values what, int64_t size) {
  if (size > kRegionWords || !workspace_.words) return {};
  size_t i = 0;
  while (i < regions_.size() && (regions_[i].what != what || regions_[i].size != size)) ++i;
  if (i == regions_.size()) {
    if (i + 1 >= kStepRegions) return {};
    regions_.push_back({what, size, false});
  }
  if (regions_[i].used) return {};
  regions_[i].used = true;
  const int region = static_cast<int>(i) + 1;
  return {workspace_.words + static_cast<int64_t>(region) * kRegionWords, region, ++uses_[region]};
}

// From here on every block has done what came before: a norm needs a part of every block's, a barrier says so.
void StepRecorder::meet() {
  for (Region& region : regions_) region.used = false;
  products_ = 0;
}

// For x of the next product, of `cols` columns, if the operation before makes it.
StepWords StepRecorder::words_to_product(const Tensor& x, int64_t cols) {
  if (ops_.empty() || products_ >= 2) return {};  // the workspace has parts of two products
  StepOp& before = ops_.back();
  if (before.kind == StepKind::kLinear && before.linear.geglu && before.linear.out == x.data &&
      before.linear.rows == 2 * cols) {
    return before.linear.to = words(Values::kGated, cols);
  }
  if (before.kind == StepKind::kAttend && before.attend.out == x.data &&
      before.attend.kv.heads * before.attend.group * before.attend.kv.dim == cols) {
    return before.attend.to = words(Values::kAttended, cols);
  }
  return {};
}

bool StepRecorder::linear(const Tensor& out, const Tensor& x, const DeviceMatrix& w, bool geglu, Plain plain) {
  if (!enabled_ || !open_ || heads_pending_ || x.rows() != 1 || !activation(x) || !activation(out)) return false;
  const bool known = w.layout == Layout::kInt4G32 || w.layout == Layout::kInt4G64 || w.layout == Layout::kQ4_0;
  if (!known || (!ops_.empty() && layout_ != Layout::kBF16 && layout_ != w.layout)) return false;
  if (geglu != w.paired || !aligned(x.data) || w.cols % kChunkCols != 0) return false;
  const int64_t panels = (w.rows + kPanelRows - 1) / kPanelRows, chunks = w.cols / kChunkCols;
  if (panels * chunks * chunks >= (int64_t{1} << 32)) return false;  // StepLinear::quotient() is exact below that
  const int64_t blocks = workspace_.decode.blocks, even = panels * chunks / blocks;  // units of a block
  const int64_t spare = even < chunks ? step_spare(even) : 0;
  const int64_t each = panels * (chunks - spare) / blocks, most = each + 1 + spare * (each / (chunks - spare) + 1);
  const bool from_norm = !ops_.empty() && ops_.back().kind == StepKind::kNorm, whole = from_norm || most >= chunks;
  if ((whole ? chunks : most) > kStepChunks) return false;
  if (!ops_.empty() && ops_.back().kind == StepKind::kLinear && ops_.back().linear.sum) return false;
  if (from_norm && (ops_.back().norm.out != x.data || ops_.back().norm.dim != w.cols)) return false;
  const StepWords from = from_norm ? StepWords() : words_to_product(x, w.cols);
  if (!from_norm && !from.at) meet();  // at a barrier
  StepLinear& op = add(StepKind::kLinear, std::move(plain)).linear;
  op.from = from, op.second = products_++ % 2 == 1;
  op.weights = static_cast<const uint8_t*>(w.data);
  op.x = x.data, op.out = out.data;
  op.rows = static_cast<int>(w.rows), op.chunks = static_cast<int>(chunks), op.panels = static_cast<int>(panels);
  const auto inverse = [](int64_t n) {
    return ((uint64_t{1} << 32) + static_cast<uint64_t>(n) - 1) / static_cast<uint64_t>(n);
  };
  op.each = static_cast<int>(each), op.more = static_cast<int>(panels * (chunks - spare) % blocks);
  op.spare = static_cast<int>(spare), op.whole = whole;
  op.of_a_chunk = inverse(chunks), op.of_a_share = inverse(chunks - spare);
  op.x_f32 = x.dtype == DType::kF32, op.out_f32 = out.dtype == DType::kF32;
  op.paired = w.paired, op.geglu = geglu, op.from_norm = from_norm;
  layout_ = w.layout;
  return true;
}

bool StepRecorder::qk_norm_rope_cache(const Tensor& query, const Tensor& q, const Tensor& k, const Tensor& v,
                                      const Backend::QkNorms& norms, const Tensor& pos, const Rope& rope,
                                      const KvCacheView& kv, const Tensor& rows, Plain plain) {
  if (!enabled_ || !open_ || heads_pending_ || ops_.empty() || ops_.back().kind != StepKind::kLinear) return false;
  const bool sliding = kv.dim == 256 && kv.rotated == 0 && v, full = kv.dim == 512 && kv.rotated == 64 && !v;
  if (!(sliding || full) || rope.block != kv.dim || q.rows() != 1 || pos.size() != 1 || rows.rows() != 1) return false;
  if (!kv.table || kv.table_page % 16 != 0 || q.shape[1] % kv.heads != 0 || q.shape[1] / kv.heads > 8) return false;
  const bool types = activation(q) && q.dtype == k.dtype && (!v || v.dtype == q.dtype);
  if (!types || !aligned(q.data) || !aligned(k.data) || (v && !aligned(v.data))) return false;
  if (!weight(norms.q, kv.dim) || !weight(norms.k, kv.dim) || !weight(rope.inv_freq, kv.dim / 2)) return false;
  if (kv.heads > workspace_.decode.blocks) return false;
  StepLinear& product = ops_.back().linear;
  const auto index = [&](const Tensor& t) {  // among the product's results
    return (static_cast<const char*>(t.data) - static_cast<const char*>(product.out)) /
           static_cast<int64_t>(dtype_size(t.dtype));
  };
  const auto within = [&](const Tensor& t) { return index(t) >= 0 && index(t) + t.row_size() <= product.rows; };
  const bool all = !product.geglu && !product.sum && product.out_f32 == (q.dtype == DType::kF32) && within(q) &&
                   within(k) && (!v || within(v)) && product.rows % 4 == 0;
  const StepWords from = all ? words(Values::kHeads, product.rows) : StepWords();
  product.to = from;
  if (!from.at) meet();
  const auto where = [&](const Tensor& t) -> const void* { return from.at ? from.at + index(t) : t.data; };
  StepAttend& op = add(StepKind::kAttend, std::move(plain)).attend;
  op.from = from;
  op.q = where(q), op.k = where(k), op.v = v ? where(v) : nullptr;
  op.q_norm = static_cast<const float*>(norms.q.data), op.k_norm = static_cast<const float*>(norms.k.data);
  op.inv_freq = static_cast<const float*>(rope.inv_freq.data);
  op.pos = static_cast<const int32_t*>(pos.data), op.row = static_cast<const int32_t*>(rows.data);
  copy_view(op.kv, kv);
  op.eps = norms.eps;
  op.group = static_cast<int>(q.shape[1] / kv.heads), op.splits = workspace_.decode.blocks / kv.heads;
  op.f32 = q.dtype == DType::kF32;
  query_ = query.data;
  heads_pending_ = true;
  return true;
}

bool StepRecorder::attention(const Tensor& out, const Tensor& query, const KvCacheView& kv, const Tensor& rows,
                             Plain plain) {
  if (!heads_pending_) return false;
  StepAttend& op = ops_.back().attend;
  if (query_ != query.data || op.kv.v != kv.v || op.row != rows.data) return false;
  if (out.dtype != DType::kBF16 || !aligned(out.data)) return false;
  op.out = out.data;
  heads_pending_ = false;
  plain_.back() = [first = std::move(plain_.back()), then = std::move(plain)](cudaStream_t stream) {
    first(stream), then(stream);
  };
  return true;
}

// Whether the product before can give its result as a sum, of which there is then one more.
bool StepRecorder::make_sum(const Tensor& x) {
  if (ops_.empty() || ops_.back().kind != StepKind::kLinear || !workspace_.peers.receive[0]) return false;
  StepLinear& op = ops_.back().linear;
  const int64_t size = x.row_size();
  if (op.out != x.data || op.rows != size || op.geglu || op.paired || op.sum) return false;
  if (size > kStepDim || size % kChunkRows != 0 || (sum_dim_ && sum_dim_ != size)) return false;
  // Blocks without a part would not be waited for. Ranks decide alike: their shares differ by a group of columns at
  // most.
  if (op.each == 0) return false;
  sum_dim_ = size;
  op.sum = ++uses_[0];
  return true;
}

bool StepRecorder::all_reduce(const Tensor& x, Plain plain) {
  if (!enabled_ || !open_ || heads_pending_ || workspace_.peers.world < 2 || x.rows() != 1) return false;
  if (!make_sum(x)) return false;
  plain_.back() = [first = std::move(plain_.back()), then = std::move(plain)](cudaStream_t stream) {
    first(stream), then(stream);
  };
  return true;
}

bool StepRecorder::add_rms_norm(const Tensor& out, const Tensor& x, const Tensor& y, const Tensor& post, float scale,
                                const Tensor& next, float eps, Plain plain) {
  if (!enabled_ || !open_ || heads_pending_ || x.rows() != 1 || x.dtype != DType::kF32 || !activation(y)) return false;
  const int64_t dim = x.row_size();
  if (dim % kChunkCols != 0 || dim > kStepDim || (x_ && (x_ != x.data || dim_ != dim))) return false;
  if (!weight(post, dim) || (out && !weight(next, dim)) || (out && out.dtype != DType::kBF16)) return false;
  if (!aligned(x.data) || !aligned(y.data) || (out && !aligned(out.data))) return false;
  if (!ops_.empty() && ops_.back().kind != StepKind::kLinear) return false;
  if (!ops_.empty() && ops_.back().linear.sum && (ops_.back().linear.out != y.data || y.row_size() != dim))
    return false;
  if (workspace_.peers.world == 1 && y.row_size() == dim) make_sum(y);
  const int sum = ops_.empty() ? 0 : ops_.back().linear.sum;
  StepNorm& op = add(StepKind::kNorm, std::move(plain)).norm;
  op.y = y.data, op.x = static_cast<float*>(x.data);
  op.post = static_cast<const float*>(post.data);
  op.next = out ? static_cast<const float*>(next.data) : nullptr;
  op.out = out ? static_cast<__nv_bfloat16*>(out.data) : nullptr;
  op.dim = static_cast<int>(dim), op.scale = scale, op.eps = eps;
  op.sum = sum;
  op.y_f32 = y.dtype == DType::kF32;
  op.load_x = x_ == nullptr;
  x_ = op.x, dim_ = op.dim, ++norms_;
  meet();
  return true;
}

// With one norm alone a block may read x when another, at the end, writes it.
bool StepRecorder::worthwhile() const {
  return ops_.size() >= kLeastOps && !heads_pending_ && layout_ != Layout::kBF16 && norms_ != 1 &&
         !(ops_.back().kind == StepKind::kLinear && ops_.back().linear.sum);  // which the norm after it would add up
}

const StepOp* StepRecorder::upload(bool capturing) {
  const size_t bytes = ops_.size() * sizeof(StepOp);
  for (const Uploaded& program : uploaded_) {
    if (program.ops.size() == ops_.size() && std::memcmp(program.ops.data(), ops_.data(), bytes) == 0) {
      return program.device;
    }
  }
  if (capturing || uploaded_.size() >= kMostPrograms) return nullptr;
  StepOp* device = nullptr;
  CUDA_CHECK(cudaMalloc(&device, bytes));
  uploaded_.push_back({ops_, device});
  CUDA_CHECK(cudaMemcpy(device, ops_.data(), bytes, cudaMemcpyHostToDevice));
  return device;
}

void StepRecorder::clear() {
  ops_.clear(), plain_.clear();
  heads_pending_ = false;
  layout_ = Layout::kBF16;
  x_ = nullptr, dim_ = 0, norms_ = 0;
  std::fill(std::begin(uses_), std::end(uses_), 0);
  meet();
}

// Operations that find all of their input in memory wait for every block.
void StepRecorder::mark_barriers() {
  for (size_t i = 1; i < ops_.size(); ++i) {
    const StepOp& op = ops_[i];
    const bool waits = op.kind == StepKind::kLinear   ? !op.linear.from_norm && !op.linear.from.at
                       : op.kind == StepKind::kAttend ? !op.attend.from.at
                                                      : !op.norm.sum;
    ops_[i - 1].arrive = waits;
  }
}

void StepRecorder::flush(bool capturing, cudaStream_t stream) {
  if (ops_.empty()) return;
  mark_barriers();
  const StepOp* ops = worthwhile() ? upload(capturing) : nullptr;
  if (ops) {
    StepProgram program = {ops, static_cast<int>(ops_.size()), layout_, x_, dim_, {}};
    std::copy(std::begin(uses_), std::end(uses_), program.uses);
    run_step(program, workspace_, stream);
  } else {
    for (const Plain& plain : plain_) plain(stream);
  }
  clear();
}

}  // namespace gemma4::cuda
