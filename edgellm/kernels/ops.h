// What a layer computes besides its products: norms, rotary positions, attention, activation functions, recurrent
// states. One table of functions an instruction set. All give the same bits, and a token's don't depend on what else is computed.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "exported.h"

namespace edgellm {

// One layer's keys and values in a slot, of one kv head, in an encoding:
//   keys    [kept / KEYS, head_dim, KEYS]: a register of the same dimension of 16 keys is read at once
//   values  [kept, head_dim]
// F16 and F32 are as they are called. In INT8, each position has a scale for its key and one for its value: with a = max |x|
// over the head, scale = a / 127 and q = round_half_even(x * (127 / a)). As gemm.h has it, scale and q are 0 for a < 2^-100,
// and the scale is NaN where a value isn't finite.
// Position p lies at p modulo `kept`, which is a multiple of RING, or of KEYS and beyond all positions.
struct KeysValues {
    void* keys;
    void* values;
    float *key_scales, *value_scales;  // [kept], of INT8
    size_t dim, kept;
    int encoding;
};

struct Norm {
    const float* weight;
    const float* bias;  // of a LayerNorm; null for an RMSNorm
    float eps;
};

// A head's part of q, k or v: x (+ bias), then an RMSNorm over the head if there is one (weight), then rotary positions on
// the first 2 * half dimensions (cos, sin: [half]), then times `scale`.
struct HeadJob {
    const float* bias;
    const float* norm;
    float eps, scale;
    const float* cos;
    const float* sin;
    size_t half, dim;
    bool interleaved;  // pairs that turn are neighbours, not one of each half
};

// Attention of some queries of a sequence over one kv head. Query i is at `position + i`, and its `heads` heads lie at
// q + i * q_stride, each `head_stride` after the one before; the results go to out + i * out_stride, one after the other. A
// query sees itself and what is before it, the last `window` of these with a window (0: none). Scores are bounded by
// soft_cap * tanh(score / soft_cap) unless it is 0. A head's sink is one more score, without a value.
struct AttentionJob {
    KeysValues kv;
    const float* q;
    float* out;
    size_t q_stride, head_stride, out_stride;
    size_t position, queries, heads, window;  // queries * heads is at most MOST_ROWS
    float soft_cap;
    const float* sinks;  // [heads], or null
};

// Attention of some queries of a sequence over latents, which are its keys' first `rank` dimensions, and its values: `latents`
// has them as values, and `ropes` the keys' other dimensions, as values of a kv head of its own. Query i is at
// `position + i`, and its `heads` heads lie at q + i * q_stride + h * head_stride; results [rank] go to
// out + i * out_stride + h * out_head_stride. A query sees itself and all that is before it.
struct LatentJob {
    KeysValues latents, ropes;
    const float* q;
    float* out;
    size_t q_stride, head_stride, out_stride, out_head_stride;
    size_t position, queries, heads;  // queries * heads is at most MOST_ROWS
};

// What a router gives for one token, and how `top_k` of `count` experts are chosen by it (families/feed_forwards.py says
// what all of this means). Of equals the first is chosen.
struct RouteJob {
    const float* products;  // [count]
    const float* bias;      // [count], or null
    const float* correction;
    size_t count, top_k, groups, top_groups;
    bool group_by_best, normalise;
    int scoring;
    float scale;
};

// A causal convolution of `n` channels over `tokens` rows, in place. A row is x + t * ldx; what goes in is
// (x + x_bias) * (times + times_bias), and what comes out has `bias` added, is multiplied by silu of itself if `silu`, or by
// (out_times + out_bias). All but x may be null; `times` and `out_times` are rows as those of x.
struct ConvJob {
    float* x;
    const float *x_bias, *times, *times_bias, *out_times, *out_bias;
    size_t ldx, tokens, n, kernel, channels;
    float* before;                // [kernel - 1, channels]: what went in before, the oldest first; brought up to date
    const float *weight, *bias;   // [kernel, channels]
    float* log;                   // the first `logged` rows of what goes in are kept there
    size_t ld_log, logged;
    bool silu;
};

// A delta rule's or Mamba-2's state of one head over `tokens` tokens, whose rows are `ld` apart: state, keys and queries
// [key_dim], and values [value_dim]; families/mixers.py has the formulas. Nothing comes out if `out` is null.
struct StateJob {
    float* state;  // [value_dim / LANE_COUNT, key_dim, LANE_COUNT]
    const float *q, *k, *v;
    const float *decay, *beta;  // of a delta rule
    const float* dt;            // of Mamba-2
    size_t ld, tokens, key_dim, value_dim;
    float rate, d;
    float* out;
    size_t ld_out;
};

struct Ops {
    // x[n] += added[n] + bias[n] (either may be null); out = norm(x)
    void (*add_and_norm)(float* x, const float* added, const float* bias, const Norm&, size_t n, float* out);
    // out = norm(x); out may be x
    void (*norm)(const float* x, const Norm&, size_t n, float* out);
    // x[n] += added[n] + bias[n]; bias may be null
    void (*add)(float* x, const float* added, const float* bias, size_t n);
    void (*head)(float* x, const HeadJob&);
    // Writes the key or value of a position; in fp16, values that are too large become the largest one.
    void (*store_key)(const KeysValues&, size_t position, const float* key);
    void (*store_value)(const KeysValues&, size_t position, const float* value, const float* bias);
    void (*attend)(const AttentionJob&);
    void (*attend_latent)(const LatentJob&);
    // x *= sigmoid(gate + bias); bias may be null
    void (*gate)(float* x, const float* gate, const float* bias, size_t n);
    // x *= scale
    void (*scale)(float* x, float scale, size_t n);
    // x *= scale, then cap * tanh(x / cap) unless cap is 0; n is any
    void (*bound)(float* x, float scale, float cap, size_t n);
    // Writes a token's experts, in ascending order, and their weights.
    void (*route)(const RouteJob&, uint32_t* chosen, float* weights);
    // x = fma(weight, added + bias, x); bias may be null
    void (*accumulate)(float* x, const float* added, const float* bias, float weight, size_t n);
    // By Activation. out = activation(gate + gate_bias) * (up + up_bias); biases may be null
    void (*gated[ACTIVATIONS])(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n,
                               float limit, float* out);
    // By Activation. out = activation(x + bias); bias may be null
    void (*plain[ACTIVATIONS])(const float* x, const float* bias, size_t n, float* out);
    void (*conv)(const ConvJob&);
    // x *= scale / sqrt(sum of x squared + 1e-6)
    void (*unit)(float* x, float scale, size_t n);
    // a = exp(-rate * softplus(a + dt_bias)), b = sigmoid(b); n is any
    void (*delta_gates)(float* a, float* b, const float* rate, const float* dt_bias, size_t n);
    // dt = softplus(dt + bias + dt_bias), within [least, most]; bias may be null, n is any
    void (*time_steps)(float* dt, const float* bias, const float* dt_bias, float least, float most, size_t n);
    void (*delta_rule)(const StateJob&);
    void (*mamba2)(const StateJob&);
};

extern const Ops BASE_OPS;
#ifdef EDGELLM_X86_64
extern const Ops AVX2_OPS, AVX512_OPS;
#endif

// Those that go with the Target in use.
const Ops& ops();

}  // namespace edgellm
