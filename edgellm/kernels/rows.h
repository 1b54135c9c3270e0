// What the C ABI (libedgellm.cpp) and the instruction sets (rows_*.cpp) agree on.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace edgellm {

constexpr size_t GROUP = 32;  // weights in a block of int4 or int8, and in a step of the inner loop

enum Encoding : int { INT4 = 0, INT8 = 1, BF16 = 2, F16 = 3 };

constexpr size_t group_bytes(int encoding) { return encoding == INT4 ? 20 : encoding == INT8 ? 34 : 2 * GROUP; }

// y[t, n] = sum over k of x[t, k] * w[n, k], all arrays dense and row-major.
struct Linear {
    const uint8_t* weights;
    size_t row_bytes;
    size_t in;
    size_t out;
    const float* x;  // [tokens, in]
    size_t tokens;
    float* y;  // [tokens, out]
};

struct Target {
    const char* name;
    void (*linear)(int encoding, const Linear& job, size_t row_start, size_t row_end);
    void (*dequantize)(int encoding, const uint8_t* row, size_t in, float* into);
};

extern const Target BASE_TARGET;
extern const Target AVX2_TARGET;    // only on x86-64
extern const Target AVX512_TARGET;  // only on x86-64

}  // namespace edgellm
