// Products with NEON as every aarch64 processor has it (ARMv8.0, as Cortex-A72).
#include <arm_neon.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

#include "gemm_neon.h"

template <int E>
constexpr size_t most_tokens() { return 4; }

template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order) { return tokens == 1 ? 4 : 2; }

template <int>
constexpr bool asks_ahead(size_t, Order) { return true; }

inline int8x16_t four(const int8_t* x) {
    int32_t v;
    memcpy(&v, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(v));
}

// Products of bytes are summed in 16 bits: all eight of a column of nibbles fit (8 * 15 * 127), of INT8 two (2 * 128 * 127).
template <int E, size_t P, size_t T>
inline void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                 I (&acc)[P][T]) {
    if constexpr (is_nibbles(E)) {
        int16x8_t low[P][T], high[P][T];  // rows 0 and 1, rows 2 and 3, of the vector
#pragma GCC unroll 8
        for (size_t c = 0; c < 4; c++)
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                const uint8x16_t bytes = vld1q_u8(w[p] + c * 64);
                const int8x16_t a = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                const int8x16_t b = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
#pragma GCC unroll 8
                for (size_t t = 0; t < T; t++) {
                    const int8x16_t first = four(x + t * in + 8 * c), second = four(x + t * in + 8 * c + 4);
                    if (c == 0) {
                        low[p][t] = vmull_s8(vget_low_s8(a), vget_low_s8(first));
                        high[p][t] = vmull_high_s8(a, first);
                    } else {
                        low[p][t] = vmlal_s8(low[p][t], vget_low_s8(a), vget_low_s8(first));
                        high[p][t] = vmlal_high_s8(high[p][t], a, first);
                    }
                    low[p][t] = vmlal_s8(low[p][t], vget_low_s8(b), vget_low_s8(second));
                    high[p][t] = vmlal_high_s8(high[p][t], b, second);
                }
            }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                acc[p][t] = vpaddq_s32(vpaddlq_s16(low[p][t]), vpaddlq_s16(high[p][t]));
                if (E == INT4S) acc[p][t] = vaddq_s32(acc[p][t], vdupq_n_s32(offset[t * groups] / 16));
            }
    } else {
        I low[P][T], high[P][T];
#pragma GCC unroll 8
        for (size_t c = 0; c < 8; c += 2)
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(w[p] + c * 64));
                const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(w[p] + c * 64 + 64));
#pragma GCC unroll 8
                for (size_t t = 0; t < T; t++) {
                    const int8x16_t first = four(x + t * in + 4 * c), second = four(x + t * in + 4 * c + 4);
                    int16x8_t l = vmull_s8(vget_low_s8(a), vget_low_s8(first)), h = vmull_high_s8(a, first);
                    l = vmlal_s8(l, vget_low_s8(b), vget_low_s8(second));
                    h = vmlal_high_s8(h, b, second);
                    low[p][t] = c == 0 ? vpaddlq_s16(l) : vpadalq_s16(low[p][t], l);
                    high[p][t] = c == 0 ? vpaddlq_s16(h) : vpadalq_s16(high[p][t], h);
                }
            }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) acc[p][t] = vpaddq_s32(low[p][t], high[p][t]);
    }
}

#include "gemm_vector.h"

}  // namespace

const Target NEON_TARGET = {"neon", quantize, product, product_exact, dequantize, read};

}  // namespace edgellm
