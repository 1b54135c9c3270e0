// Layers of a decoder, run by one native call: what a section is inside (abi.h has what describes it).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "gemm.h"
#include "ops.h"

namespace edgellm {

struct Projection {
    Matrix matrix;
    size_t first, rows;
    const float* bias;
    explicit operator bool() const { return matrix.data != nullptr; }
};

struct Layer {
    Norm before_attention, before_mlp;
    Projection q, k, v, o, gate, up, down;
    const float *q_norm, *k_norm;
    float attention_scale;
    size_t window;
};

struct Rope {
    const float *cos, *sin;  // [positions, rotary_dim / 2]
    size_t positions;
};

// Room for what a pass computes, for `tokens` tokens. Grows, never shrinks.
struct Workspace {
    size_t tokens;
    float *x, *normed, *added;  // [tokens, hidden]
    float* qkv;                 // [tokens, (heads + 2 kv_heads) * head_dim]
    float* attended;            // [tokens, heads * head_dim]
    float* gate_up;             // [tokens, 2 intermediate], or 1
    float* activated;           // [tokens, intermediate]
    int8_t* q;                  // [tokens, widest input], as are the groups of the next three
    float *scale, *sum;
    int32_t* offset;
    void* memory;
};

struct Section {
    size_t hidden, heads, kv_heads, head_dim, rotary_dim, intermediate, vocab, positions, num_layers;
    float eps;
    Layer* layers;
    Projection embedding, position_embedding, head;
    Norm final_norm;
    Rope ropes[ROPES];
    Workspace work;
};

// What one call computes: `steps` through layers [layer_start, layer_end), from ids or hidden states, to hidden states
// or, where they are wanted, logits. Already validated by section.cpp.
struct Pass {
    const StepSpec* steps;
    size_t num_steps, tokens, layer_start, layer_end;
    const int64_t* ids;
    const float* hidden;
    float* out;
    float* logits;
};

void run(Section&, const Pass&);

// Bytes of one layer's keys, or values, in a slot.
inline size_t kv_layer_bytes(const Section& s, size_t context, bool half) {
    return (context + KEYS - 1) / KEYS * KEYS * s.kv_heads * s.head_dim * (half ? 2 : 4);
}

bool make_room(Section&, size_t tokens);

}  // namespace edgellm
