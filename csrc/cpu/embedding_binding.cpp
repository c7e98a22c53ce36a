// Ops.embedding.
#include "octavo/binding.h"
#include "octavo/kernels_embedding.h"

namespace octavo::binding {
namespace {

void embedding(TensorView out, TensorView ids, TensorView table, double scale) {
  check_shape(ids, "ids", {-1});
  check_int32(ids, "ids");
  check_contiguous(ids, "ids");
  check_shape(table, "table", {-1, -1});
  check_contiguous(table, "table");
  check_float32(out, "out");
  check_shape(out, "out", {ids.size(0), table.size(1)});
  check_contiguous(out, "out");
  const int32_t* id = data<const int32_t>(ids);
  for (int64_t t = 0; t < ids.size(0); ++t) {
    if (id[t] < 0 || id[t] >= table.size(0)) {
      TVM_FFI_THROW(ValueError) << "ids[" << t << "] is " << id[t] << "; the table has " << table.size(0) << " rows";
    }
  }
  pick_embedding_kernels().embedding(data<float>(out), id, data<const void>(table), float_type(table, "table"),
                                     ids.size(0), table.size(1), float(scale));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(embedding, embedding);

}  // namespace octavo::binding
