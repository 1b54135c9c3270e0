// Products with AVX2.
#include <immintrin.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

constexpr size_t WIDTH = 8;
using F = __m256;
using I = __m256i;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F zero() { return _mm256_setzero_ps(); }
inline F spread(float v) { return _mm256_set1_ps(v); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F halves(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F to_float(I v) { return _mm256_cvtepi32_ps(v); }
inline F dot_value(I acc) { return to_float(acc); }
inline I words(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }

template <int LOW, int COUNT>
inline I bits(I v) {
    return _mm256_and_si256(_mm256_srli_epi32(v, LOW), _mm256_set1_epi32((1 << COUNT) - 1));
}

template <int J>
inline I byte(I v) {
    return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * J), 24);
}

template <int E>
inline F widen(const uint8_t* p) {
    if (E == F32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    if (E == F16) return halves(p);
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}

template <int E>
constexpr size_t most_tokens() { return 4; }

template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order) { return tokens <= 2 ? 2 : 1; }

// For a few tokens memory is the bound, and the processor fetches ahead by itself.
template <int>
constexpr bool asks_ahead(size_t tokens, Order order) { return order == Order::PASSES || tokens > 2; }

inline I four(const int8_t* x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm256_set1_epi32(v);
}

// maddubs multiplies unsigned by signed bytes and adds pairs in 16 bits. Eight such sums of nibbles fit (8 * 2 * 15 * 127);
// of INT8 one does (2 * 128 * 127), with q's sign given to x.
template <int E, size_t P, size_t T>
ALWAYS_INLINE void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                        I (&acc)[P][T]) {
    const I low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) acc[p][t] = I{};
#pragma GCC unroll 8
    for (size_t c = 0; c < (is_nibbles(E) ? 4 : 8); c++) {
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            const I bytes = words(w[p] + c * 64);
            const I a = is_nibbles(E) ? _mm256_and_si256(bytes, low) : _mm256_abs_epi8(bytes);
            const I b = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const int8_t* at = x + t * in + (is_nibbles(E) ? 8 : 4) * c;
                if (is_nibbles(E)) {
                    acc[p][t] = _mm256_add_epi16(acc[p][t], _mm256_maddubs_epi16(a, four(at)));
                    acc[p][t] = _mm256_add_epi16(acc[p][t], _mm256_maddubs_epi16(b, four(at + 4)));
                } else {
                    const I pairs = _mm256_maddubs_epi16(a, _mm256_sign_epi8(four(at), bytes));
                    acc[p][t] = _mm256_add_epi32(acc[p][t], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
    }
    if (is_nibbles(E)) {
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                acc[p][t] = _mm256_madd_epi16(acc[p][t], ones);
                if (E == INT4S)
                    acc[p][t] = _mm256_add_epi32(acc[p][t], _mm256_madd_epi16(_mm256_set1_epi32(offset[t * groups]), ones));
            }
    }
}

#include "gemm_vector.h"

// ---- codes

inline I field(I v, size_t low, size_t count, size_t to) {
    const I moved = low < to ? _mm256_slli_epi32(v, static_cast<int>(to - low)) : _mm256_srli_epi32(v, static_cast<int>(low - to));
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(((1 << count) - 1) << to)));
}

inline I raised(I v, int by) { return _mm256_add_epi8(v, _mm256_set1_epi8(static_cast<char>(by))); }

template <int BY>
inline I looked_up(I codes, const int8_t (&table)[16]) {
    const I values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return _mm256_shuffle_epi8(BY ? raised(values, BY) : values, codes);
}

inline I widened8(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline I widened16(const uint8_t* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

// maddubs's first factor is unsigned, and pairs of products must fit into 16 bits. What has one scale and no minima is
// multiplied as INT8, with its sign given to x.
template <int E>
constexpr int LIFT = has_halves(E) ? centre(E) : 0;

template <Kind K>
constexpr int READY_LIFT = K == HALVES_KIND ? 32 : 0;

constexpr size_t FEW = 4;
constexpr size_t few_vectors(Kind, size_t tokens) { return tokens <= 2 ? 2 : 1; }
constexpr size_t many_vectors(Kind) { return 1; }
constexpr size_t many_tokens(Kind) { return 4; }

// What the dot products of half H of a group start from.
template <int LIFT_BY, int H>
inline I lifted_half(int32_t offset) {
    constexpr int whole = LIFT_BY % 8 == 0 ? 8 : 4, times = LIFT_BY / whole;
    const I sum = _mm256_madd_epi16(_mm256_set1_epi32(offset), _mm256_set1_epi32(H ? times << 16 : times));
    return whole == 8 ? sum : _mm256_srai_epi32(sum, 1);
}

template <class Q, size_t P, size_t T>
ALWAYS_INLINE void code_dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                             I (&acc)[Q::HALVES][P][T]) {
    constexpr bool SIGNED = Q::KIND == PLAIN_KIND;
    constexpr size_t SUMS = SIGNED ? 1 : 32767 / (2 * 127 * Q::MOST);  // of pairs that fit into 16 bits
    constexpr size_t CHUNKS = SUMS >= 8 ? 4 : SUMS >= 4 ? 2 : 1;       // in which they are
    static_assert(SUMS >= 2 || SIGNED, "a chunk's sums fit into 16 bits");
    const I ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            acc[0][p][t] = I{};
            if constexpr (Q::HALVES == 2) acc[1][p][t] = I{};
            if constexpr (Q::HALVES == 2 && Q::LIFTED != 0) {
                acc[0][p][t] = lifted_half<Q::LIFTED, 0>(offset[t * groups]);
                acc[1][p][t] = lifted_half<Q::LIFTED, 1>(offset[t * groups]);
            }
        }
    I pairs[P][T];
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; c++) {
        constexpr size_t LAST = Q::HALVES - 1;
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            I a, b;
            Q::load(w[p], c, a, b);
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const int8_t* at = x + t * in + 8 * c;
                I& sum = acc[c / 2 * LAST][p][t];
                if constexpr (SIGNED) {
                    const I first = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(four(at), a));
                    const I second = _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(four(at + 4), b));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(first, ones));
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(second, ones));
                } else {
                    const I both = _mm256_add_epi16(_mm256_maddubs_epi16(a, four(at)), _mm256_maddubs_epi16(b, four(at + 4)));
                    pairs[p][t] = c % CHUNKS == 0 ? both : _mm256_add_epi16(pairs[p][t], both);
                    if ((c + 1) % CHUNKS == 0 || (Q::HALVES == 2 && c == 1)) {
                        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs[p][t], ones));
                        if (CHUNKS == 4 && c == 1) pairs[p][t] = I{};
                    }
                }
            }
        }
    }
}

#include "gemm_codes.h"

inline int sum_of(I v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline uint32_t most_of(I v) {
    __m128i s = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0x4e));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(s, _mm_shuffle_epi32(s, 0xb1))));
}

void quantize(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset) {
    const I positive = _mm256_set1_epi32(0x7fffffff);
    for (size_t at = 0, g = 0; at < tokens * in; at += GROUP, g++) {
        I most = I{}, rounded[4];
        for (size_t i = 0; i < 4; i++)
            most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_castps_si256(load(x + at + 8 * i)), positive));
        const uint32_t largest_bits = most_of(most);
        if (largest_bits < LEAST_BITS || largest_bits >= INFINITY_BITS) {
            scalar_quantize(x + at, 1, GROUP, q + at, scale + g, sum + g, offset + g);
            continue;
        }
        const float largest = from_bits(largest_bits);
        const F inverse = spread(127.0f / largest);
        for (size_t i = 0; i < 4; i++) rounded[i] = _mm256_cvtps_epi32(mul(load(x + at + 8 * i), inverse));
        const int first = sum_of(_mm256_add_epi32(rounded[0], rounded[1]));
        const int second = sum_of(_mm256_add_epi32(rounded[2], rounded[3]));
        const I bytes = _mm256_packs_epi16(_mm256_packs_epi32(rounded[0], rounded[1]),
                                           _mm256_packs_epi32(rounded[2], rounded[3]));
        const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // both packed within halves of the vector
        _mm256_storeu_si256(reinterpret_cast<I*>(q + at), _mm256_permutevar8x32_epi32(bytes, order));
        scale[g] = largest / 127.0f;
        sum[g] = scale[g] * static_cast<float>(first + second);
        offset[g] = both_halves(-8 * first, -8 * second);
    }
}

}  // namespace

const Target AVX2_TARGET = {"avx2", quantize, product, product_exact, dequantize, read};

}  // namespace edgellm
