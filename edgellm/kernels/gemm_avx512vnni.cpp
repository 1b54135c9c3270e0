// Products with AVX-512 and its dot product of bytes (VNNI).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of GCC 12's own header, falsely
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

constexpr size_t WIDTH = 16;
using F = __m512;
using I = __m512i;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F zero() { return _mm512_setzero_ps(); }
inline F spread(float v) { return _mm512_set1_ps(v); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F halves(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline F dot_value(I acc) { return to_float(acc); }
inline I words(const uint8_t* p) { return _mm512_loadu_si512(p); }

template <int LOW, int COUNT>
inline I bits(I v) {
    return _mm512_and_si512(_mm512_srli_epi32(v, LOW), _mm512_set1_epi32((1 << COUNT) - 1));
}

template <int J>
inline I byte(I v) {
    return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * J), 24);
}

template <int E>
inline F widen(const uint8_t* p) {
    if (E == F32) return _mm512_loadu_ps(p);
    if (E == F16) return halves(p);
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

template <int E>
constexpr size_t most_tokens() { return 8; }

template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order order) {
    return order == Order::END_TO_END ? 1 : order == Order::SIDE_BY_SIDE && tokens <= 2 ? 4 : 2;
}

// For a few tokens memory is the bound, and the processor fetches ahead by itself.
template <int E>
constexpr bool asks_ahead(size_t tokens, Order order) {
    return order == Order::PASSES || (is_nibbles(E) && tokens > 2);
}

inline I four(const int8_t* x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm512_set1_epi32(v);
}

// What a dot product starts from whose weights are LIFT more than they should be.
template <int LIFT>
inline I lifted(int32_t offset) {
    return _mm512_madd_epi16(_mm512_set1_epi32(offset), _mm512_set1_epi16(LIFT / 8));
}

// dpbusd multiplies unsigned by signed bytes: nibbles are unsigned; q of INT8 becomes q + 128, which `offset` takes off.
template <int E, size_t P, size_t T>
ALWAYS_INLINE void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                        I (&acc)[P][T]) {
    const I low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
            acc[p][t] = E == INT4 ? I{} : lifted<E == INT4S ? 8 : 128>(offset[t * groups]);
#pragma GCC unroll 8
    for (size_t c = 0; c < (is_nibbles(E) ? 4 : 8); c++) {
        I a[P], b[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            const I bytes = words(w[p] + c * 64);
            a[p] = is_nibbles(E) ? _mm512_and_si512(bytes, low) : _mm512_xor_si512(bytes, flip);
            b[p] = is_nibbles(E) ? _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low) : bytes;
        }
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            const int8_t* at = x + t * in + (is_nibbles(E) ? 8 : 4) * c;
            const I first = four(at);
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) acc[p][t] = _mm512_dpbusd_epi32(acc[p][t], a[p], first);
            if (is_nibbles(E)) {
                const I second = four(at + 4);
#pragma GCC unroll 8
                for (size_t p = 0; p < P; p++) acc[p][t] = _mm512_dpbusd_epi32(acc[p][t], b[p], second);
            }
        }
    }
}

#include "gemm_vector.h"

// ---- codes

inline I field(I v, size_t low, size_t count, size_t to) {
    const I moved = low < to ? _mm512_slli_epi32(v, static_cast<unsigned>(to - low)) : _mm512_srli_epi32(v, static_cast<unsigned>(low - to));
    return _mm512_and_si512(moved, _mm512_set1_epi8(static_cast<char>(((1 << count) - 1) << to)));
}

inline I raised(I v, int by) { return _mm512_add_epi8(v, _mm512_set1_epi8(static_cast<char>(by))); }

template <int BY>
inline I looked_up(I codes, const int8_t (&table)[16]) {
    const I values = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return _mm512_shuffle_epi8(raised(values, BY), codes);
}

inline I widened8(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline I widened16(const uint8_t* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

// dpbusd's first factor is unsigned.
template <int E>
constexpr int LIFT = E == IQ4_NL || E == IQ4_XS ? 128 : E == MXFP4 ? 16 : centre(E);

template <Kind K>
constexpr int READY_LIFT = K == PLAIN_KIND ? 128 : K == HALVES_KIND ? 32 : 0;

constexpr size_t FEW = 8;
constexpr size_t few_vectors(Kind kind, size_t tokens) {
    return kind_halves(kind) == 2 ? tokens <= 4 ? 2 : 1 : tokens <= 2 ? 4 : 2;
}
constexpr size_t many_vectors(Kind kind) { return kind_halves(kind) == 2 ? 1 : 2; }
constexpr size_t many_tokens(Kind) { return 8; }

// What the dot products of half H of a group start from.
template <int LIFT_BY, int H>
inline I lifted_half(int32_t offset) {
    constexpr int whole = LIFT_BY % 8 == 0 ? 8 : 4, times = LIFT_BY / whole;
    const I sum = _mm512_madd_epi16(_mm512_set1_epi32(offset), _mm512_set1_epi32(H ? times << 16 : times));
    return whole == 8 ? sum : _mm512_srai_epi32(sum, 1);
}

template <class Q, size_t P, size_t T>
ALWAYS_INLINE void code_dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                             I (&acc)[Q::HALVES][P][T]) {
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            if constexpr (Q::LIFTED == 0) {
                for (size_t h = 0; h < Q::HALVES; h++) acc[h][p][t] = I{};
            } else if constexpr (Q::HALVES == 1) {
                acc[0][p][t] = lifted<Q::LIFTED>(offset[t * groups]);
            } else {
                acc[0][p][t] = lifted_half<Q::LIFTED, 0>(offset[t * groups]);
                acc[1][p][t] = lifted_half<Q::LIFTED, 1>(offset[t * groups]);
            }
        }
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; c++) {
        constexpr size_t LAST = Q::HALVES - 1;
        I a[P], b[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) Q::load(w[p], c, a[p], b[p]);
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            const int8_t* at = x + t * in + 8 * c;
            const I first = four(at), second = four(at + 4);
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                I& sum = acc[c / 2 * LAST][p][t];
                sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, a[p], first), b[p], second);
            }
        }
    }
}

#include "gemm_codes.h"

void quantize(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset) {
    for (size_t at = 0, g = 0; at < tokens * in; at += GROUP, g++) {
        const F a = load(x + at), b = load(x + at + 16);
        const I positive = _mm512_set1_epi32(0x7fffffff);
        const I most_of = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(a), positive),
                                           _mm512_and_si512(_mm512_castps_si512(b), positive));
        const uint32_t most = _mm512_reduce_max_epu32(most_of);
        if (most < LEAST_BITS || most >= INFINITY_BITS) {
            scalar_quantize(x + at, 1, GROUP, q + at, scale + g, sum + g, offset + g);
            continue;
        }
        const float largest = from_bits(most);
        const F inverse = spread(127.0f / largest);
        const I first = _mm512_cvtps_epi32(mul(a, inverse)), second = _mm512_cvtps_epi32(mul(b, inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + at), _mm512_cvtepi32_epi8(first));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q + at + 16), _mm512_cvtepi32_epi8(second));
        const int total = _mm512_reduce_add_epi32(first), other = _mm512_reduce_add_epi32(second);
        scale[g] = largest / 127.0f;
        sum[g] = scale[g] * static_cast<float>(total + other);
        offset[g] = both_halves(-8 * total, -8 * other);
    }
}

}  // namespace

const Target AVX512VNNI_TARGET = {"avx512vnni", quantize, product, product_exact, dequantize, read};

}  // namespace edgellm
