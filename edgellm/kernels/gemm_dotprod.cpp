// Products with NEON and its dot product of bytes (ARMv8.2, as Cortex-A76).
// The target is set here, not on the command line, because compilers spell it differently.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

#include "gemm_neon.h"

template <int E>
constexpr size_t most_tokens() { return 4; }

// With three tokens or more the sums of four vectors would leave no registers for weights and columns.
template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order) { return tokens > 2 ? 2 : 4; }

template <int>
constexpr bool asks_ahead(size_t, Order) { return true; }

// All sums start from the bits of ROUNDER: Cortex-A76 subtracts two vectors at once where it converts one.
inline F dot_value(I acc) { return vsubq_f32(vreinterpretq_f32_s32(acc), spread(ROUNDER)); }

// Each token's columns come 16 at a time: four lanes of four.
template <int E, size_t P, size_t T>
ALWAYS_INLINE void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                        I (&acc)[P][T]) {
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) {
        I start = vdupq_n_s32(ROUNDER_BITS);
        if (E == INT4S) start = vsraq_n_s32(start, vld1q_dup_s32(offset + t * groups), 4);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) acc[p][t] = start;
    }
#pragma GCC unroll 2
    for (size_t half_of = 0; half_of < 2; half_of++) {
        int8x16_t columns[T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) columns[t] = vld1q_s8(x + t * in + 16 * half_of);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            int8x16_t a[4];
            if constexpr (is_nibbles(E)) {
                const uint8x16_t first = vld1q_u8(w[p] + 128 * half_of), second = vld1q_u8(w[p] + 128 * half_of + 64);
                a[0] = vreinterpretq_s8_u8(vandq_u8(first, vdupq_n_u8(15)));
                a[1] = vreinterpretq_s8_u8(vshrq_n_u8(first, 4));
                a[2] = vreinterpretq_s8_u8(vandq_u8(second, vdupq_n_u8(15)));
                a[3] = vreinterpretq_s8_u8(vshrq_n_u8(second, 4));
            } else {
#pragma GCC unroll 4
                for (size_t c = 0; c < 4; c++) a[c] = vreinterpretq_s8_u8(vld1q_u8(w[p] + 256 * half_of + 64 * c));
            }
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[0], columns[t], 0);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[1], columns[t], 1);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[2], columns[t], 2);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[3], columns[t], 3);
            }
        }
    }
}

#include "gemm_vector.h"

}  // namespace

const Target DOTPROD_TARGET = {"dotprod", quantize, product, product_exact, dequantize, read};

}  // namespace edgellm

#ifdef __clang__
#pragma clang attribute pop
#endif
