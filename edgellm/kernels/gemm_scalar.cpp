// The arithmetic of gemm.h in plain loops: what every other instruction set has to equal, and what any processor can do.
#include "gemm_scalar.h"

#include <string.h>

namespace edgellm {
namespace {

template <int E>
void product_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t groups = w.in / GROUP;
    for (size_t n = row_start; n < row_end; n++) {
        const uint8_t* tile = w.data + n / TILE * groups * group_bytes(E);
        const size_t r = n % TILE;
        for (size_t t = 0; t < a.tokens; t++) {
            float total = 0;
            for (size_t g = 0; g < groups; g++) {
                const uint8_t* group = tile + g * group_bytes(E);
                const int8_t* q = a.q + t * w.in + g * GROUP;
                int dot = 0;
                for (size_t k = 0; k < GROUP; k++) dot += weight_q<E>(group, r, k) * q[k];
                const uint8_t* scales = group + q_bytes(E) + 2 * r;
                if (E == INT4) total = __builtin_fmaf(half(scales + 2 * TILE), a.sum[t * groups + g], total);
                total = __builtin_fmaf(half(scales), a.scale[t * groups + g] * static_cast<float>(dot), total);
            }
            y[t * ldy + n] = total;
        }
    }
}

template <int E>
void exact_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t groups = w.in / GROUP;
    float row[GROUP];
    for (size_t n = row_start; n < row_end; n++) {
        for (size_t t = 0; t < a.tokens; t++) y[t * ldy + n] = 0;
        for (size_t g = 0; g < groups; g++) {
            dequantize_group<E>(w.data + (n / TILE * groups + g) * group_bytes(E), n % TILE, row);
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

void product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    switch (w.encoding) {
        case INT4: return product_of<INT4>(w, a, y, ldy, row_start, row_end);
        case INT4S: return product_of<INT4S>(w, a, y, ldy, row_start, row_end);
        case INT8: return product_of<INT8>(w, a, y, ldy, row_start, row_end);
        case BF16: return plain_of<BF16>(w, a, y, ldy, row_start, row_end);
        case F16: return plain_of<F16>(w, a, y, ldy, row_start, row_end);
        case F32: return plain_of<F32>(w, a, y, ldy, row_start, row_end);
    }
}

void product_exact(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    switch (w.encoding) {
        case INT4: return exact_of<INT4>(w, a, y, ldy, row_start, row_end);
        case INT4S: return exact_of<INT4S>(w, a, y, ldy, row_start, row_end);
        case INT8: return exact_of<INT8>(w, a, y, ldy, row_start, row_end);
        default: return product(w, a, y, ldy, row_start, row_end);
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
        int total = 0;
        for (size_t i = 0; i < GROUP; i++) {
            const float rounded = (x[at + i] * inverse + ROUNDER) - ROUNDER;
            q[at + i] = static_cast<int8_t>(rounded);
            total += static_cast<int>(rounded);
        }
        scale[g] = a / 127.0f;
        sum[g] = scale[g] * static_cast<float>(total);
        offset[g] = -128 * total;
    }
}

void scalar_dequantize(const Matrix& w, size_t row_start, size_t row_end, float* into) {
    const size_t stride = stride_bytes(w.encoding, w.in);
    for (size_t n = row_start; n < row_end; n++, into += w.in) {
        if (is_packed(w.encoding)) {
            for (size_t g = 0; g < w.in / GROUP; g++) {
                const uint8_t* group = w.data + n / TILE * stride + g * group_bytes(w.encoding);
                if (w.encoding == INT4) dequantize_group<INT4>(group, n % TILE, into + g * GROUP);
                if (w.encoding == INT4S) dequantize_group<INT4S>(group, n % TILE, into + g * GROUP);
                if (w.encoding == INT8) dequantize_group<INT8>(group, n % TILE, into + g * GROUP);
            }
            continue;
        }
        const uint8_t* row = w.data + n * stride;
        for (size_t k = 0; k < w.in; k++)
            into[k] = w.encoding == BF16 ? plain<BF16>(row, k) : w.encoding == F16 ? plain<F16>(row, k) : plain<F32>(row, k);
    }
}

const Target SCALAR_TARGET = {"scalar", scalar_quantize, product, product_exact, scalar_dequantize, read};

}  // namespace edgellm
