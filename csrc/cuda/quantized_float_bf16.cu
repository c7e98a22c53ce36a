// W4A16 and W8A16 with bfloat16 activations: see quantized_float.cuh.
#include "quantized_float_launch.cuh"

namespace octavo::cuda {

void quantized_bf16(const QuantizedArgs& args, cudaStream_t stream) {
  launch_quantized_float<__nv_bfloat16>(args, stream);
}

}  // namespace octavo::cuda
