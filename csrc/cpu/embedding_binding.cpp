// Ops.embedding and Ops.embedding_add_.
#include "octavo/binding.h"
#include "octavo/kernels_embedding.h"

namespace octavo::binding {
namespace {

void embedding(TensorView out, TensorView ids, TensorView table, double scale) {
  check_shape(table, "table", {-1, -1});
  check_contiguous(table, "table");
  const int32_t* id = check_ids(out, ids, table.size(0), table.size(1));
  pick_embedding_kernels().embedding(data<float>(out), id, data<const void>(table), float_type(table, "table"),
                                     ids.size(0), table.size(1), float(scale));
}

void embedding_add(TensorView residual, TensorView ids, TensorView table, double scale) {
  check_shape(table, "table", {-1, -1});
  check_contiguous(table, "table");
  const int32_t* id = check_ids(residual, ids, table.size(0), table.size(1));
  pick_embedding_kernels().embedding_add(data<float>(residual), id, data<const void>(table), float_type(table, "table"),
                                         ids.size(0), table.size(1), float(scale));
}

// packed: a weight [rows, width] as pack_linear left it.
void embedding_packed(TensorView out, TensorView ids, TensorView packed, int64_t rows, int64_t width, double scale) {
  DType type = float_type(packed, "packed table");
  int64_t p = type == DType::kBFloat16 ? 2 : 1;
  check_shape(packed, "packed table", {(rows + 31) / 32, (width + p - 1) / p, 32, p});
  check_contiguous(packed, "packed table");
  const int32_t* id = check_ids(out, ids, rows, width);
  pick_embedding_kernels().embedding_packed(data<float>(out), id, data<const void>(packed), type, ids.size(0), width,
                                            float(scale));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding, embedding);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding_add, embedding_add);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding_packed, embedding_packed);

}  // namespace octavo::binding
