// The C ABI of single products: checks its arguments, then shares the rows among the pool's threads.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gemm.h"
#include "pool.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights are little-endian and are read in place"
#endif

namespace edgellm {
namespace {

constexpr uint64_t MOST = uint64_t{1} << 31;  // of rows, columns and tokens: products of two stay below 2^64

int check(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in) {
    if (encoding < INT4 || encoding >= ENCODINGS) return BAD_ENCODING;
    if (out == 0 || in == 0 || out >= MOST || in >= MOST) return BAD_SHAPE;
    if (is_packed(encoding) && in % block_columns(encoding) != 0) return BAD_SHAPE;
    const uint64_t stride = stride_bytes(encoding, in), strides = is_packed(encoding) ? (out + TILE - 1) / TILE : out;
    if (weight_bytes / stride != strides || weight_bytes % stride != 0) return BAD_LENGTH;
    return weights == nullptr ? BAD_POINTER : OK;
}

// Quantized activations, in one allocation.
struct Scratch {
    uint8_t* memory = nullptr;
    Activations a = {};

    Scratch(const float* x, uint64_t tokens, uint64_t in) {
        const uint64_t groups = tokens * (in / GROUP), q_bytes = tokens * in;
        if (tokens > (uint64_t{1} << 40) / in) return;  // a terabyte: leave nothing to overflow
        memory = static_cast<uint8_t*>(malloc(q_bytes + 12 * groups));
        if (memory == nullptr) return;
        float* scale = reinterpret_cast<float*>(memory + q_bytes);
        int32_t* offset = reinterpret_cast<int32_t*>(scale + 2 * groups);
        int8_t* q = reinterpret_cast<int8_t*>(memory);
        const Target& use = target();
        share(tokens, 1, [&](uint64_t start, uint64_t end) {
            const uint64_t g = start * (in / GROUP);
            use.quantize(x + start * in, end - start, in, q + start * in, scale + g, scale + groups + g, offset + g);
        });
        a = {x, q, scale, scale + groups, offset, tokens};
    }
    ~Scratch() { free(memory); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

}  // namespace

int edgellm_abi() { return ABI_VERSION; }

const char* edgellm_target() { return target().name; }

int edgellm_use_target(const char* name) { return use_target(name) ? OK : BAD_TARGET; }

int edgellm_linear(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in,
                          const float* x, uint64_t tokens, float* y, int integer) {
    if (const int status = check(weights, weight_bytes, encoding, out, in)) return status;
    if (tokens >= MOST) return BAD_SHAPE;
    if (tokens == 0) return OK;
    if (!is_at(x) || !is_at(y)) return BAD_POINTER;
    const Matrix w = {static_cast<const uint8_t*>(weights), out, in, encoding};
    const Target& use = target();
    if (integer && is_packed(encoding)) {
        const Scratch scratch(x, tokens, in);
        if (scratch.memory == nullptr) return NO_MEMORY;
        share(out, TILE, [&](uint64_t start, uint64_t end) { use.product(w, scratch.a, y, out, start, end); });
    } else {
        const Activations a = {x, nullptr, nullptr, nullptr, nullptr, tokens};
        share(out, TILE, [&](uint64_t start, uint64_t end) { use.product_exact(w, a, y, out, start, end); });
    }
    return OK;
}

int edgellm_quantize(const float* x, uint64_t tokens, uint64_t in, int8_t* q, float* scale, float* sum,
                            int32_t* offset) {
    if (in == 0 || in % GROUP != 0 || in >= MOST || tokens >= MOST) return BAD_SHAPE;
    if (tokens == 0) return OK;
    if (!is_at(x) || !is_at(q) || !is_at(scale) || !is_at(sum) || !is_at(offset)) return BAD_POINTER;
    target().quantize(x, tokens, in, q, scale, sum, offset);
    return OK;
}

int edgellm_dequantize(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in,
                              uint64_t row_start, uint64_t row_end, float* into, uint64_t into_elements) {
    if (const int status = check(weights, weight_bytes, encoding, out, in)) return status;
    if (row_start > row_end || row_end > out) return BAD_SHAPE;
    if (into_elements != (row_end - row_start) * in) return BAD_LENGTH;
    if (row_start == row_end) return OK;
    if (!is_at(into)) return BAD_POINTER;
    const Matrix w = {static_cast<const uint8_t*>(weights), out, in, encoding};
    const Target& use = target();
    share(row_end - row_start, TILE, [&](uint64_t start, uint64_t end) {
        use.dequantize(w, row_start + start, row_start + end, into + start * in);
    });
    return OK;
}

int edgellm_read(const void* data, uint64_t bytes, uint64_t* total) {
    if (bytes % 64 != 0) return BAD_LENGTH;
    if (data == nullptr || !is_at(total)) return BAD_POINTER;
    *total = target().read(static_cast<const uint8_t*>(data), bytes);
    return OK;
}

}  // namespace edgellm
