// Layers of a decoder, run by one native call: what a section is inside (abi.h has what describes it).
//
// A slot holds what each layer of the section remembers of one sequence, one after the other: attention its keys and
// values (ops.h), recurrent mixers their state.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "gemm.h"
#include "ops.h"

namespace edgellm {

struct Projection {
    Matrix matrix;  // of expert 0
    size_t first, rows;
    const float* bias;
    size_t experts, expert_bytes;  // 0 experts: one matrix
    explicit operator bool() const { return matrix.data != nullptr; }
};

struct Attention {
    size_t heads, kv_heads, dim, rotary_dim, rope, window;
    size_t source, received, sent;  // abi.h
    bool interleaved, gated, shared;
    float scale, soft_cap;
    Projection q, k, v, o;
    const float *q_norm, *k_norm, *v_norm, *sinks;
    bool q_norm_whole, k_norm_whole;  // over all heads at once
    const float* query_scales;        // [num_scales], or null: of positions from n * scale_every on
    size_t num_scales, scale_every;
    size_t q_rows() const { return heads * dim * (gated ? 2 : 1); }
    size_t kv_rows() const { return kv_heads * dim; }
    size_t qkv_rows() const { return q_rows() + (source ? 0 : 2 * kv_rows()); }
    // Tokens that a slot keeps of a window: all of a call's are stored before another layer sees them.
    size_t kept_window() const { return shared && window ? window + MOST_TOKENS - RING : window; }
};

// Attention whose keys and values are made from one latent a token, which all heads share. In a slot it has the latents
// [kept, rank] and the parts of keys that turn [kept, rope_dim]; in INT8 each with a scale a token behind it, as ops.h has
// it for values.
struct Latent {
    size_t heads, nope_dim, rope_dim, value_dim, rank, rope;
    bool interleaved;
    float scale, eps;
    Projection q_a, q, kv_a, k_b, v_b, o;  // without a q_a, q takes what goes into the layer
    const float *q_norm, *kv_norm;
    size_t q_rows() const { return heads * (nope_dim + rope_dim); }
    size_t kept_dim() const { return rank + rope_dim; }
    size_t first_rows() const { return (q_a ? q_a.rows : q_rows()) + kept_dim(); }
};

// A recurrent mixer. In a slot it has
//   header      StateHeader, in STATE_HEADER_BYTES
//   now         the last kernel - 1 tokens of what goes into its convolution [kernel - 1, channels], then its state: of each
//               value head [value_dim / LANE_COUNT, key_dim, LANE_COUNT]
//   checkpoint  the same, as it was at an earlier position
//   log         what came in from the checkpoint on, of up to LOG_TOKENS tokens: a row of the convolution's [channels], then
//               the gates [value_heads], of a delta rule two of them
//   kept        a state as it was once, which the library leaves to its caller
// all in float32. A step may begin where the state is now, at position 0, or from the checkpoint on as far as the log
// reaches: then the state is computed again from there. A step that the log has no room for begins with a checkpoint. So a
// step can always come again, and what a slot has taken in of drafts can be taken back.
struct Recurrent {
    int kind;  // of Mixer
    size_t channels, kernel, key_heads, value_heads, key_dim, value_dim, norm_groups;
    bool interleaved, tiled, gate_first;
    float least_dt, most_dt;
    Projection in, z, a, b, out;
    const float *conv, *conv_bias, *rate, *dt_bias, *d, *norm;

    size_t inner() const { return kind == SHORT_CONV ? channels : value_heads * value_dim; }
    size_t head_state() const { return key_dim * value_dim; }
    size_t conv_floats() const { return (kernel - 1) * channels; }
    size_t now_floats() const { return conv_floats() + value_heads * head_state(); }
    size_t gates() const { return kind == DELTA_RULE ? 2 * value_heads : value_heads; }
    size_t log_floats() const { return channels + gates(); }
    size_t state_bytes() const {
        const size_t floats = 3 * now_floats() + LOG_TOKENS * log_floats();
        return (STATE_HEADER_BYTES + floats * sizeof(float) + 63) / 64 * 64;
    }
    // Floats of a token behind the first products.
    size_t rows() const { return in.rows + z.rows + a.rows + b.rows; }
};

// Where a recurrent mixer stands: its state is that behind `position` tokens, its checkpoint that behind `checkpoint`, and
// the log has the `logged` tokens from there on.
struct StateHeader {
    uint64_t position, checkpoint, logged;

    bool can_begin(uint64_t at) const {
        return at == 0 || at == position || (at >= checkpoint && at - checkpoint <= logged && at < position);
    }
};

struct Mlp {
    int activation;
    float limit;
    Projection gate, up, down;
    size_t inner() const { return up.rows; }
};

// One expert's part of a projection that has several.
inline Projection of_expert(const Projection& all, size_t expert) {
    Projection one = all;
    one.matrix.data += expert * all.expert_bytes;
    if (one.bias) one.bias += expert * all.rows;
    return one;
}

struct Experts {
    size_t count, top_k, groups, top_groups;
    bool group_by_best, normalise;
    int scoring;
    float scale;
    Projection router, shared_gate;
    const float *correction, *scales;
    Mlp experts;
    const float* router_norm;  // null where the router and the experts take what the shared one takes
    Norm before, after_shared, after;
};

// What a token's id adds to a layer's output: table.data is null where it adds nothing.
struct PerLayer {
    Projection table, model, gate, projection;
    const float* norm;
    Norm after;
    int activation;
    float table_scale, model_scale, scale;
    size_t width() const { return gate.rows; }
};

struct Layer {
    Norm before_mixer, after_mixer, before_feed_forward, after_feed_forward;  // weight is null where there is none
    int mixer;
    Attention attention;
    Latent latent;
    Recurrent recurrent;
    Mlp mlp;
    Experts experts;
    PerLayer per_layer;
    float residual_scale, output_scale;
};

struct Rope {
    const float *cos, *sin;  // [positions, rotary_dim / 2]
    size_t positions, count;
};

// What Target::quantize makes of rows.
struct Quantized {
    int8_t* q;
    float *scale, *sum;
    int32_t* offset;
};

// Rows that go into a product, in float32 and quantized.
struct Input : Quantized {
    float* x;
};

// What experts need. A pair is a token and an expert that it goes to; pairs are in ascending order of their experts, then
// of their tokens.
struct ExpertsRoom {
    float* scores;      // [tokens, experts + 1]: what the router gives, and the shared expert's gate
    uint32_t* chosen;   // [tokens, top_k]
    float* weights;     // [tokens, top_k]
    uint32_t* tokens;   // [pairs]
    float* shares;      // [pairs]: the pair's weight
    Input gathered;     // [pairs, hidden]: what goes into experts
    float* gate_up;     // [pairs, 2 * intermediate]
    Input inner;        // [pairs, intermediate]: activated
    float* out;         // [tokens, hidden]: what one expert gives
    float* sum;         // [tokens, hidden]
};

// What attention over latents needs. A pair is a head and a token that are computed in one round, head by head.
struct LatentRoom {
    Input down;      // [tokens, q_a.rows]: normed
    Input nope;      // [pairs, nope_dim]: the parts of queries that don't turn
    float* queries;  // [pairs, rank + rope_dim]: what latents are multiplied with, and then the parts that turn
    Input sums;      // [pairs, rank]: weighed sums of latents
};

// Room for what a pass computes, for `tokens` tokens. Grows, never shrinks.
struct Workspace {
    size_t tokens;
    float *x, *normed, *added;  // [tokens, hidden]
    float* mixed;               // [tokens, widest of what goes into a mixer]
    float* attended;            // [tokens, widest of what comes out of one]
    float* gate_up;             // [tokens, 2 * widest intermediate]
    Quantized quantized;        // [tokens, hidden or widest attended]: of w.normed, or of w.attended
    Input activated;            // [tokens, widest intermediate]
    Input embedded;             // [tokens, hidden]: the tokens' embeddings, for layers that have something of their ids
    ExpertsRoom experts;
    LatentRoom latent;
    float* replayed;            // [LOG_TOKENS, widest of what goes into a recurrent mixer]
    void* memory;
};

struct Section {
    size_t hidden, vocab, positions, num_layers, row_in, row_out;
    bool per_layer, receives;  // whether any layer has something of a token's id; receives keys and values
    float eps, embed_scale, logit_scale, logit_soft_cap;
    Layer* layers;
    Projection embedding, position_embedding, head;
    Norm final_norm;
    bool swaps;
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

constexpr size_t rounded_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

// Positions for which a slot has room in a layer: all, or of a window a ring, in which position p lies at p modulo its size.
// It holds what a window sees and at least RING tokens more, so that as many can be stored before they look back, and the
// last ones can be taken back.
inline size_t kept_positions(const Attention& a, size_t context) {
    const size_t all = rounded_up(context, KEYS);
    const size_t window = a.kept_window();
    if (window == 0 || window >= context) return all;
    const size_t ring = rounded_up(window + RING, RING);
    return ring < all ? ring : all;
}

// Bytes of an element of a key or value.
constexpr size_t kv_element_bytes(int64_t encoding) { return encoding == INT8 ? 1 : encoding == F16 ? 2 : 4; }

// Bytes of one layer's keys, or values, in a slot: of all heads, in INT8 with the scales of all heads behind them.
inline size_t kv_bytes(const Attention& a, size_t context, int64_t encoding) {
    const size_t scales = encoding == INT8 ? a.kv_heads * sizeof(float) : 0;
    return kept_positions(a, context) * (a.kv_rows() * kv_element_bytes(encoding) + scales);
}

// Bytes of `dim` values of each position of a latent layer in a slot, in INT8 with their scales.
inline size_t latent_bytes(size_t dim, size_t context, int64_t encoding) {
    return rounded_up(context, KEYS) * (dim * kv_element_bytes(encoding) + (encoding == INT8 ? sizeof(float) : 0));
}

constexpr bool is_recurrent(int mixer) { return mixer > LATENT_ATTENTION; }

// Bytes that a slot holds for a layer; a multiple of 64.
inline size_t slot_bytes(const Layer& layer, size_t context, int64_t encoding) {
    if (is_recurrent(layer.mixer)) return layer.recurrent.state_bytes();
    if (layer.mixer == LATENT_ATTENTION)
        return latent_bytes(layer.latent.rank, context, encoding) + latent_bytes(layer.latent.rope_dim, context, encoding);
    if (layer.mixer != ATTENTION || layer.attention.source) return 0;
    return 2 * kv_bytes(layer.attention, context, encoding);
}

// Floats of a token that go into a layer's mixer behind its first product, and that come out of it before its last.
inline size_t mixer_in(const Layer& layer) {
    if (is_recurrent(layer.mixer)) return layer.recurrent.rows();
    const Latent& l = layer.latent;
    if (layer.mixer == LATENT_ATTENTION) return l.first_rows() + (l.q_a ? l.q_rows() : 0);
    return layer.mixer == ATTENTION ? layer.attention.qkv_rows() : 0;
}
inline size_t mixer_out(const Layer& layer) {
    if (is_recurrent(layer.mixer)) return layer.recurrent.inner();
    if (layer.mixer == LATENT_ATTENTION) return layer.latent.heads * layer.latent.value_dim;
    return layer.mixer == ATTENTION ? layer.attention.heads * layer.attention.dim : 0;
}

// Pairs of heads and tokens that one round of a latent layer has room for: all heads of few tokens, one head of many.
constexpr size_t LATENT_PAIRS = 2048;
inline size_t latent_pairs(size_t heads, size_t tokens) {
    const size_t most = tokens > LATENT_PAIRS ? tokens : LATENT_PAIRS;
    return heads * tokens < most ? heads * tokens : most;
}

bool make_room(Section&, size_t tokens);

}  // namespace edgellm
