// Sixteen float32 side by side, with the same results bit for bit on every instruction set. For one .cpp file per set:
// everything stays in its anonymous namespace, because the linker must never merge functions of different processors.
//
// All operations round once. `sum` adds halves: a[i] + a[i + 8], then + 4, + 2, + 1. `most` and `least` return the second
// value where one isn't a number.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr size_t LANES = 16;

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

#if defined(__AVX512F__)

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own headers: bug 105593

constexpr int REGISTERS = 32;  // of LANES floats
struct Lanes {
    __m512 v;
};
inline Lanes splat(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes load(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Lanes load(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(uint16_t* p, Lanes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes most(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes least(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
// a where x >= limit or x isn't a number, else 0.
inline Lanes unless_below(Lanes x, float limit, Lanes a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ), a.v)};
}
// a * 2^n for the n in the low bits of `shifted`.
inline Lanes scale_by_power(Lanes a, Lanes shifted) {
    return {_mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23)))};
}
inline float sum(Lanes a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#elif defined(__AVX2__)

constexpr int REGISTERS = 8;
struct Lanes {
    __m256 v[2];
};
#define EACH(expression) \
    {                    \
        { [&](int i) { return expression; }(0), [&](int i) { return expression; }(1) } \
    }
inline Lanes splat(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
inline Lanes load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline void store(float* p, Lanes a) {
    _mm256_storeu_ps(p, a.v[0]);
    _mm256_storeu_ps(p + 8, a.v[1]);
}
inline __m128i eight_halves(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline Lanes load(const uint16_t* p) {
    return {{_mm256_cvtph_ps(eight_halves(p)), _mm256_cvtph_ps(eight_halves(p + 8))}};
}
inline __m256 eight_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Lanes load(const int8_t* p) { return {{eight_bytes(p), eight_bytes(p + 8)}}; }
inline void store(uint16_t* p, Lanes a) {
    for (int i = 0; i < 2; i++)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i), _mm256_cvtps_ph(a.v[i], _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes add(Lanes a, Lanes b) { return EACH(_mm256_add_ps(a.v[i], b.v[i])); }
inline Lanes sub(Lanes a, Lanes b) { return EACH(_mm256_sub_ps(a.v[i], b.v[i])); }
inline Lanes mul(Lanes a, Lanes b) { return EACH(_mm256_mul_ps(a.v[i], b.v[i])); }
inline Lanes div(Lanes a, Lanes b) { return EACH(_mm256_div_ps(a.v[i], b.v[i])); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return EACH(_mm256_fmadd_ps(a.v[i], b.v[i], c.v[i])); }
inline Lanes most(Lanes a, Lanes b) { return EACH(_mm256_max_ps(a.v[i], b.v[i])); }
inline Lanes least(Lanes a, Lanes b) { return EACH(_mm256_min_ps(a.v[i], b.v[i])); }
inline Lanes unless_below(Lanes x, float limit, Lanes a) {
    return EACH(_mm256_and_ps(_mm256_cmp_ps(x.v[i], _mm256_set1_ps(limit), _CMP_NLT_UQ), a.v[i]));
}
inline Lanes scale_by_power(Lanes a, Lanes shifted) {
    return EACH(_mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a.v[i]), _mm256_slli_epi32(_mm256_castps_si256(shifted.v[i]), 23))));
}
#undef EACH
inline float sum(Lanes a) {
    const __m256 h = _mm256_add_ps(a.v[0], a.v[1]);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#elif defined(__aarch64__)

constexpr int REGISTERS = 8;
struct Lanes {
    float32x4_t v[4];
};
#define EACH(expression)                                                                           \
    {                                                                                              \
        {                                                                                          \
            [&](int i) { return expression; }(0), [&](int i) { return expression; }(1),            \
                [&](int i) { return expression; }(2), [&](int i) { return expression; }(3)         \
        }                                                                                          \
    }
inline Lanes splat(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}}; }
inline Lanes load(const float* p) { return EACH(vld1q_f32(p + 4 * i)); }
inline void store(float* p, Lanes a) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.v[i]);
}
inline Lanes load(const uint16_t* p) { return EACH(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)))); }
inline Lanes load(const int8_t* p) {
    const int8x16_t q = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(q)), high = vmovl_s8(vget_high_s8(q));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
inline void store(uint16_t* p, Lanes a) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline Lanes add(Lanes a, Lanes b) { return EACH(vaddq_f32(a.v[i], b.v[i])); }
inline Lanes sub(Lanes a, Lanes b) { return EACH(vsubq_f32(a.v[i], b.v[i])); }
inline Lanes mul(Lanes a, Lanes b) { return EACH(vmulq_f32(a.v[i], b.v[i])); }
inline Lanes div(Lanes a, Lanes b) { return EACH(vdivq_f32(a.v[i], b.v[i])); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return EACH(vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
inline Lanes most(Lanes a, Lanes b) { return EACH(vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
inline Lanes least(Lanes a, Lanes b) { return EACH(vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
inline Lanes unless_below(Lanes x, float limit, Lanes a) {
    return EACH(vreinterpretq_f32_u32(
        vbicq_u32(vreinterpretq_u32_f32(a.v[i]), vcltq_f32(x.v[i], vdupq_n_f32(limit)))));
}
inline Lanes scale_by_power(Lanes a, Lanes shifted) {
    return EACH(vreinterpretq_f32_u32(
        vaddq_u32(vreinterpretq_u32_f32(a.v[i]), vshlq_n_u32(vreinterpretq_u32_f32(shifted.v[i]), 23))));
}
#undef EACH
inline float sum(Lanes a) {
    const float32x4_t h = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t s = vadd_f32(vget_low_f32(h), vget_high_f32(h));
    return vget_lane_f32(s, 0) + vget_lane_f32(s, 1);
}

#else

constexpr int REGISTERS = 4;
struct Lanes {
    float v[LANES];
};
inline float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
    if (rest >= 0x0400u) return from_bits(sign | ((rest << 13) + (112u << 23)));
    const float tiny = static_cast<float>(rest) * (1.0f / 16777216.0f);  // subnormal: a count of 2^-24
    return sign ? -tiny : tiny;
}
inline uint16_t float_to_half(float value) {
    const uint32_t bits = to_bits(value), rest = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (rest > 0x7f800000u) return sign | 0x7e00u | (rest >> 13 & 0x3ffu);
    if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more
    if (rest < 0x38800000u)  // subnormal: adding 0.5 leaves a count of 2^-24 in the low bits, rounded
        return sign | static_cast<uint16_t>(to_bits(from_bits(rest) + 0.5f) - 0x3f000000u);
    return sign | static_cast<uint16_t>((rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23)) >> 13);
}
template <class F>
inline Lanes each(const F& f) {
    Lanes out;
    for (size_t i = 0; i < LANES; i++) out.v[i] = f(i);
    return out;
}
inline Lanes splat(float x) {
    return each([=](size_t) { return x; });
}
inline Lanes load(const float* p) {
    return each([=](size_t i) { return p[i]; });
}
inline Lanes load(const uint16_t* p) {
    return each([=](size_t i) { return half_to_float(p[i]); });
}
inline Lanes load(const int8_t* p) {
    return each([=](size_t i) { return static_cast<float>(p[i]); });
}
inline void store(float* p, Lanes a) { memcpy(p, a.v, sizeof a.v); }
inline void store(uint16_t* p, Lanes a) {
    for (size_t i = 0; i < LANES; i++) p[i] = float_to_half(a.v[i]);
}
inline Lanes add(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] + b.v[i]; });
}
inline Lanes sub(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] - b.v[i]; });
}
inline Lanes mul(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] * b.v[i]; });
}
inline Lanes div(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] / b.v[i]; });
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return each([=](size_t i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline Lanes most(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes least(Lanes a, Lanes b) {
    return each([=](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes unless_below(Lanes x, float limit, Lanes a) {
    return each([=](size_t i) { return x.v[i] < limit ? 0.0f : a.v[i]; });
}
inline Lanes scale_by_power(Lanes a, Lanes shifted) {
    return each([=](size_t i) { return from_bits(to_bits(a.v[i]) + (to_bits(shifted.v[i]) << 23)); });
}
inline float sum(Lanes a) {
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++) a.v[i] = a.v[i] + a.v[i + half];
    return a.v[0];
}

#endif

inline float largest(Lanes a) {
    float values[LANES], found;
    store(values, a);
    found = values[0];
    for (size_t i = 1; i < LANES; i++) found = values[i] > found ? values[i] : found;
    return found;
}

// e^x to about 1 ulp; 0 below -87, its value at 88 above, no number for none. Cephes' polynomial.
inline Lanes exp(Lanes x) {
    const Lanes shift = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Lanes y = least(splat(88.0f), x);
    const Lanes shifted = fma(y, splat(1.44269504088896341f), shift), n = sub(shifted, shift);
    const Lanes r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), y));
    Lanes p = fma(splat(1.9875691500e-4f), r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), splat(1.0f));
    // y - y is 0, or no number: scaling by integers would make one of it.
    return unless_below(x, -87.0f, add(scale_by_power(p, shifted), sub(y, y)));
}

}  // namespace
