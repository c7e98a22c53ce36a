// Ops.paged_attention.
#include "octavo/binding.h"
#include "octavo/kernels_attention.h"

namespace octavo::binding {
namespace {

constexpr int64_t kMaxHeadDim = 256;

// A wrong index would read another request's memory, so every page that will be read is looked at.
void check_batch(const AttentionArgs& a, int64_t tokens, int64_t num_pages) {
  if (a.query_start[0] != 0 || a.query_start[a.num_seqs] != tokens) {
    TVM_FFI_THROW(ValueError) << "query_start runs from " << a.query_start[0] << " to " << a.query_start[a.num_seqs]
                              << "; expected 0 to " << tokens << ", the rows of qkv";
  }
  for (int64_t s = 0; s < a.num_seqs; ++s) {
    const int64_t queries = a.query_start[s + 1] - a.query_start[s], length = a.seq_lens[s];
    if (queries < 0 || queries > length || length > a.max_pages * a.page_size) {
      TVM_FFI_THROW(ValueError) << "sequence " << s << " has " << queries << " queries and " << length
                                << " tokens; its row of the page table holds " << a.max_pages * a.page_size;
    }
    if (queries == 0) continue;
    const int32_t* pages = a.page_table + s * a.max_pages;
    for (int64_t i = 0; i < (length + a.page_size - 1) / a.page_size; ++i) {
      if (pages[i] < 0 || pages[i] >= num_pages) {
        TVM_FFI_THROW(ValueError) << "page_table[" << s << ", " << i << "] is " << pages[i] << "; the cache has "
                                  << num_pages << " pages";
      }
    }
  }
}

void paged_attention(TensorView out, TensorView qkv, TensorView keys, TensorView values, TensorView page_table,
                     TensorView query_start, TensorView seq_lens, int64_t num_heads, double scale,
                     int64_t sliding_window, Optional<TensorView> alibi_slopes, double softcap) {
  AttentionArgs a{};
  const int64_t num_pages = read_cache(a, keys, values);
  if (a.page_size % 16 || a.head_dim % 2 || a.head_dim < 2 || a.head_dim > kMaxHeadDim) {
    TVM_FFI_THROW(ValueError) << "page size " << a.page_size << " and head size " << a.head_dim
                              << "; allowed: a multiple of 16, and an even number in 2.." << kMaxHeadDim;
  }
  a.num_heads = num_heads;
  if (num_heads < 1 || num_heads % a.num_kv_heads) {
    TVM_FFI_THROW(ValueError) << num_heads << " query heads can't share " << a.num_kv_heads << " key-value heads evenly";
  }
  a.query_type = float_type(qkv, "qkv");
  if (a.query_type == DType::kFloat16) TVM_FFI_THROW(TypeError) << "qkv is float16; allowed: float32, bfloat16";
  a.query_stride = row_stride(qkv, "qkv");
  if (qkv.size(1) < num_heads * a.head_dim) {
    TVM_FFI_THROW(ValueError) << "qkv has " << qkv.size(1) << " columns; " << num_heads << " heads of " << a.head_dim
                              << " need " << num_heads * a.head_dim;
  }
  check_same_type(qkv, out, "qkv and out");
  check_shape(out, "out", {qkv.size(0), num_heads * a.head_dim});
  check_contiguous(out, "out");
  check_shape(seq_lens, "seq_lens", {-1});
  a.num_seqs = seq_lens.size(0);
  check_shape(query_start, "query_start", {a.num_seqs + 1});
  check_shape(page_table, "page_table", {a.num_seqs, -1});
  for (const TensorView* t : {&seq_lens, &query_start, &page_table}) {
    check_int32(*t, "seq_lens, query_start or page_table");
    check_contiguous(*t, "seq_lens, query_start or page_table");
  }
  a.max_pages = page_table.size(1);
  if (alibi_slopes.has_value()) {
    check_shape(*alibi_slopes, "alibi_slopes", {num_heads});
    check_contiguous(*alibi_slopes, "alibi_slopes");
    if (float_type(*alibi_slopes, "alibi_slopes") == DType::kBFloat16) {
      a.alibi_bf16 = data<const bf16>(*alibi_slopes);
    } else {
      check_float32(*alibi_slopes, "alibi_slopes");
      a.alibi_slopes = data<const float>(*alibi_slopes);
    }
  }
  if (sliding_window < 0) TVM_FFI_THROW(ValueError) << "sliding_window is " << sliding_window << "; allowed: 0 (off) and up";
  a.out = data<void>(out);
  a.queries = data<const void>(qkv);
  a.keys = data<const void>(keys);
  a.values = data<const void>(values);
  a.page_table = data<const int32_t>(page_table);
  a.query_start = data<const int32_t>(query_start);
  a.seq_lens = data<const int32_t>(seq_lens);
  a.scale = float(scale);
  a.sliding_window = sliding_window;
  a.softcap = float(softcap);
  check_batch(a, qkv.size(0), num_pages);
  pick_attention_kernels().paged_attention(a);
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(paged_attention, paged_attention);

}  // namespace octavo::binding
