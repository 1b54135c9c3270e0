// The arithmetic of gemm.h in plain loops: what every other instruction set has to equal, and what any processor can do.
#include "gemm_scalar.h"

#include <string.h>

namespace edgellm {
namespace {

template <int E>
void product_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t groups = w.in / GROUP, stride = stride_bytes(E, w.in);
    for (size_t n = row_start; n < row_end; n++) {
        const uint8_t* tile = w.data + n / TILE * stride;
        const size_t r = n % TILE;
        for (size_t t = 0; t < a.tokens; t++) {
            float total = 0;
            for (size_t g = 0; g < groups; g++) {
                const size_t i = g % block_groups(E);
                const uint8_t *block = tile + (g - i) * group_bytes(E), *group = block + i * q_bytes(E);
                const RowScales of = row_scales<E>(block, i, r);
                const int8_t* q = a.q + t * w.in + g * GROUP;
                const float scale = a.scale[t * groups + g];
                const int32_t offset = a.offset[t * groups + g];
                int dot[2] = {};
                for (size_t k = 0; k < GROUP; k++) dot[k / 16] += weight_q<E>(group, r, k) * q[k];
                if (E == Q2_K) {
                    const int offsets = of.z[0] * first_half(offset) + of.z[1] * second_half(offset);
                    total = __builtin_fmaf(of.m, scale / 8 * static_cast<float>(offsets), total);
                } else if (has_minima(E)) {
                    total = __builtin_fmaf(of.minimum[0], a.sum[t * groups + g], total);
                }
                const int all = has_halves(E) ? of.s[0] * dot[0] + of.s[1] * dot[1] : dot[0] + dot[1];
                total = __builtin_fmaf(has_halves(E) ? of.d : of.factor[0], scale * static_cast<float>(all), total);
            }
            y[t * ldy + n] = total;
        }
    }
}

template <int E>
void exact_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t groups = w.in / GROUP, stride = stride_bytes(E, w.in);
    float row[GROUP];
    for (size_t n = row_start; n < row_end; n++) {
        for (size_t t = 0; t < a.tokens; t++) y[t * ldy + n] = 0;
        for (size_t g = 0; g < groups; g++) {
            const size_t i = g % block_groups(E);
            dequantize_group<E>(w.data + n / TILE * stride + (g - i) * group_bytes(E), i, n % TILE, row);
            for (size_t t = 0; t < a.tokens; t++) {
                const float* x = a.x + t * w.in + g * GROUP;
                float chain[4] = {};
                for (size_t k = 0; k < GROUP; k++) chain[k % 4] = __builtin_fmaf(row[k], x[k], chain[k % 4]);
                y[t * ldy + n] += (chain[0] + chain[1]) + (chain[2] + chain[3]);
            }
        }
    }
}

template <int E>
void plain_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    for (size_t n = row_start; n < row_end; n++) {
        const uint8_t* row = w.data + n * stride_bytes(E, w.in);
        for (size_t t = 0; t < a.tokens; t++) {
            const float* x = a.x + t * w.in;
            float chain[16] = {};
            const size_t filled = (w.in + 15) / 16 * 16;
            for (size_t k = 0; k < filled; k++) {
                const bool there = k < w.in;
                chain[k % 16] = __builtin_fmaf(there ? plain<E>(row, k) : 0, there ? x[k] : 0, chain[k % 16]);
            }
            for (size_t half_of = 8; half_of > 0; half_of /= 2)
                for (size_t i = 0; i < half_of; i++) chain[i] += chain[i + half_of];
            y[t * ldy + n] = chain[0];
        }
    }
}

uint64_t read(const uint8_t* data, size_t bytes) {
    uint64_t word, sum = 0;
    for (size_t at = 0; at < bytes; at += 8) {
        memcpy(&word, data + at, 8);
        sum += word;
    }
    return sum;
}

}  // namespace

void scalar_product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const auto packed = [&](auto code) { product_of<code.value>(w, a, y, ldy, row_start, row_end); };
    if (with_packed(w.encoding, packed)) return;
    if (w.encoding == BF16) return plain_of<BF16>(w, a, y, ldy, row_start, row_end);
    if (w.encoding == F16) return plain_of<F16>(w, a, y, ldy, row_start, row_end);
    plain_of<F32>(w, a, y, ldy, row_start, row_end);
}

void scalar_product_exact(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const auto packed = [&](auto code) { exact_of<code.value>(w, a, y, ldy, row_start, row_end); };
    if (!with_packed(w.encoding, packed)) scalar_product(w, a, y, ldy, row_start, row_end);
}

void scalar_quantize(const float* x, size_t tokens, size_t in, int8_t* q, float* scale, float* sum, int32_t* offset) {
    for (size_t at = 0; at < tokens * in; at += GROUP) {
        uint32_t most = 0;  // of |x| as bits, which grow with it, and are largest for what isn't a number
        for (size_t i = 0; i < GROUP; i++) {
            uint32_t bits;
            memcpy(&bits, x + at + i, 4);
            bits &= 0x7fffffffu;
            if (bits > most) most = bits;
        }
        const size_t g = at / GROUP;
        if (most < LEAST_BITS || most >= INFINITY_BITS) {
            memset(q + at, 0, GROUP);
            scale[g] = sum[g] = most < LEAST_BITS ? 0.0f : __builtin_nanf("");
            offset[g] = 0;
            continue;
        }
        const float a = from_bits(most), inverse = 127.0f / a;
        int total[2] = {};
        for (size_t i = 0; i < GROUP; i++) {
            const float rounded = (x[at + i] * inverse + ROUNDER) - ROUNDER;
            q[at + i] = static_cast<int8_t>(rounded);
            total[i / 16] += static_cast<int>(rounded);
        }
        scale[g] = a / 127.0f;
        sum[g] = scale[g] * static_cast<float>(total[0] + total[1]);
        offset[g] = both_halves(-8 * total[0], -8 * total[1]);
    }
}

void scalar_dequantize(const Matrix& w, size_t row_start, size_t row_end, float* into) {
    const size_t stride = stride_bytes(w.encoding, w.in);
    for (size_t n = row_start; n < row_end; n++, into += w.in) {
        const uint8_t* row = w.data + (is_packed(w.encoding) ? n / TILE : n) * stride;
        const auto packed = [&](auto code) {
            constexpr int E = code.value;
            for (size_t g = 0; g < w.in / GROUP; g++) {
                const size_t i = g % block_groups(E);
                dequantize_group<E>(row + (g - i) * group_bytes(E), i, n % TILE, into + g * GROUP);
            }
        };
        if (with_packed(w.encoding, packed)) continue;
        for (size_t k = 0; k < w.in; k++)
            into[k] = w.encoding == BF16 ? plain<BF16>(row, k) : w.encoding == F16 ? plain<F16>(row, k) : plain<F32>(row, k);
    }
}

const Target SCALAR_TARGET = {"scalar", scalar_quantize, scalar_product, scalar_product_exact, scalar_dequantize, read};

}  // namespace edgellm
