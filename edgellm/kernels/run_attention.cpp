// Attention's part of a pass: queries, keys and values of all tokens, each stored in its slot, then what each query sees.
#include <string.h>

#include "run.h"

namespace edgellm {
namespace {

struct Attending {
    Run& run;
    const Attention& a;
    const Attention& seen;  // whose keys and values it sees
    size_t q_rows, qkv_rows, out_rows;
    uint8_t* memory[MOST_STEPS];  // where these begin in each step's slot

    Attending(Run& r, const Attention& attention)
        : run(r), a(attention), seen(attention.source ? r.s.layers[attention.source - 1].attention : attention),
          q_rows(attention.q_rows()), qkv_rows(attention.qkv_rows()), out_rows(attention.heads * attention.dim) {
        for (size_t i = 0; i < run.pass.num_steps; i++) {
            const StepSpec& step = run.pass.steps[i];
            memory[i] = a.source ? static_cast<uint8_t*>(step.slot) : run.slots[i];
            for (size_t j = 0; j + 1 < a.source; j++)
                memory[i] += slot_bytes(run.s.layers[j], step.context, step.kv_encoding);
        }
    }

    KeysValues keys_values(size_t step, size_t kv_head) const {
        const StepSpec& spec = run.pass.steps[step];
        const size_t kept = kept_positions(seen, spec.context), bytes = kv_bytes(seen, spec.context, spec.kv_encoding);
        const size_t head_bytes = kept * a.dim * kv_element_bytes(spec.kv_encoding), heads = a.kv_heads;
        uint8_t *keys = memory[step], *values = keys + bytes;
        float* key_scales = reinterpret_cast<float*>(keys + heads * head_bytes) + kv_head * kept;
        float* value_scales = reinterpret_cast<float*>(values + heads * head_bytes) + kv_head * kept;
        return {keys + kv_head * head_bytes, values + kv_head * head_bytes, key_scales, value_scales, a.dim, kept,
                static_cast<int>(spec.kv_encoding)};
    }

    // What all heads of a token need at once: norms over all of them, values that are what keys were.
    void prepare(size_t t) const {
        float *q = run.w.mixed + t * qkv_rows, *k = q + q_rows, *v = k + a.kv_rows();
        if (copies_keys()) memcpy(v, k, a.kv_rows() * sizeof(float));
        if (a.q_norm_whole) norm_whole(q, a.q.bias, a.q_norm, a.heads * a.dim);
        if (a.k_norm_whole) norm_whole(k, a.k.bias, a.k_norm, a.kv_rows());
    }

    bool copies_keys() const { return a.k && !a.v; }

    void norm_whole(float* x, const float* bias, const float* weight, size_t n) const {
        if (bias) run.op.add(x, bias, nullptr, n);
        run.op.norm(x, {weight, nullptr, run.s.eps}, n, x);
    }

    // Token t, number j of its step: positions into q and k of one kv head, and k and v to the slot.
    void place(size_t step, size_t t, size_t j, size_t kv_head) const {
        const StepSpec& spec = run.pass.steps[step];
        const size_t position = spec.position + j, group = a.heads / a.kv_heads, half = a.rotary_dim / 2;
        const float *cos = nullptr, *sin = nullptr;
        if (half) {
            const Rope& rope = run.s.ropes[2 * a.rope + spec.long_rope];
            cos = rope.cos + position * half;
            sin = rope.sin + position * half;
        }
        float* row = run.w.mixed + t * qkv_rows;
        const size_t stride = q_rows / a.heads, at = kv_head * a.dim;
        const float scale = a.query_scales ? a.scale * a.query_scales[position / a.scale_every] : a.scale;
        const float* q_bias = a.q_norm_whole ? nullptr : a.q.bias;
        for (size_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            run.op.head(row + h * stride, {q_bias ? q_bias + h * stride : nullptr, a.q_norm_whole ? nullptr : a.q_norm,
                                           run.s.eps, scale, cos, sin, half, a.dim, a.interleaved});
        if (a.source) return;
        float *key = row + q_rows + at, *value = key + a.kv_rows();
        const size_t head = a.dim * sizeof(float);
        if (a.received) {
            const float* received = run.pass.hidden + t * run.s.row_in + a.received + at;
            memcpy(key, received, head);
            memcpy(value, received + a.kv_rows(), head);
        } else {
            turn(key, value, at, {nullptr, nullptr, run.s.eps, 1.0f, cos, sin, half, a.dim, a.interleaved});
        }
        if (a.sent && run.sends()) {
            float* sent = run.pass.out + t * run.s.row_out + a.sent + at;
            memcpy(sent, key, head);
            memcpy(sent + a.kv_rows(), value, head);
        }
        const KeysValues kv = keys_values(step, kv_head);
        run.op.store_key(kv, position, key);
        run.op.store_value(kv, position, value, nullptr);
    }

    // Biases, norms and positions of a key and its value, which lie `at` floats behind those of the first head.
    void turn(float* key, float* value, size_t at, HeadJob job) const {
        const float* k_bias = a.k_norm_whole ? nullptr : a.k.bias;
        job.bias = k_bias ? k_bias + at : nullptr;
        job.norm = a.k_norm_whole ? nullptr : a.k_norm;
        run.op.head(key, job);
        const float* v_bias = a.v.bias ? a.v.bias + at : nullptr;
        if (a.v_norm)
            run.op.head(value, {v_bias, a.v_norm, run.s.eps, 1.0f, nullptr, nullptr, 0, a.dim, false});
        else if (v_bias)
            run.op.add(value, v_bias, nullptr, a.dim);
    }

    // Queries [j, j + queries) of a step whose first token is `first`, of the heads that share a kv head.
    void attend(size_t step, size_t first, size_t j, size_t queries, size_t kv_head) const {
        const size_t group = a.heads / a.kv_heads, h = kv_head * group, stride = q_rows / a.heads;
        run.op.attend({keys_values(step, kv_head), run.w.mixed + (first + j) * qkv_rows + h * stride,
                       run.w.attended + (first + j) * out_rows + h * a.dim, qkv_rows, stride, out_rows,
                       run.pass.steps[step].position + j, queries, group, a.window, a.soft_cap,
                       a.sinks ? a.sinks + h : nullptr});
        for (size_t t = first + j; t < first + j + queries; t++) {
            for (size_t i = h; a.gated && i < h + group; i++) {
                const float* gate = run.w.mixed + t * qkv_rows + i * stride + a.dim;
                const float* bias = a.q.bias ? a.q.bias + i * stride + a.dim : nullptr;
                run.op.gate(run.w.attended + t * out_rows + i * a.dim, gate, bias, a.dim);
            }
            if (quantizes_heads()) run.quantize(run.w.attended, out_rows, t, h * a.dim, group * a.dim, run.w.quantized);
        }
    }

    // Whether what the heads of a kv head give is whole groups, to be quantized by whoever computed it.
    bool quantizes_heads() const {
        return is_packed(a.o.matrix.encoding) && a.heads / a.kv_heads * a.dim % GROUP == 0;
    }

    bool slots_differ() const {
        for (size_t i = 0; i < run.pass.num_steps; i++)
            for (size_t j = 0; j < i; j++)
                if (run.slots[i] == run.slots[j]) return false;
        return true;
    }

    void all() const {
        const bool prepares = copies_keys() || a.q_norm_whole || a.k_norm_whole;
        if (run.tokens == run.pass.num_steps && slots_differ()) {
            // Each sequence's one token: all of a head's work at once.
            if (prepares) run.for_tokens(run.tokens, [&](size_t t) { prepare(t); });
            share(run.tokens * a.kv_heads, 1, [&](size_t start, size_t end) {
                for (size_t i = start; i < end; i++) {
                    const size_t t = i / a.kv_heads, kv_head = i % a.kv_heads;
                    place(t, t, 0, kv_head);
                    attend(t, t, 0, 1, kv_head);
                }
            });
            return;
        }
        size_t first = 0;
        for (size_t i = 0; i < run.pass.num_steps; first += run.pass.steps[i].tokens, i++) {
            const StepSpec& step = run.pass.steps[i];
            const size_t kept = kept_positions(seen, step.context);
            // What goes round a ring takes the place of what was there: tokens look back before that is still needed.
            const size_t most = kept < step.context && !a.source ? kept - a.window : step.tokens;
            for (size_t j = 0; j < step.tokens; j += most)
                several(i, first, j, step.tokens - j < most ? step.tokens - j : most, prepares);
        }
    }

    // Tokens [start, start + count) of a step, whose first one is `first`.
    void several(size_t step, size_t first, size_t start, size_t count, bool prepares) const {
        run.for_tokens(count, [&](size_t j) {
            if (prepares) prepare(first + start + j);
            for (size_t kv_head = 0; kv_head < a.kv_heads; kv_head++) place(step, first + start + j, start + j, kv_head);
        });
        const size_t group = a.heads / a.kv_heads, at_once = MOST_ROWS / group;
        const size_t runs = (count + at_once - 1) / at_once;
        share(runs * a.kv_heads, 1, [&](size_t from, size_t end) {
            for (size_t u = from; u < end; u++) {
                const size_t kv_head = u / runs, j = u % runs * at_once;
                attend(step, first, start + j, count - j < at_once ? count - j : at_once, kv_head);
            }
        });
    }
};

}  // namespace

const Projection* Run::attention(const Attention& a) {
    const Projection* parts[] = {&a.q, &a.k, &a.v};
    products(parts, a.v ? 3 : a.k ? 2 : 1, w.mixed, a.qkv_rows());
    const Attending attending(*this, a);
    attending.all();
    if (is_packed(a.o.matrix.encoding) && !attending.quantizes_heads())
        for_tokens(tokens, [&](size_t t) { quantize(w.attended, attending.out_rows, t); });
    project(a.o, w.attended, w.quantized);
    return &a.o;
}

}  // namespace edgellm
