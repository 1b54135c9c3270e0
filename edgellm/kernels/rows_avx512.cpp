// x86-64-v4: 16 floats a register; int4 is looked up in a table of the block's 16 possible weights.
#include <immintrin.h>
#include <string.h>

#include "rows.h"

namespace edgellm {
namespace {

using Vec = __m512;
constexpr size_t WIDTH = 16;
constexpr size_t CHAINS = 1;
constexpr size_t rows_at_once(size_t tokens) { return tokens <= 4 ? 4 : 2; }

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }

template <int E>
struct Scales {};  // decode reads them itself

// A scalar in a register costs as much to spread as the block's arithmetic; from memory a load spreads it for nothing.
template <>
struct Scales<INT4> {
    float d[16], m[16];
};

template <int E>
inline void prepare(const uint8_t*, size_t, Scales<E>&) {}

// The first 4 bytes of each of up to 16 blocks: every fifth of 80 words, gathered from 5 registers.
template <>
inline void prepare<INT4>(const uint8_t* p, size_t count, Scales<INT4>& scales) {
    const size_t words = 5 * count;
    __m512i in[5];
    for (size_t i = 0; i < 5; i++) {
        const size_t left = words > 16 * i ? words - 16 * i : 0;
        in[i] = _mm512_maskz_loadu_epi32(left < 16 ? (1u << left) - 1 : 0xffffu, p + 64 * i);
    }
    const __m512i at = _mm512_setr_epi32(0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75);
    const __m512i low = _mm512_permutex2var_epi32(in[0], at, in[1]);   // words 0 … 31; looks at the low 5 bits
    const __m512i mid = _mm512_permutex2var_epi32(in[2], at, in[3]);   // words 32 … 63
    const __m512i top = _mm512_permutexvar_epi32(at, in[4]);           // words 64 … 79
    const __m512i dm = _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(low, 0x1f80, mid), 0xe000, top);
    _mm512_storeu_ps(scales.d, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(dm)));
    _mm512_storeu_ps(scales.m, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(dm, 16))));
}

template <int E>
inline void decode(const uint8_t* p, const Scales<E>& scales, size_t g, Vec (&w)[2]) {
    (void)scales, (void)g;
    if constexpr (E == INT4) {
        const Vec d = _mm512_set1_ps(scales.d[g]), m = _mm512_set1_ps(scales.m[g]);
        const Vec levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const Vec table = _mm512_fmadd_ps(d, levels, m);
        const __m512i q = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4)));
        w[0] = _mm512_permutexvar_ps(q, table);  // looks at the low 4 bits only
        w[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(q, 4), table);
    } else if constexpr (E == INT8) {
        uint16_t bits;
        memcpy(&bits, p, 2);
        const Vec d = _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
        for (int i = 0; i < 2; i++) {
            const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2 + 16 * i));
            w[i] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
        }
    } else {
        for (int i = 0; i < 2; i++) {
            const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * i));
            if constexpr (E == F16) {
                w[i] = _mm512_cvtph_ps(bits);
            } else {
                w[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
            }
        }
    }
}

#include "rows_impl.h"

}  // namespace

const Target AVX512_TARGET = {"avx512", linear, dequantize};

}  // namespace edgellm
