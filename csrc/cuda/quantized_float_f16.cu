// W4A16 and W8A16 with float16 activations: see quantized_float.cuh.
#include "quantized_float_launch.cuh"

namespace octavo::cuda {

void quantized_f16(const QuantizedArgs& args, cudaStream_t stream) {
  launch_quantized_float<__half>(args, stream);
}

}  // namespace octavo::cuda
