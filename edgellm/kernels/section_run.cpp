// A pass through a section's layers, in the order in which it is computed. What a token gets depends on nothing but itself
// and the keys and values before it: rows are shared among threads, sums never.
#include <stdlib.h>
#include <string.h>

#include "pool.h"
#include "section.h"

namespace edgellm {
namespace {

constexpr size_t ROWS = 64;            // of a weight, at least, for a thread at a time
constexpr size_t COLUMNS = 256;        // of the MLP's inner width at a time, so that they are still in the cache
constexpr size_t SHARED_TOKENS = 4;    // from how many on work on single tokens is shared

struct Run {
    Section& s;
    const Pass& pass;
    const Target& target;
    const Ops& op;
    Workspace& w;
    size_t tokens;
    size_t q_rows, kv_rows, qkv_rows;

    Run(Section& section, const Pass& p)
        : s(section), pass(p), target(edgellm::target()), op(ops()), w(section.work), tokens(p.tokens),
          q_rows(s.heads * s.head_dim), kv_rows(s.kv_heads * s.head_dim), qkv_rows(q_rows + 2 * kv_rows) {}

    template <class F>
    void for_tokens(size_t count, const F& f) {
        share(count, SHARED_TOKENS, [&](size_t start, size_t end) {
            for (size_t t = start; t < end; t++) f(t);
        });
    }

    void quantize(const float* x, size_t in, size_t t) {
        const size_t groups = in / GROUP;
        target.quantize(x + t * in, 1, in, w.q + t * in, w.scale + t * groups, w.sum + t * groups,
                        w.offset + t * groups);
    }

    Activations activations(const float* x, size_t count) const {
        return {x, w.q, w.scale, w.sum, w.offset, count};
    }

    // Rows [start, end) of a projection to y[t * ldy + row].
    void product(const Projection& p, const Activations& x, float* y, size_t ldy, size_t start, size_t end) {
        // y is where the weight's row 0 would go.
        float* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y) - p.first * sizeof(float));
        target.product(p.matrix, x, origin, ldy, p.first + start, p.first + end);
    }

    void embed() {
        if (pass.hidden) {
            memcpy(w.x, pass.hidden, tokens * s.hidden * sizeof(float));
            return;
        }
        size_t t = 0;
        for (size_t i = 0; i < pass.num_steps; i++)
            for (size_t j = 0; j < pass.steps[i].tokens; j++, t++) {
                const size_t id = static_cast<size_t>(pass.ids[t]), at = pass.steps[i].position + j;
                target.dequantize(s.embedding.matrix, id, id + 1, w.x + t * s.hidden);
                if (s.position_embedding) {
                    target.dequantize(s.position_embedding.matrix, at, at + 1, w.normed + t * s.hidden);
                    op.add(w.x + t * s.hidden, w.normed + t * s.hidden, nullptr, s.hidden);
                }
            }
    }

    // x += what the last block gave (if `bias_of`), then norm, for the next one.
    void enter_block(const Projection* added, const Norm& norm) {
        for_tokens(tokens, [&](size_t t) {
            const size_t at = t * s.hidden;
            op.add_and_norm(w.x + at, added ? w.added + at : nullptr, added ? added->bias : nullptr, norm, s.hidden,
                            w.normed + at);
            if (s.hidden % GROUP == 0) quantize(w.normed, s.hidden, t);
        });
    }

    void queries_keys_values(const Layer& layer) {
        const Activations x = activations(w.normed, tokens);
        const Projection* parts[] = {&layer.q, &layer.k, &layer.v};
        share(qkv_rows, ROWS, [&](size_t start, size_t end) {
            size_t at = 0;
            for (const Projection* p : parts) {
                const size_t from = start > at ? start : at, to = end < at + p->rows ? end : at + p->rows;
                if (from < to) product(*p, x, w.qkv + at, qkv_rows, from - at, to - at);
                at += p->rows;
            }
        });
    }

    KeysValues keys_values(const StepSpec& step, size_t layer, size_t kv_head) const {
        const bool half = step.kv_encoding == F16;
        const size_t bytes = kv_layer_bytes(s, step.context, half), head_bytes = bytes / s.kv_heads;
        uint8_t* keys = static_cast<uint8_t*>(step.kv) + 2 * layer * bytes + kv_head * head_bytes;
        return {keys, keys + bytes, s.head_dim, half};
    }

    // Token t, number j of its step: positions into q and k of one kv head, and k and v to the slot.
    void place(const Layer& layer, size_t index, const StepSpec& step, size_t t, size_t j, size_t kv_head) {
        const size_t position = step.position + j, group = s.heads / s.kv_heads, half = s.rotary_dim / 2;
        const Rope& rope = s.ropes[step.rope];
        const float* cos = half ? rope.cos + position * half : nullptr;
        const float* sin = half ? rope.sin + position * half : nullptr;
        float* row = w.qkv + t * qkv_rows;
        for (size_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            op.head(row + h * s.head_dim, {layer.q.bias ? layer.q.bias + h * s.head_dim : nullptr, layer.q_norm, s.eps,
                                           layer.attention_scale, cos, sin, half, s.head_dim});
        float* key = row + q_rows + kv_head * s.head_dim;
        op.head(key, {layer.k.bias ? layer.k.bias + kv_head * s.head_dim : nullptr, layer.k_norm, s.eps, 1.0f, cos, sin,
                      half, s.head_dim});
        const KeysValues kv = keys_values(step, index, kv_head);
        op.store_key(kv, position, key);
        op.store_value(kv, position, key + kv_rows, layer.v.bias ? layer.v.bias + kv_head * s.head_dim : nullptr);
    }

    void attend(const Layer& layer, size_t index, const StepSpec& step, size_t first, size_t j, size_t queries,
                size_t kv_head) {
        const size_t group = s.heads / s.kv_heads, at = kv_head * group * s.head_dim;
        op.attend({keys_values(step, index, kv_head), w.qkv + (first + j) * qkv_rows + at,
                   w.attended + (first + j) * q_rows + at, qkv_rows, q_rows, step.position + j, queries, group,
                   layer.window});
    }

    void attention(const Layer& layer, size_t index) {
        if (tokens == pass.num_steps && slots_differ()) {  // each sequence's one token: all of a head's work at once
            share(tokens * s.kv_heads, 1, [&](size_t start, size_t end) {
                for (size_t i = start; i < end; i++) {
                    const size_t t = i / s.kv_heads, kv_head = i % s.kv_heads;
                    place(layer, index, pass.steps[t], t, 0, kv_head);
                    attend(layer, index, pass.steps[t], t, 0, 1, kv_head);
                }
            });
            return;
        }
        size_t first = 0;
        for (size_t i = 0; i < pass.num_steps; first += pass.steps[i].tokens, i++) {
            const StepSpec& step = pass.steps[i];
            for_tokens(step.tokens, [&](size_t j) {
                for (size_t kv_head = 0; kv_head < s.kv_heads; kv_head++)
                    place(layer, index, step, first + j, j, kv_head);
            });
            const size_t group = s.heads / s.kv_heads, at_once = MOST_ROWS / group;
            const size_t runs = (step.tokens + at_once - 1) / at_once;
            share(runs * s.kv_heads, 1, [&](size_t start, size_t end) {
                for (size_t u = start; u < end; u++) {
                    const size_t kv_head = u / runs, j = u % runs * at_once;
                    const size_t queries = step.tokens - j < at_once ? step.tokens - j : at_once;
                    attend(layer, index, step, first, j, queries, kv_head);
                }
            });
        }
    }

    bool slots_differ() const {
        for (size_t i = 0; i < pass.num_steps; i++)
            for (size_t j = 0; j < i; j++)
                if (pass.steps[i].kv == pass.steps[j].kv) return false;
        return true;
    }

    // added = projection of x, which is quantized first.
    void project(const Projection& p, const float* x) {
        const size_t in = p.matrix.in;
        if (is_packed(p.matrix.encoding)) for_tokens(tokens, [&](size_t t) { quantize(x, in, t); });
        const Activations a = activations(x, tokens);
        share(p.rows, ROWS, [&](size_t start, size_t end) { product(p, a, w.added, s.hidden, start, end); });
    }

    void mlp(const Layer& layer) {
        const Activations x = activations(w.normed, tokens);
        const size_t inner = s.intermediate, ld = layer.gate ? 2 * inner : inner;
        float *gate = w.gate_up, *up = layer.gate ? w.gate_up + inner : w.gate_up;
        share(inner, ROWS, [&](size_t start, size_t end) {
            const size_t run = tokens >= SHARED_TOKENS ? COLUMNS : end - start;
            for (size_t from = start; from < end; from += run) {
                const size_t to = from + run < end ? from + run : end;
                if (layer.gate) product(layer.gate, x, gate, ld, from, to);
                product(layer.up, x, up, ld, from, to);
                const float* up_bias = layer.up.bias ? layer.up.bias + from : nullptr;
                const float* gate_bias = layer.gate.bias ? layer.gate.bias + from : nullptr;
                for (size_t t = 0; t < tokens; t++) {
                    float* out = w.activated + t * inner + from;
                    if (layer.gate)
                        op.silu_gated(gate + t * ld + from, gate_bias, up + t * ld + from, up_bias, to - from, out);
                    else
                        op.gelu(up + t * ld + from, up_bias, to - from, out);
                }
            }
        });
        project(layer.down, w.activated);
    }

    void logits() {
        size_t t = 0, wanted = 0;
        for (size_t i = 0; i < pass.num_steps; i++) {
            t += pass.steps[i].tokens;
            for (size_t j = t - pass.steps[i].logits; j < t; j++, wanted++) {
                op.add_and_norm(w.x + j * s.hidden, nullptr, nullptr, s.final_norm, s.hidden,
                                w.normed + wanted * s.hidden);
                if (s.hidden % GROUP == 0) quantize(w.normed, s.hidden, wanted);
            }
        }
        if (wanted == 0) return;
        const Activations x = activations(w.normed, wanted);
        share(s.vocab, ROWS, [&](size_t start, size_t end) { product(s.head, x, pass.logits, s.vocab, start, end); });
    }

    void all() {
        embed();
        const Projection* added = nullptr;
        for (size_t i = pass.layer_start; i < pass.layer_end; i++) {
            const Layer& layer = s.layers[i];
            enter_block(added, layer.before_attention);
            queries_keys_values(layer);
            attention(layer, i);
            project(layer.o, w.attended);
            enter_block(&layer.o, layer.before_mlp);
            mlp(layer);
            added = &layer.down;
        }
        if (added) for_tokens(tokens, [&](size_t t) {
            op.add(w.x + t * s.hidden, w.added + t * s.hidden, added->bias, s.hidden);
        });
        if (pass.out) memcpy(pass.out, w.x, tokens * s.hidden * sizeof(float));
        logits();
    }
};

}  // namespace

void run(Section& section, const Pass& pass) { Run(section, pass).all(); }

bool make_room(Section& s, size_t tokens) {
    Workspace& w = s.work;
    if (tokens <= w.tokens) return true;
    const size_t q = s.heads * s.head_dim, inner = s.intermediate;
    size_t widest = s.hidden > q ? s.hidden : q;
    widest = widest > inner ? widest : inner;
    bool gated = false;
    for (size_t i = 0; i < s.num_layers; i++) gated |= s.layers[i].gate ? true : false;
    const size_t counts[] = {s.hidden, s.hidden, s.hidden, q + 2 * s.kv_heads * s.head_dim, q, gated ? 2 * inner : inner,
                             inner, widest / 4 + 1, widest / GROUP + 1, widest / GROUP + 1, widest / GROUP + 1};
    float *bytes, *offsets;  // of other types
    float** const places[] = {&w.x, &w.normed, &w.added, &w.qkv, &w.attended, &w.gate_up, &w.activated,
                              &bytes, &w.scale, &w.sum, &offsets};
    constexpr size_t LINE = 64 / sizeof(float);
    size_t total = 0;
    for (const size_t count : counts) total += (count * tokens + LINE - 1) / LINE * LINE + LINE;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, total * sizeof(float))) return false;
    free(w.memory);
    w.memory = memory;
    w.tokens = tokens;
    float* at = static_cast<float*>(memory);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        *places[i] = at;
        at += (counts[i] * tokens + LINE - 1) / LINE * LINE + LINE;
    }
    w.q = reinterpret_cast<int8_t*>(bytes);
    w.offset = reinterpret_cast<int32_t*>(offsets);
    return true;
}

const Ops& ops() {
#ifdef EDGELLM_X86_64
    const char* name = target().name;
    if (strncmp(name, "avx512", 6) == 0) return AVX512_OPS;
    if (strncmp(name, "avx2", 4) == 0) return AVX2_OPS;
#endif
    return BASE_OPS;
}

}  // namespace edgellm
