// Products with packed weights: the layout of the weights, the arithmetic, and one table of functions an instruction set.
//
// Layout. A packed weight [out, in] lies in tiles of 16 rows, the last one filled up with zero rows. A tile is all its
// groups of 32 columns, one after the other:
//   INT8  8 chunks of 64 bytes, then 16 fp16 scales d (544 bytes). Byte c*64 + r*4 + j is the signed q of row r and
//         column 4c + j. A weight is d*q.
//   INT4  4 chunks of 64 bytes, then 16 fp16 scales d, then 16 fp16 minima m (320 bytes). Byte c*64 + r*4 + j has q of
//         row r and column 8c + j in its low nibble, and of column 8c + 4 + j in its high one. A weight is d*q + m.
//   INT4S as INT4, but without minima (288 bytes): a weight is d*(q - 8).
//   BF16, F16, F32 are plain rows of `in` values, of any length.
//
// Arithmetic. All is float32, rounded to nearest even, nothing contracted or reordered, so that every instruction set,
// every number of tokens and every way to share the rows among threads gives the same bits (gemm_scalar.cpp has it in
// plain loops). fma() rounds once.
//
// quantize, for each token and group of 32, with a = max |x|:
//   a >= 2^-100:  scale = a / 127;  q = round_half_even(x * (127 / a)), within -127 ... 127
//   a <  2^-100:  scale = 0;  q = 0
//   a infinite or not a number:  scale = NaN;  q = 0
//   sum = scale * float(Q),  offset = -128 * Q  with  Q = sum of the 32 q
//
// product, packed weights: y = 0, then for each group in ascending order, with the exact integer dot = sum of q_w * q_x,
// of INT4S sum of (q_w - 8) * q_x:
//   INT8, INT4S:  y = fma(d, scale * float(dot), y)
//   INT4:  y = fma(d, scale * float(dot), fma(m, sum, y))
// It differs from the float64 product with the dequantized weights by at most  sum over groups of scale/2 * sum |w|
// (rounding x to q; 2^-100 for scale/2 where a < 2^-100), and by float32 rounding: (groups + 3) * 2^-22 * sum |w*x|.
//
// product_exact, packed weights: y = 0, then for each group four chains over its columns in ascending order,
//   a[k % 4] = fma(w, x, a[k % 4])  from 0,  then  y = y + ((a[0] + a[1]) + (a[2] + a[3]))
// with w = fma(d, q, m), or d * q or d * (q - 8), which are exact: what dequantize writes.
//
// product and product_exact, BF16, F16, F32: 16 chains over the row, a[k % 16] = fma(w, x, a[k % 16]) from 0, for a row
// that is filled up with zeros to a multiple of 16; then halves are added: a[i] + a[i + 8], + 4, + 2, + 1.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "exported.h"

namespace edgellm {

constexpr bool is_nibbles(int encoding) { return encoding == INT4 || encoding == INT4S; }

constexpr bool is_packed(int encoding) { return is_nibbles(encoding) || encoding == INT8; }

// Bytes of the q of a group of a tile, before its scales.
constexpr size_t q_bytes(int encoding) { return is_nibbles(encoding) ? 256 : 512; }

// Bytes of one group of a tile, of a packed weight.
constexpr size_t group_bytes(int encoding) {
    return encoding == INT4 ? INT4_GROUP_BYTES : encoding == INT4S ? INT4S_GROUP_BYTES : INT8_GROUP_BYTES;
}
static_assert(group_bytes(INT4) == q_bytes(INT4) + 4 * TILE && group_bytes(INT4S) == q_bytes(INT4S) + 2 * TILE &&
                  group_bytes(INT8) == q_bytes(INT8) + 2 * TILE,
              "q, then scales, and minima of INT4");

// Bytes of a value of a plain weight.
constexpr size_t value_bytes(int encoding) { return encoding == F32 ? 4 : 2; }

// Bytes of a tile of a packed weight, or of a row of a plain one.
constexpr size_t stride_bytes(int encoding, size_t in) {
    return is_packed(encoding) ? in / GROUP * group_bytes(encoding) : in * value_bytes(encoding);
}

constexpr size_t matrix_bytes(int encoding, size_t out, size_t in) {
    return (is_packed(encoding) ? (out + TILE - 1) / TILE : out) * stride_bytes(encoding, in);
}

// Whether values of this type lie where p points: not null, and aligned.
template <class T>
inline bool is_at(const T* p) {
    return p != nullptr && reinterpret_cast<uintptr_t>(p) % alignof(T) == 0;
}

// A weight [out, in] as it lies in the shard, at any address.
struct Matrix {
    const uint8_t* data;
    size_t out, in;
    int encoding;
};

// What is multiplied with it. Packed weights want what quantize writes (product) or x (product_exact), plain ones x.
struct Activations {
    const float* x;         // [tokens, in]
    const int8_t* q;        // [tokens, in]
    const float* scale;     // [tokens, in / 32]
    const float* sum;       // [tokens, in / 32]
    const int32_t* offset;  // [tokens, in / 32]
    size_t tokens;
};

// How the tiles of a weight are gone through: one after the other, which memory likes best, as long as the activations are
// at hand; else some side by side, so that activations are read less often; or so for several passes of tokens.
enum class Order { END_TO_END, SIDE_BY_SIDE, PASSES };

// An instruction set. Products write y[t * ldy + n] for every token t and every n in [row_start, row_end), and no other;
// row_start is a multiple of TILE. dequantize writes rows [row_start, row_end), `in` floats each. read gives the sum of the
// 64-bit words in `bytes` (a multiple of 64), as fast as memory is.
struct Target {
    const char* name;
    void (*quantize)(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset);
    void (*product)(const Matrix&, const Activations&, float* y, size_t ldy, size_t row_start, size_t row_end);
    void (*product_exact)(const Matrix&, const Activations&, float* y, size_t ldy, size_t row_start, size_t row_end);
    void (*dequantize)(const Matrix&, size_t row_start, size_t row_end, float* into);
    uint64_t (*read)(const uint8_t* data, size_t bytes);
};

// The one in use: the best that this processor has, unless use_target has chosen another.
const Target& target();

// Another one from now on, or with a null name the best; false if this processor can't. Not while others compute.
bool use_target(const char* name);

extern const Target SCALAR_TARGET;
#ifdef EDGELLM_X86_64
extern const Target AVX2_TARGET, AVX512VNNI_TARGET;
#endif
#ifdef __aarch64__
extern const Target NEON_TARGET, DOTPROD_TARGET;
#endif

}  // namespace edgellm
