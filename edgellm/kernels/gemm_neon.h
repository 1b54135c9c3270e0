// What both instruction sets of aarch64 share. Included inside of an anonymous namespace.

constexpr size_t WIDTH = 4;
using F = float32x4_t;
using I = int32x4_t;

inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F v) { vst1q_f32(p, v); }
inline F zero() { return vdupq_n_f32(0); }
inline F spread(float v) { return vdupq_n_f32(v); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F to_float(I v) { return vcvtq_f32_s32(v); }
inline I words(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
inline F halves(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

template <int LOW, int COUNT>
inline I bits(I v) {
    const uint32x4_t u = vreinterpretq_u32_s32(v);
    if constexpr (LOW == 0) return vandq_s32(v, vdupq_n_s32((1 << COUNT) - 1));
    else return vandq_s32(vreinterpretq_s32_u32(vshrq_n_u32(u, LOW)), vdupq_n_s32((1 << COUNT) - 1));
}

template <int J>
inline I byte(I v) {
    if constexpr (J == 3) return vshrq_n_s32(v, 24);
    else return vshrq_n_s32(vshlq_n_s32(v, 24 - 8 * J), 24);
}

template <int E>
inline F widen(const uint8_t* p) {
    if constexpr (E == F32) return vreinterpretq_f32_u8(vld1q_u8(p));
    else if constexpr (E == F16) return halves(p);
    else return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

// ---- codes: all are signed bytes here, of the weights' own integers

inline I field(I v, size_t low, size_t count, size_t to) {
    uint8x16_t bytes = vreinterpretq_u8_s32(v);
    if (low < to) bytes = bytes << static_cast<unsigned char>(to - low);
    else if (low > to) bytes = bytes >> static_cast<unsigned char>(low - to);
    const bool alone = low >= to ? low + count == 8 && to == 0 : false;  // nothing is left to mask
    return vreinterpretq_s32_u8(alone ? bytes : vandq_u8(bytes, vdupq_n_u8(static_cast<uint8_t>(((1 << count) - 1) << to))));
}

inline I raised(I v, int by) {
    return vreinterpretq_s32_s8(vaddq_s8(vreinterpretq_s8_s32(v), vdupq_n_s8(static_cast<int8_t>(by))));
}

template <int BY>
inline I looked_up(I codes, const int8_t (&table)[16]) {
    static_assert(BY == 0, "values are signed");
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(codes)));
}

inline I widened8(const uint8_t* p) {
    uint32_t word;
    memcpy(&word, p, 4);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
}

inline I widened16(const uint8_t* p) { return vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)))); }

template <int E>
constexpr int LIFT = 0;

template <Kind>
constexpr int READY_LIFT = 0;

constexpr size_t FEW = 4;

// Both numbers of an offset, added to four sums.
inline I with_offset(I sums, const int32_t* offset) {
    return vpadalq_s16(sums, vreinterpretq_s16_s32(vld1q_dup_s32(offset)));
}

inline void quantize(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset) {
    for (size_t at = 0, g = 0; at < tokens * in; at += GROUP, g++) {
        uint32x4_t most = vdupq_n_u32(0);
        for (size_t i = 0; i < 8; i++)
            most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(load(x + at + 4 * i)), vdupq_n_u32(0x7fffffff)));
        const uint32_t largest_bits = vmaxvq_u32(most);
        if (largest_bits < LEAST_BITS || largest_bits >= INFINITY_BITS) {
            scalar_quantize(x + at, 1, GROUP, q + at, scale + g, sum + g, offset + g);
            continue;
        }
        const float largest = from_bits(largest_bits);
        const F inverse = spread(127.0f / largest);
        I total[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
        for (size_t i = 0; i < 4; i++) {
            const I a = vcvtnq_s32_f32(mul(load(x + at + 8 * i), inverse));
            const I b = vcvtnq_s32_f32(mul(load(x + at + 8 * i + 4), inverse));
            vst1_s8(q + at + 8 * i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
            total[i / 2] = vaddq_s32(total[i / 2], vaddq_s32(a, b));
        }
        const int first = vaddvq_s32(total[0]), second = vaddvq_s32(total[1]);
        scale[g] = largest / 127.0f;
        sum[g] = scale[g] * static_cast<float>(first + second);
        offset[g] = both_halves(-8 * first, -8 * second);
    }
}
