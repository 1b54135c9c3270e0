// x86-64-v3: 8 floats a register, fused multiply-add, and half floats converted by the processor.
#include <immintrin.h>
#include <string.h>

#include "rows.h"

namespace edgellm {
namespace {

using Vec = __m256;
constexpr size_t WIDTH = 8;
constexpr size_t CHAINS = 1;
constexpr size_t rows_at_once(size_t tokens) { return tokens <= 2 ? 4 : 2; }

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }

inline float sum(Vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

template <int E>
struct Scales {};  // decode reads them itself

template <int E>
inline void prepare(const uint8_t*, size_t, Scales<E>&) {}

template <int E>
inline void decode(const uint8_t* p, const Scales<E>&, size_t, Vec (&w)[4]) {
    if constexpr (E == INT4) {
        int32_t bits;
        memcpy(&bits, p, 4);
        const __m128 dm = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
        const Vec d = _mm256_broadcastss_ps(dm), m = _mm256_broadcastss_ps(_mm_movehdup_ps(dm));
        const __m256i low = _mm256_set1_epi32(15);
        for (int i = 0; i < 2; i++) {
            const __m256i q = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 4 + 8 * i)));
            w[i] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_and_si256(q, low)), m);
            w[2 + i] = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_srli_epi32(q, 4)), m);
        }
    } else if constexpr (E == INT8) {
        uint16_t bits;
        memcpy(&bits, p, 2);
        const Vec d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
        for (int i = 0; i < 4; i++) {
            const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 2 + 8 * i));
            w[i] = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)));
        }
    } else {
        for (int i = 0; i < 4; i++) {
            const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
            if constexpr (E == F16) {
                w[i] = _mm256_cvtph_ps(bits);
            } else {
                w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
            }
        }
    }
}

#include "rows_impl.h"

}  // namespace

const Target AVX2_TARGET = {"avx2", linear, dequantize};

}  // namespace edgellm
