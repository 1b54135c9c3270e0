// What a layer computes besides its products: norms, rotary positions, attention, activation functions. One table of
// functions an instruction set. All give the same bits, and a token's don't depend on what else is computed.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "exported.h"

namespace edgellm {

// One layer's keys and values in a slot, of one kv head, as fp16 or float32 (half says which):
//   keys    [context / KEYS, head_dim, KEYS]: a register of the same dimension of 16 keys is read at once
//   values  [context, head_dim]
// with the context rounded up to a multiple of KEYS.
struct KeysValues {
    void* keys;
    void* values;
    size_t dim;
    bool half;
};

struct Norm {
    const float* weight;
    const float* bias;  // of a LayerNorm; null for an RMSNorm
    float eps;
};

// A head's part of q or k: x (+ bias), then an RMSNorm over the head if there is one (weight), then rotary positions on
// the first 2 * half dimensions (cos, sin: [half]), then times `scale`.
struct HeadJob {
    const float* bias;
    const float* norm;
    float eps, scale;
    const float* cos;
    const float* sin;
    size_t half, dim;
};

// Attention of some queries of a sequence over one kv head. Query i is at `position + i`, and its `heads` heads lie one
// after the other at q + i * q_stride; the results go to out + i * out_stride. A query sees itself and what is before it,
// the last `window` of these with a window (0: none).
struct AttentionJob {
    KeysValues kv;
    const float* q;
    float* out;
    size_t q_stride, out_stride;
    size_t position, queries, heads, window;  // queries * heads is at most MOST_ROWS
};

struct Ops {
    // x[n] += added[n] + bias[n] (either may be null); out = norm(x)
    void (*add_and_norm)(float* x, const float* added, const float* bias, const Norm&, size_t n, float* out);
    // x[n] += added[n] + bias[n]
    void (*add)(float* x, const float* added, const float* bias, size_t n);
    void (*head)(float* x, const HeadJob&);
    // Writes the key or value of a position; values too large for fp16 become the largest fp16.
    void (*store_key)(const KeysValues&, size_t position, const float* key);
    void (*store_value)(const KeysValues&, size_t position, const float* value, const float* bias);
    void (*attend)(const AttentionJob&);
    // out = silu(gate + gate_bias) * (up + up_bias); biases may be null
    void (*silu_gated)(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n,
                       float* out);
    // out = gelu(x + bias), by tanh
    void (*gelu)(const float* x, const float* bias, size_t n, float* out);
};

extern const Ops BASE_OPS;
#ifdef EDGELLM_X86_64
extern const Ops AVX2_OPS, AVX512_OPS;
#endif

// Those that go with the Target in use.
const Ops& ops();

}  // namespace edgellm
