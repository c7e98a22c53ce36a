// Matrix products on 4 and 8 bit weights: their layout on the device, and what the kernels take. The arithmetic is
// that of ops.QuantizedWeight and ops.Activations.
//
// Packed weight [tiles][bytes of a tile]. A tile is 16 outputs; rows beyond n stand for zero. Of a gated weight tile 2j
// holds 16 gate rows and tile 2j + 1 the 16 up rows of the same outputs. K is cut in units of 64, filled up with zeros.
//
//   codes    [unit][plane][lane 0..31][word 0..3], 512 bytes a unit and plane. Lane l = (g = l / 4, t = l % 4), word f:
//            nibble i + 4 e, i in 0..3, e in 0..1, belongs to row g + 8 (i % 2) and
//            k = 64 unit + 32 (f / 2) + 8 t + 4 (f % 2) + 2 (i / 2) + e.
//            4 bits have one plane; 8 bits have two, the low and then the high half of every code.
//   scales   [group][g 0..7] half2 of rows g and g + 8; one group a row: [g] float2
//   offsets  likewise, of an asymmetric weight only
//   filled up to 128 bytes.
//
// So lane l's four words are the A operands of four mma.m16n8k16 (or two m16n8k32 of int8), in fragment order but for
// a permutation of k within each 32 that gives a lane 8 consecutive k of its token: its B operands are plain 16 byte
// loads of a row of x. A group of 32 is half a unit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "activation.h"
#include "experts.h"
#include "octavo/types.h"

namespace octavo::cuda {

#ifdef __CUDACC__
#define OCTAVO_LAYOUT __host__ __device__ inline int64_t
#else
#define OCTAVO_LAYOUT inline int64_t
#endif

struct QuantizedLayout {
  int bits;            // 4 or 8
  int64_t group_size;  // 32, 64, 128; 0: the whole row
  bool symmetric;      // codes count from 2^(bits-1), else there are offsets
  bool gated;
  int64_t n, k;

  OCTAVO_LAYOUT tiles() const { return gated ? 2 * ((n / 2 + 15) / 16) : (n + 15) / 16; }
  OCTAVO_LAYOUT units() const { return (k + 63) / 64; }
  OCTAVO_LAYOUT unit_bytes() const { return 128 * bits; }
  OCTAVO_LAYOUT groups() const { return group_size ? (k + group_size - 1) / group_size : 1; }
  OCTAVO_LAYOUT scales_at() const { return units() * unit_bytes(); }
  // Stored ones: every unit is covered, with zeros beyond K.
  OCTAVO_LAYOUT stored_groups() const { return group_size ? (units() * 64 + group_size - 1) / group_size : 1; }
  OCTAVO_LAYOUT factor_bytes() const { return stored_groups() * (group_size ? 32 : 64); }  // scales, or offsets
  OCTAVO_LAYOUT tile_bytes() const { return (scales_at() + factor_bytes() * (symmetric ? 1 : 2) + 127) / 128 * 128; }
  // The row of the plain matrix at row r of a tile; n where there is none.
  OCTAVO_LAYOUT plain_row(int64_t tile, int r) const {
    if (!gated) return tile * 16 + r < n ? tile * 16 + r : n;
    const int64_t row = tile / 2 * 16 + r;
    return row < n / 2 ? row + tile % 2 * (n / 2) : n;
  }
};
#undef OCTAVO_LAYOUT

// y = act(x . w + bias), see Ops.linear; strides in elements.
struct QuantizedArgs {
  const void* x;  // [m, k]
  int64_t x_stride;
  DType x_type;
  bool x_vectors;  // rows of x are whole 16 byte pieces, aligned
  int64_t m;
  const uint8_t* weight;
  QuantizedLayout layout;

  const float* bias;  // [n] or null; [gate; up] when gated
  Activation act;
  void* out;  // [m, n], or [m, n / 2] when gated
  int64_t out_stride;
  DType out_type;
  bool accumulate;  // out += instead of out =; float32 only

  int group_shift;  // log2(group_size / 32), of groups
  // What the layout says, which takes divisions: for_launches fills it in.
  int tiles, tile_bytes, scales_at, factor_bytes, stored_groups;

  ExpertRows experts;  // of a stack of weights, each of them as `layout` says; m is still the rows of x

  // K is cut in slices of slice_units units, one block each; the last block to finish adds them up in order.
  int slice_units;
  int slices;
  float4* partials;    // null for one slice
  uint32_t* counters;  // one a block of outputs and tokens, zero before and after

  // int8 activations, filled by quantize_activations
  int8_t* codes;       // [m][units][64], permuted as quantized_activations.cu says
  float2* factors;     // [m][2 units]: a block's scale, and scale * sum of its codes. LLM_INT8: [m]: the row's scale, 0
  uint32_t* outliers;  // [m][2 units], bit k % 32 set where x stays in float; LLM_INT8 only, else null
  float threshold;
};

// Most rows of x in one launch: their partial sums stay in L2.
constexpr int64_t kLaunchRows = 128;

// quantized_float_bf16.cu, quantized_float_f16.cu and quantized_float32.cu: by the type of x.
void quantized_bf16(const QuantizedArgs& args, cudaStream_t stream);
void quantized_f16(const QuantizedArgs& args, cudaStream_t stream);
void quantized_float32(const QuantizedArgs& args, cudaStream_t stream);
// quantized_activations.cu, and behind it quantized_int8.cu
void quantize_activations(const QuantizedArgs& args, cudaStream_t stream);
void quantized_int8(const QuantizedArgs& args, cudaStream_t stream);

// quantized_pack.cu
struct QuantizedPackArgs {
  uint8_t* packed;
  QuantizedLayout layout;
  uint8_t* codes;  // [n, k]
  void* scales;    // [n, groups] float16, or float32 when the group is the row
  void* offsets;   // likewise, null when symmetric
};
void pack_quantized(const QuantizedPackArgs& args, cudaStream_t stream);
void unpack_quantized(const QuantizedPackArgs& args, cudaStream_t stream);
// out[t, :] = w[ids[t], :] * scale, float32 [rows, k]; NaN where an id is no row.
void embedding_quantized(float* out, const int32_t* ids, int64_t rows, const uint8_t* packed,
                         const QuantizedLayout& layout, float scale, cudaStream_t stream);
// out [n, k] = w, rounded to `type`, bfloat16 or float16; its rows are the plain ones, [gate; up] of a gated weight.
void dequantize(void* out, DType type, const uint8_t* packed, const QuantizedLayout& layout, cudaStream_t stream);

}  // namespace octavo::cuda
