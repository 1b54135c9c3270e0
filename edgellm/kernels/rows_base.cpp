// What every processor of the architecture can do: NEON (ARMv8.0) on aarch64, plain vectors of 4 floats elsewhere.
#include <string.h>

#include "rows.h"

#if defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define EDGELLM_NEON
#include <arm_neon.h>
#endif

namespace edgellm {
namespace {

constexpr size_t WIDTH = 4;

template <int E>
struct Scales {};  // decode reads them itself

template <int E>
inline void prepare(const uint8_t*, size_t, Scales<E>&) {}

#ifdef EDGELLM_NEON

using Vec = float32x4_t;
constexpr size_t CHAINS = 2;
constexpr size_t rows_at_once(size_t tokens) { return tokens == 1 ? 4 : tokens <= 4 ? 2 : 1; }

inline Vec zero() { return vdupq_n_f32(0); }
inline Vec load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Vec v) { vst1q_f32(p, v); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline float sum(Vec v) { return vaddvq_f32(v); }

inline Vec halves(const uint8_t* p, size_t bytes) {  // up to 4 half floats, the rest zero
    uint64_t bits = 0;
    memcpy(&bits, p, bytes);
    return vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(bits)));
}

template <int E>
inline void decode(const uint8_t* p, const Scales<E>&, size_t, Vec (&w)[8]) {
    if constexpr (E == INT4) {
        // 0 … 15 as the upper halves of floats: two table lookups and zips cost less than widening and converting.
        static const uint8_t UPPER[16] = {0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,
                                          0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41};
        static const uint8_t LOWER[16] = {0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0,
                                          0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70};
        const uint8x16_t upper = vld1q_u8(UPPER), lower = vld1q_u8(LOWER), bytes = vld1q_u8(p + 4);
        const uint16x8_t nothing = vdupq_n_u16(0);
        const Vec dm = halves(p, 4), m = vdupq_laneq_f32(dm, 1);
        const uint8x16_t nibbles[2] = {vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8(bytes, 4)};
        for (int i = 0; i < 2; i++) {
            const uint8x16_t u = vqtbl1q_u8(upper, nibbles[i]), l = vqtbl1q_u8(lower, nibbles[i]);
            const uint16x8_t a = vreinterpretq_u16_u8(vzip1q_u8(l, u)), b = vreinterpretq_u16_u8(vzip2q_u8(l, u));
            w[4 * i + 0] = vfmaq_laneq_f32(m, vreinterpretq_f32_u16(vzip1q_u16(nothing, a)), dm, 0);
            w[4 * i + 1] = vfmaq_laneq_f32(m, vreinterpretq_f32_u16(vzip2q_u16(nothing, a)), dm, 0);
            w[4 * i + 2] = vfmaq_laneq_f32(m, vreinterpretq_f32_u16(vzip1q_u16(nothing, b)), dm, 0);
            w[4 * i + 3] = vfmaq_laneq_f32(m, vreinterpretq_f32_u16(vzip2q_u16(nothing, b)), dm, 0);
        }
    } else if constexpr (E == INT8) {
        const Vec d = vdupq_laneq_f32(halves(p, 2), 0);
        for (int i = 0; i < 4; i++) {
            const int16x8_t q = vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(p + 2 + 8 * i)));
            w[2 * i] = vmulq_f32(d, vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))));
            w[2 * i + 1] = vmulq_f32(d, vcvtq_f32_s32(vmovl_high_s16(q)));
        }
    } else {
        for (int i = 0; i < 8; i++) {
            if constexpr (E == F16) {
                w[i] = halves(p + 8 * i, 8);
            } else {
                w[i] = vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p + 8 * i)), 16));
            }
        }
    }
}

#else

using Vec = float __attribute__((vector_size(16)));
constexpr size_t CHAINS = 2;
constexpr size_t rows_at_once(size_t tokens) { return tokens == 1 ? 4 : 1; }

inline Vec zero() { return Vec{}; }
inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

inline Vec load(const float* p) {
    Vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline uint16_t bits16(const uint8_t* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline float half(const uint8_t* p) {
    const uint32_t bits = bits16(p), sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // infinity, NaN
    if (rest >= 0x0400u) return from_bits(sign | ((rest << 13) + (112u << 23)));
    const float tiny = static_cast<float>(rest) * (1.0f / 16777216.0f);  // subnormal: a count of 2^-24
    return sign ? -tiny : tiny;
}

template <int E>
inline void decode(const uint8_t* p, const Scales<E>&, size_t, Vec (&w)[8]) {
    float values[GROUP];
    if constexpr (E == INT4) {
        const float d = half(p), m = half(p + 2);
        for (size_t i = 0; i < 16; i++) values[i] = d * static_cast<float>(p[4 + i] & 15) + m;
        for (size_t i = 0; i < 16; i++) values[16 + i] = d * static_cast<float>(p[4 + i] >> 4) + m;
    } else if constexpr (E == INT8) {
        const float d = half(p);
        for (size_t i = 0; i < GROUP; i++) values[i] = d * static_cast<float>(static_cast<int8_t>(p[2 + i]));
    } else if constexpr (E == F16) {
        for (size_t i = 0; i < GROUP; i++) values[i] = half(p + 2 * i);
    } else {
        for (size_t i = 0; i < GROUP; i++) values[i] = from_bits(static_cast<uint32_t>(bits16(p + 2 * i)) << 16);
    }
    for (size_t i = 0; i < 8; i++) w[i] = load(values + 4 * i);
}

#endif

#include "rows_impl.h"

}  // namespace

#ifdef EDGELLM_NEON
const Target BASE_TARGET = {"neon", linear, dequantize};
#else
const Target BASE_TARGET = {"portable", linear, dequantize};
#endif

}  // namespace edgellm
