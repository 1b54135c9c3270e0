// Compares every instruction set of this processor with the scalar one, bit for bit; run natively, under an emulator, and
// with sanitizers. Prints a line for each, or the first difference.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

#include "gemm.h"

using namespace edgellm;

static uint32_t state = 1;
static uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
static size_t below(size_t n) { return next() % n; }

// Of exactly as many bytes as asked for, and at an odd address if so wanted, so that a sanitizer sees a byte too many.
struct Buffer {
    explicit Buffer(size_t bytes, size_t shift = 0) : memory(new uint8_t[bytes + shift]), data(memory.get() + shift) {}
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* data;
};

static float value(int kind) {
    const float ordinary = static_cast<float>(next()) / (1 << 23) - 1;
    switch (kind) {
        case 0: return ordinary;
        case 1: return 0;
        case 2: return below(32) ? ordinary : 3e38f;          // one that is huge
        case 3: return ordinary * 1e-38f;                     // subnormal
        case 4: return below(2) ? 127.0f : -127.0f;           // the ends of int8
        case 5: return below(3) ? 1.0f / 3 * (below(3) - 1.0f) : -0.0f;
        case 6: return static_cast<float>(below(255)) - 127 + 0.5f * below(2);  // halves, to be rounded to even
        default: return below(200) ? ordinary : below(2) ? __builtin_inff() : __builtin_nanf("");
    }
}

static void fill(const Matrix& w, uint8_t* data, size_t bytes, int kind) {
    for (size_t i = 0; i < bytes; i++) data[i] = kind == 1 ? 0x80 : kind == 2 ? 0x7f : kind == 3 ? 0xff : next();
    if (w.encoding == F32) {
        for (size_t i = 0; i + 4 <= bytes; i += 4) {
            const float v = value(kind == 3 ? 3 : 0);
            memcpy(data + i, &v, 4);
        }
        return;
    }
    if (w.encoding == MXFP4) return;
    // Halves are finite: of scales, also subnormal and negative ones; bf16 is near 1.
    const bool packed = is_packed(w.encoding);
    const size_t block = packed ? group_bytes(w.encoding) * block_groups(w.encoding) : 2;
    const size_t first = packed ? scales_at_byte(w.encoding) + d_at_byte(w.encoding) : 0;
    for (size_t at = 0; at < bytes; at += block)
        for (size_t i = first + 1; i < block; i += 2)
            data[at + i] = w.encoding == BF16 ? (next() & 0x80) | 0x3f : (next() & 0x80) | (next() % 0x50);
}

static bool differ(const float* a, const float* b, size_t n, size_t* where) {
    for (*where = 0; *where < n; ++*where) {
        if (a[*where] != a[*where] && b[*where] != b[*where]) continue;  // not a number is not one, whatever its bits
        if (memcmp(a + *where, b + *where, 4)) return true;
    }
    return false;
}

static int failed(const Target& t, const char* what, const Matrix& w, size_t tokens, int kind, size_t at) {
    printf("%s: %s differs from scalar: encoding %d, weight [%zu, %zu], %zu tokens, values %d, at %zu\n", t.name, what,
           w.encoding, w.out, w.in, tokens, kind, at);
    return 1;
}

static int compare(const Target& t, int encoding, size_t out, size_t in, size_t tokens, int kind, int weights) {
    const Target& s = SCALAR_TARGET;
    size_t at;
    Matrix w = {nullptr, out, in, encoding};
    const size_t bytes = matrix_bytes(encoding, out, in);
    Buffer data(bytes, below(2));
    fill(w, data.data, bytes, weights);
    w.data = data.data;

    const size_t groups = in / GROUP;
    Buffer x_bytes(tokens * in * 4), q1(tokens * in), q2(tokens * in), s1(12 * tokens * groups), s2(12 * tokens * groups);
    float* x = reinterpret_cast<float*>(x_bytes.data);
    for (size_t i = 0; i < tokens * in; i++) x[i] = value(kind);
    float *scale1 = reinterpret_cast<float*>(s1.data), *scale2 = reinterpret_cast<float*>(s2.data);
    const size_t n = tokens * groups;
    int32_t *offset1 = reinterpret_cast<int32_t*>(scale1 + 2 * n), *offset2 = reinterpret_cast<int32_t*>(scale2 + 2 * n);
    Activations a = {x, nullptr, nullptr, nullptr, nullptr, tokens};
    if (is_packed(encoding)) {
        s.quantize(x, tokens, in, reinterpret_cast<int8_t*>(q1.data), scale1, scale1 + n, offset1);
        t.quantize(x, tokens, in, reinterpret_cast<int8_t*>(q2.data), scale2, scale2 + n, offset2);
        if (memcmp(q1.data, q2.data, tokens * in) || memcmp(offset1, offset2, 4 * n) ||
            differ(scale1, scale2, 2 * n, &at))
            return failed(t, "quantize", w, tokens, kind, 0);
        a = {x, reinterpret_cast<int8_t*>(q1.data), scale1, scale1 + n, offset1, tokens};
    }

    // Some of the rows, between others that must stay as they are.
    const size_t row_start = below((out + TILE - 1) / TILE) * TILE, row_end = row_start + 1 + below(out - row_start);
    const size_t ldy = out + below(3);
    std::vector<float> y1(tokens * ldy, 7), y2(tokens * ldy, 7);
    s.product(w, a, y1.data(), ldy, row_start, row_end);
    t.product(w, a, y2.data(), ldy, row_start, row_end);
    if (differ(y1.data(), y2.data(), y1.size(), &at)) return failed(t, "product", w, tokens, kind, at);
    s.product_exact(w, a, y1.data(), ldy, 0, out);
    t.product_exact(w, a, y2.data(), ldy, 0, out);
    if (differ(y1.data(), y2.data(), y1.size(), &at)) return failed(t, "product_exact", w, tokens, kind, at);

    // A token and a tile alone are what they are among others.
    const size_t token = below(tokens), tile = below((out + TILE - 1) / TILE) * TILE, end = tile + TILE < out ? tile + TILE : out;
    Activations one = {x + token * in, a.q, nullptr, nullptr, nullptr, 1};
    if (a.q) one = {one.x, a.q + token * in, a.scale + token * groups, a.sum + token * groups, a.offset + token * groups, 1};
    std::vector<float> alone(out, 7);
    t.product(w, a, y2.data(), ldy, 0, out);
    t.product(w, one, alone.data(), out, tile, end);
    if (differ(&y2[token * ldy + tile], &alone[tile], end - tile, &at)) return failed(t, "alone", w, tokens, kind, at);

    std::vector<float> d1((row_end - row_start) * in), d2(d1.size());
    const size_t odd_start = row_start + below(row_end - row_start);
    s.dequantize(w, odd_start, row_end, d1.data());
    t.dequantize(w, odd_start, row_end, d2.data());
    if (differ(d1.data(), d2.data(), d1.size(), &at)) return failed(t, "dequantize", w, tokens, kind, at);
    return 0;
}

int main(int count, char** arguments) {
    const size_t trials = count > 1 ? strtoul(arguments[1], nullptr, 10) : 100;
    for (const char* name : {"avx512vnni", "avx2", "dotprod", "neon", "scalar"}) {
        if (!use_target(name)) continue;
        state = 1;
        for (size_t trial = 0; trial < trials; trial++) {
            const int encoding = trial % ENCODINGS;
            const size_t blocks = 1 + below(trial % 7 ? 5 : is_super(encoding) ? 11 : 70);
            const size_t in = is_packed(encoding) ? block_columns(encoding) * blocks : 1 + below(100);
            const size_t tokens = trial % 11 ? 1 + below(17) : 18 + below(40);
            if (compare(target(), encoding, 1 + below(70), in, tokens, below(8), below(6))) return 1;
        }
        // More columns than activations are copied of at a time, and more tokens than pass over the same weights.
        for (int encoding = 0; encoding < ENCODINGS; encoding++)
            for (const size_t tokens : {8, 66})
                if (is_packed(encoding) && compare(target(), encoding, 21, GROUP * 80, tokens, 0, 0)) return 1;
        printf("%s: %zu shapes equal\n", name, trials);
    }
}
