// Products with packed weights: the layout of the weights, the arithmetic, and one table of functions an instruction set.
//
// Layout. A packed weight [out, in] lies in tiles of 16 rows, the last one filled up with zero rows. A tile is all its
// blocks, one after the other; a block is one group of 32 columns, or eight of them (SUPER_BLOCK columns: IQ4_XS and the
// encodings whose names end in _K). A block is the codes of its groups, one group after the other, and then its scales.
// Everything else of GGUF's encodings is what llama.cpp has for them, so that not a bit is lost and no byte added.
//
// The codes of a group lie in planes of 4, 2, 1 or 8 bits, the lowest bits first. A plane of b bits is b chunks of 64 bytes:
// byte c*64 + r*4 + j has in its bits b*i ... b*i + b - 1 those of row r and column 4*(8/b*c + i) + j.
//   planes  4: INT4, INT4S, IQ4_NL, IQ4_XS, MXFP4, Q4_K    4, 1: Q5_0, Q5_1, Q5_K    4, 2: Q6_K
//           2: Q2_K    2, 1: Q3_K    8 (signed): INT8
//
// The scales of a block are these arrays, one after the other, each with a number of every row:
//   INT8, INT4S, Q5_0, IQ4_NL  fp16 d                 a weight is d*q, d*(q - 8), d*(q - 16), d*IQ4[q]
//   INT4, Q5_1                 fp16 d, fp16 m         d*q + m
//   MXFP4                      uint8 e                2^(e - 128) * MXFP4_VALUES[q]
//   IQ4_XS                     uint32 low, uint16 high, fp16 d     d*s*IQ4[q]
//   Q4_K, Q5_K                 uint32 a, b, c, fp16 d, fp16 m      d*s*q - m*z
//   Q6_K, Q3_K                 uint32 x 4 (of Q3_K 3), fp16 d      d*s*(q - 32), of Q3_K d*s*(q - 4)
//   Q2_K                       uint32 x 4, fp16 d, fp16 m          d*s*q - m*z
// s and z are small integers, one for each group g of a block (IQ4_XS, Q4_K, Q5_K), or one for each half h of a group
// (16 columns; 0 to 15 in a block). With byte i of a word written as w[i]:
//   Q4_K, Q5_K  s = a[g] & 63, z = b[g] & 63 for g < 4, else s = (c[g-4] & 15) | (a[g-4] >> 6) << 4 and
//               z = c[g-4] >> 4 | (b[g-4] >> 6) << 4
//   IQ4_XS      s = (low[g % 4] >> 4*(g / 4) & 15 | (high >> 2*g & 3) << 4) - 32
//   Q6_K        s = w[h / 4][h % 4], signed
//   Q3_K        s = (w[h / 4 % 2][h % 4] >> 4*(h / 8) & 15 | (w[2][h % 4] >> 2*(h / 4) & 3) << 4) - 32
//   Q2_K        s = w[h / 4][h % 4] & 15,  z = w[h / 4][h % 4] >> 4
//
// BF16, F16, F32 are plain rows of `in` values, of any length.
//
// Arithmetic. All is float32, rounded to nearest even, nothing contracted or reordered, so that every instruction set,
// every number of tokens and every way to share the rows among threads gives the same bits (gemm_scalar.cpp has it in
// plain loops). fma() rounds once.
//
// quantize, for each token and group of 32, with a = max |x|:
//   a >= 2^-100:  scale = a / 127;  q = round_half_even(x * (127 / a)), within -127 ... 127
//   a <  2^-100:  scale = 0;  q = 0
//   a infinite or not a number:  scale = NaN;  q = 0
//   sum = scale * float(Q)  with  Q = sum of the 32 q
//   offset = -8 * sum of the first 16 q, and -8 * sum of the others: two int16
//
// product, packed weights: y = 0, then for each group in ascending order
//   one d a group:   y = fma(D, scale * float(dot), y)               D = d, d*s (exact), 2^(e - 128)
//   with minima:     y = fma(D, scale * float(dot), fma(M, sum, y))  M = m, -(m*z) (exact)
//   s of halves:     y = fma(d, scale * float(s*dot + s'*dot'), y)
//   Q2_K:            y = fma(d, scale * float(s*dot + s'*dot'), fma(m, scale/8 * float(z*offset + z'*offset'), y))
// with the exact integer dot = sum of q_w * q_x, where q_w is what d or d*s multiplies above, and dot and dot' those of a
// group's first and second half. All the integers are below 2^24.
// It differs from the float64 product with the dequantized weights by at most  sum over groups of scale/2 * sum |w|
// (rounding x to q; 2^-100 for scale/2 where a < 2^-100), and by float32 rounding: (groups + 3) * 2^-22 * sum of |w*x| and,
// with minima, of |M*x|.
//
// product_exact, packed weights: y = 0, then for each group four chains over its columns in ascending order,
//   a[k % 4] = fma(w, x, a[k % 4])  from 0,  then  y = y + ((a[0] + a[1]) + (a[2] + a[3]))
// with w = fma(D, q_w, M), or D * q_w, which is exact: what dequantize writes. D of halves is d*s.
//
// product and product_exact, BF16, F16, F32: 16 chains over the row, a[k % 16] = fma(w, x, a[k % 16]) from 0, for a row
// that is filled up with zeros to a multiple of 16; then halves are added: a[i] + a[i + 8], + 4, + 2, + 1.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "exported.h"

namespace edgellm {

constexpr bool is_nibbles(int encoding) { return encoding == INT4 || encoding == INT4S; }

constexpr bool is_packed(int encoding) { return encoding != BF16 && encoding != F16 && encoding != F32; }

// Whether a block is SUPER_BLOCK columns.
constexpr bool is_super(int encoding) { return encoding >= IQ4_XS && encoding <= Q6_K; }

// Groups of a block of a packed weight.
constexpr size_t block_groups(int encoding) { return is_super(encoding) ? SUPER_BLOCK / GROUP : 1; }

// The columns of a packed weight are a multiple of it.
constexpr size_t block_columns(int encoding) { return block_groups(encoding) * GROUP; }

constexpr bool has_minima(int encoding) {
    return encoding == INT4 || encoding == Q5_1 || encoding == Q2_K || encoding == Q4_K || encoding == Q5_K;
}

// Whether halves of groups have scales of their own.
constexpr bool has_halves(int encoding) { return encoding == Q2_K || encoding == Q3_K || encoding == Q6_K; }

// What multiplies the dot products of a group: one number, with minima, one for each half, or that with minima.
enum Kind { PLAIN_KIND, MINIMA_KIND, HALVES_KIND, BOTH_KIND };

constexpr Kind kind_of(int encoding) {
    return has_halves(encoding) ? has_minima(encoding) ? BOTH_KIND : HALVES_KIND
           : has_minima(encoding) ? MINIMA_KIND : PLAIN_KIND;
}

constexpr bool kind_has_minima(Kind kind) { return kind == MINIMA_KIND || kind == BOTH_KIND; }
constexpr size_t kind_halves(Kind kind) { return kind == HALVES_KIND || kind == BOTH_KIND ? 2 : 1; }

// Bits of a code that lie in the plane of its low ones, and in the one of its high ones.
constexpr int low_bits(int encoding) { return encoding == INT8 ? 8 : encoding == Q2_K || encoding == Q3_K ? 2 : 4; }
constexpr int high_bits(int encoding) {
    return encoding == Q6_K ? 2 : encoding == Q3_K || encoding == Q5_0 || encoding == Q5_1 || encoding == Q5_K ? 1 : 0;
}

// What is taken off a code, unless it is looked up in a table.
constexpr int centre(int encoding) {
    return encoding == INT4S ? 8 : encoding == Q5_0 ? 16 : encoding == Q3_K ? 4 : encoding == Q6_K ? 32 : 0;
}

// Bytes of the codes of a group of a tile.
constexpr size_t q_bytes(int encoding) { return 64 * (low_bits(encoding) + high_bits(encoding)); }

// Bytes of one group of a tile, of a packed weight; an eighth of a block's bytes where a block has eight groups.
constexpr size_t group_bytes(int encoding) {
    switch (encoding) {
        case INT4: return INT4_GROUP_BYTES;
        case INT4S: return INT4S_GROUP_BYTES;
        case Q5_0: return Q5_0_GROUP_BYTES;
        case Q5_1: return Q5_1_GROUP_BYTES;
        case IQ4_NL: return IQ4_NL_GROUP_BYTES;
        case MXFP4: return MXFP4_GROUP_BYTES;
        case IQ4_XS: return IQ4_XS_GROUP_BYTES;
        case Q2_K: return Q2_K_GROUP_BYTES;
        case Q3_K: return Q3_K_GROUP_BYTES;
        case Q4_K: return Q4_K_GROUP_BYTES;
        case Q5_K: return Q5_K_GROUP_BYTES;
        case Q6_K: return Q6_K_GROUP_BYTES;
        default: return INT8_GROUP_BYTES;
    }
}

// Where the scales of a block begin.
constexpr size_t scales_at_byte(int encoding) { return block_groups(encoding) * q_bytes(encoding); }

// Words of the small integers of a block's scales.
constexpr size_t scale_words(int encoding) {
    return encoding == Q2_K || encoding == Q6_K ? 4 : encoding == IQ4_XS ? 1 : is_super(encoding) ? 3 : 0;
}

// Where in the scales of a block its fp16 d are; m follow.
constexpr size_t d_at_byte(int encoding) { return 4 * TILE * scale_words(encoding) + (encoding == IQ4_XS ? 2 * TILE : 0); }

constexpr bool adds_up(int encoding) {
    const size_t end = encoding == MXFP4 ? TILE : d_at_byte(encoding) + 2 * TILE * (has_minima(encoding) ? 2 : 1);
    return group_bytes(encoding) * block_groups(encoding) == scales_at_byte(encoding) + end;
}
static_assert(adds_up(INT4) && adds_up(INT4S) && adds_up(INT8) && adds_up(Q5_0) && adds_up(Q5_1) && adds_up(IQ4_NL) &&
                  adds_up(MXFP4) && adds_up(IQ4_XS) && adds_up(Q2_K) && adds_up(Q3_K) && adds_up(Q4_K) && adds_up(Q5_K) &&
                  adds_up(Q6_K),
              "codes, then scales");

constexpr int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

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
    const int32_t* offset;  // [tokens, in / 32], each two int16
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
