// One value at a time: reading weights of every encoding; what the vector kernels do at edges.
#pragma once
#include <string.h>

#include "gemm.h"

// What a loop over groups calls must become part of it, at every level of optimization: zig, which compiles for boards,
// turns -O3 into -O2, where clang would call `dots` with its sums in memory.
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace edgellm {

constexpr uint32_t LEAST_BITS = (127 - 100) << 23, INFINITY_BITS = 0x7f800000;  // of 2^-100, and of infinity

// 1.5 * 2^23, a float whose neighbours are whole numbers: adding it rounds half to even, taking it off is exact. Its bits
// plus n are those of ROUNDER + n for |n| < 2^22, so an integer sum that starts from them is a float already.
constexpr float ROUNDER = 12582912.0f;
constexpr int32_t ROUNDER_BITS = 0x4b400000;

void scalar_quantize(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset);
void scalar_dequantize(const Matrix& w, size_t row_start, size_t row_end, float* into);

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint16_t bits16(const uint8_t* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return bits;
}

inline float half(const uint8_t* p) {
    const uint32_t bits = bits16(p), sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
    if (rest >= 0x0400u) return from_bits(sign | ((rest << 13) + (112u << 23)));
    const float tiny = static_cast<float>(rest) * (1.0f / 16777216.0f);  // subnormal: a count of 2^-24
    return sign ? -tiny : tiny;
}

// Column k of a row of a plain weight.
template <int E>
inline float plain(const uint8_t* row, size_t k) {
    if (E == BF16) return from_bits(static_cast<uint32_t>(bits16(row + 2 * k)) << 16);
    if (E == F16) return half(row + 2 * k);
    float value;
    memcpy(&value, row + 4 * k, 4);
    return value;
}

// q of row r and column k of a group of a tile, of INT4S q - 8.
template <int E>
inline int weight_q(const uint8_t* group, size_t r, size_t k) {
    if (E == INT8) return static_cast<int8_t>(group[k / 4 * 64 + r * 4 + k % 4]);
    const int byte = group[k / 8 * 64 + r * 4 + k % 4];
    return (k % 8 < 4 ? byte & 15 : byte >> 4) - (E == INT4S ? 8 : 0);
}

// The 32 weights of row r of a group of a tile.
template <int E>
inline void dequantize_group(const uint8_t* group, size_t r, float* into) {
    const uint8_t* scales = group + q_bytes(E) + 2 * r;
    const float d = half(scales), m = E == INT4 ? half(scales + 2 * TILE) : 0;
    for (size_t k = 0; k < GROUP; k++) {
        const float q = static_cast<float>(weight_q<E>(group, r, k));
        into[k] = E == INT4 ? __builtin_fmaf(d, q, m) : d * q;
    }
}

}  // namespace edgellm
