// Ops.embedding and Ops.embedding_add_ on CUDA.
#include "binding_cuda.h"
#include "embedding.h"

namespace octavo::binding {
namespace {

void run(const TensorView& out, const TensorView& ids, const TensorView& table, double scale, bool add) {
  check_shape(table, "table", {-1, -1});
  check_contiguous(table, "table");
  check_shape(ids, "ids", {-1});
  check_int32(ids, "ids");
  check_contiguous(ids, "ids");
  check_float32(out, "out");
  check_shape(out, "out", {ids.size(0), table.size(1)});
  check_contiguous(out, "out");
  cuda::embedding(device_data<float>(out), device_data<const int32_t>(ids), device_data<const void>(table),
                  float_type(table, "table"), ids.size(0), table.size(0), table.size(1), float(scale), add,
                  current_stream(out));
}

void embedding(TensorView out, TensorView ids, TensorView table, double scale) { run(out, ids, table, scale, false); }

void embedding_add(TensorView residual, TensorView ids, TensorView table, double scale) {
  run(residual, ids, table, scale, true);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding, embedding);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding_add, embedding_add);

}  // namespace octavo::binding
