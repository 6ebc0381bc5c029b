#include "backend/op_testing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/targets.h"
#include "base/bf16.h"

namespace gemma4 {

std::vector<std::string> backends_under_test() {
  std::vector<std::string> names;
  for (const char* target : cpu::targets()) names.push_back(std::string("cpu_") + target);
  return names;
}

std::unique_ptr<Backend> make_under_test(const std::string& name) {
  CHECK(name.rfind("cpu_", 0) == 0);
  cpu::use_target(name.substr(4).c_str());
  return make_cpu(2);
}

double relative_error(const Floats& got, const Floats& want) {
  CHECK(got.size() == want.size());
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(double{got[i]} - double{want[i]});
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    largest = std::max(largest, std::abs(double{want[i]}));
  }
  return worst / largest;
}

double tolerance(const Backend& be, double cpu) { return be.activation_type() == DType::kF32 ? cpu : 0x1p-7; }

}  // namespace gemma4
