// gemma4 diff A B: measures the error of B's weights against A's. Both may have any format; the dequantised weights are
// compared.
#include <cmath>
#include <cstdio>
#include <set>

#include "base/check.h"
#include "base/json.h"
#include "base/mapped_file.h"
#include "base/progress.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "cli/cli.h"
#include "cli/command_line.h"
#include "quant/pack.h"

namespace gemma4 {
namespace {

using nlohmann::ordered_json;

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "embed_tokens.weight";

// Sums over elements a of A and b of B, in double.
struct Sums {
  double max_error = 0, abs_error = 0, abs_a = 0, squared_error = 0, aa = 0, bb = 0, ab = 0;

  void add(const Sums& other) {
    max_error = std::max(max_error, other.max_error);
    abs_error += other.abs_error, abs_a += other.abs_a, squared_error += other.squared_error;
    aa += other.aa, bb += other.bb, ab += other.ab;
  }
  void add(double a, double b) {
    const double error = std::fabs(a - b);
    if (!(error <= max_error)) max_error = error;  // a NaN is kept
    abs_error += error, abs_a += std::fabs(a), squared_error += error * error;
    aa += a * a, bb += b * b, ab += a * b;
  }

  bool equal() const { return squared_error == 0; }
  double relative() const { return equal() ? 0 : abs_error / abs_a; }
  double cosine() const { return equal() ? 1 : ab / std::sqrt(aa * bb); }
  double snr_db() const { return 10 * std::log10(aa / squared_error); }  // infinite if equal
};

struct TensorRow {
  std::string name, format_a, format_b;
  Sums sums;
};

struct Difference {
  std::vector<TensorRow> rows;
  std::vector<std::string> problems;  // tensors without a counterpart of the same size
  Sums total;
};

// In blocks of whole rows, so that the result does not depend on the number of threads.
Sums compare(const Matrix& a, const Matrix& b, ThreadPool& pool) {
  constexpr int64_t kPiece = 16;
  std::vector<Sums> pieces(static_cast<size_t>((a.rows + kPiece - 1) / kPiece));
  pool.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> x(static_cast<size_t>(a.cols)), y = x;
    for (int64_t piece = begin; piece < end; ++piece) {
      Sums& sums = pieces[static_cast<size_t>(piece)];
      for (int64_t row = piece * kPiece; row < std::min(a.rows, (piece + 1) * kPiece); ++row) {
        unpack_row(a, row, x.data());
        unpack_row(b, row, y.data());
        for (size_t i = 0; i < x.size(); ++i) sums.add(static_cast<double>(x[i]), static_cast<double>(y[i]));
      }
    }
  });
  Sums sums;
  for (const Sums& piece : pieces) sums.add(piece);
  return sums;
}

// A tied head is compared with the embedding.
const Weight* find_untied(const Checkpoint& checkpoint, const std::string& name) {
  const Weight* weight = checkpoint.find(name);
  return weight == nullptr && name == kHead ? checkpoint.find(kEmbedding) : weight;
}

std::string format_text(const Matrix& m) {
  return std::string(info(m.format).name) + (m.group > 0 ? "/" + std::to_string(m.group) : "");
}

Difference compare(const Checkpoint& a, const Checkpoint& b, int threads) {
  std::vector<std::string> names = a.order;
  const std::set<std::string> in_a(names.begin(), names.end());
  uint64_t bytes = 0;
  for (const std::string& name : b.order) {
    if (!in_a.contains(name)) names.push_back(name);
  }
  for (const auto& [name, weight] : a.weights) bytes += weight.bytes;
  Difference result;
  ThreadPool pool(threads);
  Progress progress("comparing", bytes);
  for (const std::string& name : names) {
    const Weight *x = find_untied(a, name), *y = find_untied(b, name);
    if (x == nullptr || y == nullptr) {
      result.problems.push_back("tensor " + name + " is only in " + (x ? a : b).path.string());
    } else if (x->matrix.rows != y->matrix.rows || x->matrix.cols != y->matrix.cols) {
      const auto size = [](const Matrix& m) { return std::to_string(m.rows) + " x " + std::to_string(m.cols); };
      result.problems.push_back("tensor " + name + " is " + size(x->matrix) + " and " + size(y->matrix));
    } else {
      result.rows.push_back(
          {name, format_text(x->matrix), format_text(y->matrix), compare(x->matrix, y->matrix, pool)});
      result.total.add(result.rows.back().sums);
      progress.add(x->bytes, name);
      forget_pages(x->matrix.codes.data, static_cast<size_t>(x->matrix.codes.bytes()));
      forget_pages(y->matrix.codes.data, static_cast<size_t>(y->matrix.codes.bytes()));
    }
  }
  return result;
}

ordered_json sums_json(const Sums& sums) {
  // JSON has no infinity: snr_db of equal tensors is null.
  return {{"equal", sums.equal()},
          {"max", sums.max_error},
          {"relative", sums.relative()},
          {"cosine", sums.cosine()},
          {"snr_db", sums.snr_db()}};
}

void print_json(const Checkpoint& a, const Checkpoint& b, const Difference& difference) {
  ordered_json out = {{"a", a.path.string()}, {"b", b.path.string()}, {"tensors", ordered_json::array()}};
  for (const TensorRow& row : difference.rows) {
    ordered_json line = {{"name", row.name}, {"format_a", row.format_a}, {"format_b", row.format_b}};
    line.update(sums_json(row.sums));
    out["tensors"].push_back(line);
  }
  out["total"] = sums_json(difference.total);
  out["problems"] = difference.problems;
  std::printf("%s\n", out.dump(2).c_str());
}

void print_row(const std::string& name, const std::string& formats, const Sums& sums) {
  if (sums.equal()) {
    std::printf("%-64s %-18s equal\n", name.c_str(), formats.c_str());
    return;
  }
  std::printf("%-64s %-18s %11.4g %11.4g %11.8f %9.2f\n", name.c_str(), formats.c_str(), sums.max_error,
              sums.relative(), sums.cosine(), sums.snr_db());
}

void print_text(const Difference& difference) {
  std::printf("%-64s %-18s %11s %11s %11s %9s\n", "tensor", "A -> B", "max", "relative", "cosine", "SNR dB");
  for (const TensorRow& row : difference.rows) print_row(row.name, row.format_a + " -> " + row.format_b, row.sums);
  print_row("total", "", difference.total);
  for (const std::string& problem : difference.problems) std::printf("%s\n", problem.c_str());
}

}  // namespace

int diff_command(int argc, char** argv) {
  CommandLine line(
      "gemma4 diff",
      "Measure how far B's weights are from A's: max |a - b|, mean |a - b| / mean |a|, cosine, and A's power over the "
      "error's in dB. Exit code 1 where a tensor has no counterpart of the same size.");
  std::string path_a, path_b;
  bool as_json = false;
  int threads = 0;
  line.option("A", path_a, "the reference: a model directory, or one file of weights").required();
  line.option("B", path_b, "what is compared with it").required();
  line.flag("--json", as_json, "print one JSON object");
  line.option("--threads", threads, "threads (0: all cores)").between(0, 1024);
  if (const auto code = line.parse(argc, argv)) return *code;
  const Checkpoint a = open_source(path_a), b = open_source(path_b);
  const Difference difference = compare(a, b, threads);
  if (as_json) {
    print_json(a, b, difference);
  } else {
    print_text(difference);
  }
  return difference.problems.empty() ? kExitOk : kExitFailed;
}

}  // namespace gemma4
