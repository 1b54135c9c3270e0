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
void scalar_product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end);
void scalar_product_exact(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end);

// The two numbers of an offset: of the first half of a group, and of the second.
inline int first_half(int32_t offset) { return static_cast<int16_t>(offset & 0xffff); }
inline int second_half(int32_t offset) { return static_cast<int16_t>(static_cast<uint32_t>(offset) >> 16); }
inline int32_t both_halves(int first, int second) {
    return static_cast<int32_t>((static_cast<uint32_t>(first) & 0xffffu) | static_cast<uint32_t>(second) << 16);
}

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

// What row r and column k of a group of a tile has for q_w: its code less the centre, or what a table says.
template <int E>
inline int weight_q(const uint8_t* group, size_t r, size_t k) {
    const uint8_t* row = group + r * 4 + k % 4;
    const size_t slot = k / 4;
    if (E == INT8) return static_cast<int8_t>(row[slot * 64]);
    constexpr size_t LOW = low_bits(E), HIGH = high_bits(E);
    int code = row[slot / (8 / LOW) * 64] >> slot % (8 / LOW) * LOW & ((1 << LOW) - 1);
    if constexpr (HIGH != 0)
        code |= (row[(LOW + slot / (8 / HIGH)) * 64] >> slot % (8 / HIGH) * HIGH & ((1 << HIGH) - 1)) << LOW;
    if (E == IQ4_NL || E == IQ4_XS) return IQ4[code];
    return E == MXFP4 ? MXFP4_VALUES[code] : code - centre(E);
}

// 2^(e - 128).
inline float power_of(uint8_t e) { return from_bits(e < 2 ? 0x00200000u << e : (e - 1u) << 23); }

// The scales of row r in a group of a block: those of both halves are equal where halves have none of their own. A weight
// is factor[half] * q_w + minimum[half], and factor[half] = d * s[half], minimum[half] = -(m * z[half]).
struct RowScales {
    float d, m, factor[2], minimum[2];
    int s[2], z[2];
};

template <int E>
inline RowScales row_scales(const uint8_t* block, size_t g, size_t r) {
    const uint8_t* scales = block + scales_at_byte(E);
    RowScales of = {0, 0, {}, {}, {1, 1}, {}};
    if (E == MXFP4) {
        of.d = of.factor[0] = of.factor[1] = power_of(scales[r]);
        return of;
    }
    of.d = half(scales + d_at_byte(E) + 2 * r);
    if (has_minima(E)) of.m = half(scales + d_at_byte(E) + 2 * TILE + 2 * r);
    if (!is_super(E)) {
        for (size_t i = 0; i < 2; i++) of.factor[i] = of.d, of.minimum[i] = of.m;
        return of;
    }
    const auto byte = [&](size_t word, size_t i) -> int { return scales[word * 64 + r * 4 + i]; };
    for (size_t i = 0; i < 2; i++) {
        const size_t h = 2 * g + i, k = g % 4;
        int &s = of.s[i], &z = of.z[i];
        if (E == Q6_K) s = static_cast<int8_t>(byte(h / 4, h % 4));
        if (E == Q2_K) s = byte(h / 4, h % 4) & 15, z = byte(h / 4, h % 4) >> 4;
        if (E == Q3_K) s = ((byte(h / 4 % 2, h % 4) >> h / 8 * 4 & 15) | (byte(2, h % 4) >> h / 4 * 2 & 3) << 4) - 32;
        if (E == IQ4_XS) {
            const int low = byte(0, k) >> g / 4 * 4 & 15, high = bits16(scales + 64 + 2 * r) >> 2 * g & 3;
            s = (low | high << 4) - 32;
        }
        if (E == Q4_K || E == Q5_K) {
            const int a = byte(0, k), b = byte(1, k), c = byte(2, k);
            s = g < 4 ? a & 63 : (c & 15) | (a >> 6) << 4;
            z = g < 4 ? b & 63 : c >> 4 | (b >> 6) << 4;
        }
        of.factor[i] = of.d * static_cast<float>(s);
        of.minimum[i] = -(of.m * static_cast<float>(z));
    }
    return of;
}

// The 32 weights of row r of group g of a block.
template <int E>
inline void dequantize_group(const uint8_t* block, size_t g, size_t r, float* into) {
    const RowScales scales = row_scales<E>(block, g, r);
    for (size_t k = 0; k < GROUP; k++) {
        const float q = static_cast<float>(weight_q<E>(block + g * q_bytes(E), r, k)), d = scales.factor[k / 16];
        into[k] = has_minima(E) ? __builtin_fmaf(d, q, scales.minimum[k / 16]) : d * q;
    }
}

// An encoding as a value of its own type, for with_packed.
template <int E>
struct Code {
    static constexpr int value = E;
};

// Calls f(Code<encoding>()) for a packed encoding; false for another.
template <class Each>
ALWAYS_INLINE bool with_packed(int encoding, const Each& f) {
    switch (encoding) {
        case INT4: return f(Code<INT4>()), true;
        case INT4S: return f(Code<INT4S>()), true;
        case INT8: return f(Code<INT8>()), true;
        case Q5_0: return f(Code<Q5_0>()), true;
        case Q5_1: return f(Code<Q5_1>()), true;
        case IQ4_NL: return f(Code<IQ4_NL>()), true;
        case MXFP4: return f(Code<MXFP4>()), true;
        case IQ4_XS: return f(Code<IQ4_XS>()), true;
        case Q2_K: return f(Code<Q2_K>()), true;
        case Q3_K: return f(Code<Q3_K>()), true;
        case Q4_K: return f(Code<Q4_K>()), true;
        case Q5_K: return f(Code<Q5_K>()), true;
        case Q6_K: return f(Code<Q6_K>()), true;
        default: return false;
    }
}

}  // namespace edgellm
