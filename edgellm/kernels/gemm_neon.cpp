// Products with NEON as every aarch64 processor has it (ARMv8.0, as Cortex-A72).
#include <arm_neon.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

#include "gemm_neon.h"

inline F dot_value(I acc) { return to_float(acc); }

// The 32 registers hold the sums of eight vectors times tokens. INT8 has nothing to unpack, so four vectors by two tokens
// cost it least: columns are repeated half as often as with two by four.
template <int E>
constexpr size_t most_tokens() { return E == INT8 ? 2 : 4; }

template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order) { return E == INT8 || tokens == 1 ? 4 : 2; }

template <int>
constexpr bool asks_ahead(size_t, Order) { return true; }

// Lane K of 16 columns, four of them, repeated for the four rows of a vector.
template <int K>
ALWAYS_INLINE int8x16_t four(int8x16_t columns) {
    int8x16_t repeated = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(columns), K));
    // Hide from clang that the halves are equal: it would multiply both halves of the weights by the low one, and so copy
    // the high half of every weight down first.
    __asm__("" : "+w"(repeated));
    return repeated;
}

// Products of bytes are summed in 16 bits. All eight that nibbles make in a lane fit, and even two such sums
// (2 * 8 * 15 * 127); of INT8 two products do (2 * 128 * 127).
template <int E, size_t P, size_t T>
ALWAYS_INLINE void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                        I (&acc)[P][T]) {
    if constexpr (is_nibbles(E)) {
        int16x8_t low[P][T], high[P][T];  // rows 0 and 1, rows 2 and 3, of the vector
        const auto add = [&](size_t c, size_t p, size_t t, int8x16_t q, int8x16_t columns) {
            low[p][t] = c == 0 ? vmull_s8(vget_low_s8(q), vget_low_s8(columns))
                               : vmlal_s8(low[p][t], vget_low_s8(q), vget_low_s8(columns));
            high[p][t] = c == 0 ? vmull_high_s8(q, columns) : vmlal_high_s8(high[p][t], q, columns);
        };
#pragma GCC unroll 8
        for (size_t c = 0; c < 4; c++) {
            int8x16_t a[P], b[P];
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                const uint8x16_t bytes = vld1q_u8(w[p] + c * 64);
                a[p] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                b[p] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
            }
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const int8x16_t columns = vld1q_s8(x + t * in + c / 2 * 16);
                const int8x16_t first = c % 2 ? four<2>(columns) : four<0>(columns);
                const int8x16_t second = c % 2 ? four<3>(columns) : four<1>(columns);
#pragma GCC unroll 8
                for (size_t p = 0; p < P; p++) {
                    add(2 * c, p, t, a[p], first);
                    add(2 * c + 1, p, t, b[p], second);
                }
            }
        }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const I sum = vpaddlq_s16(vpaddq_s16(low[p][t], high[p][t]));
                acc[p][t] = E == INT4S ? with_offset(sum, offset + t * groups) : sum;
            }
    } else {
        I low[P][T], high[P][T];
#pragma GCC unroll 8
        for (size_t c = 0; c < 8; c += 2) {
            // Keep the chunks apart: clang would load them all early, and spill sums to make room.
            if (T > 1) __asm__ volatile("" ::: "memory");
            int8x16_t first[T], second[T];
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const int8x16_t columns = vld1q_s8(x + t * in + c / 4 * 16);
                first[t] = c % 4 ? four<2>(columns) : four<0>(columns);
                second[t] = c % 4 ? four<3>(columns) : four<1>(columns);
            }
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                const int8x16_t a = vreinterpretq_s8_u8(vld1q_u8(w[p] + c * 64));
                const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(w[p] + c * 64 + 64));
#pragma GCC unroll 8
                for (size_t t = 0; t < T; t++) {
                    int16x8_t l = vmull_s8(vget_low_s8(a), vget_low_s8(first[t])), h = vmull_high_s8(a, first[t]);
                    l = vmlal_s8(l, vget_low_s8(b), vget_low_s8(second[t]));
                    h = vmlal_high_s8(h, b, second[t]);
                    low[p][t] = c == 0 ? vpaddlq_s16(l) : vpadalq_s16(low[p][t], l);
                    high[p][t] = c == 0 ? vpaddlq_s16(h) : vpadalq_s16(high[p][t], h);
                }
            }
        }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) acc[p][t] = vpaddq_s32(low[p][t], high[p][t]);
    }
}

#include "gemm_vector.h"

constexpr size_t few_vectors(Kind kind, size_t tokens) { return tokens == 1 && kind_halves(kind) == 1 ? 4 : tokens <= 2 ? 2 : 1; }
constexpr size_t many_vectors(Kind kind) { return kind == PLAIN_KIND ? 1 : 2; }
constexpr size_t many_tokens(Kind kind) { return kind_halves(kind) == 2 ? 2 : 4; }

// Of columns 4s ... 4s + 3, those of slot s, repeated for the four rows of a vector.
ALWAYS_INLINE int8x16_t columns_of(const int8_t* x, size_t s) {
    const int8x16_t columns = vld1q_s8(x + s / 4 * 16);
    return s % 4 == 0 ? four<0>(columns) : s % 4 == 1 ? four<1>(columns) : s % 4 == 2 ? four<2>(columns) : four<3>(columns);
}

// Products are summed in 16 bits as far as they fit.
template <class Q, size_t P, size_t T>
ALWAYS_INLINE void code_dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t*, size_t,
                             I (&acc)[Q::HALVES][P][T]) {
    constexpr int MOST = Q::KIND == HALVES_KIND ? 32 : Q::MOST;  // of what is signed
    constexpr size_t FIT = 32767 / (127 * MOST), LAST = Q::HALVES - 1;
    constexpr size_t CHUNKS = FIT >= 8 && LAST == 0 ? 4 : FIT >= 4 ? 2 : 1;  // of two products each
    constexpr bool TWO_FIT = 2 * CHUNKS * 2 * 127 * MOST <= 32767;
    int16x8_t low[P][T], high[P][T];  // rows 0 and 1, rows 2 and 3, of the vector
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; c++) {
        int8x16_t a[P], b[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            I first, second;
            Q::load(w[p], c, first, second);
            a[p] = vreinterpretq_s8_s32(first), b[p] = vreinterpretq_s8_s32(second);
        }
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            const int8x16_t one = columns_of(x + t * in, 2 * c), two = columns_of(x + t * in, 2 * c + 1);
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                int16x8_t &l = low[p][t], &h = high[p][t];
                const bool fresh = c % CHUNKS == 0;
                l = fresh ? vmull_s8(vget_low_s8(a[p]), vget_low_s8(one)) : vmlal_s8(l, vget_low_s8(a[p]), vget_low_s8(one));
                h = fresh ? vmull_high_s8(a[p], one) : vmlal_high_s8(h, a[p], one);
                l = vmlal_s8(l, vget_low_s8(b[p]), vget_low_s8(two));
                h = vmlal_high_s8(h, b[p], two);
                if ((c + 1) % CHUNKS) continue;
                I sum;
                if constexpr (TWO_FIT) sum = vpaddlq_s16(vpaddq_s16(l, h));
                else sum = vpaddq_s32(vpaddlq_s16(l), vpaddlq_s16(h));
                I& into = acc[c / 2 * LAST][p][t];
                into = c < CHUNKS || (LAST && c / 2 * 2 + CHUNKS - 1 == c) ? sum : vaddq_s32(into, sum);
            }
        }
    }
}

#include "gemm_codes.h"

}  // namespace

const Target NEON_TARGET = {"neon", quantize, product, product_exact, dequantize, read};

}  // namespace edgellm
