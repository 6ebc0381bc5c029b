#include "backend/cuda/megakernel/rows/kernel.cuh"

namespace gemma4::cuda {

void launch_megakernel_rows4(const InstructionList& list, const MegakernelWorkspace& workspace, cudaStream_t stream) {
  launch_rows_kernel<4>(list, workspace, stream);
}

}  // namespace gemma4::cuda
