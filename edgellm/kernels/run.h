// One pass through a section, and what its parts share: work split among threads, products, quantizing. What a token gets
// depends on nothing but itself and what its slot remembers: rows are shared among threads, sums never.
#pragma once
#include "pool.h"
#include "section.h"

namespace edgellm {

constexpr size_t ROWS_AT_ONCE = 64;   // of a weight, at least, for a thread at a time
constexpr size_t SHARED_TOKENS = 4;   // from how many on work on single tokens is shared

// What a block made of its input, still to be added to it: w.added, with a bias, normed, scaled. Nothing without `from`.
struct Added {
    const Projection* from;
    const Norm* norm;
    float scale;
};

struct Run {
    Section& s;
    const Pass& pass;
    const Target& target;
    const Ops& op;
    Workspace& w;
    size_t tokens;
    uint8_t* slots[MOST_STEPS];  // where the layer at hand begins in each step's slot

    Run(Section& section, const Pass& p)
        : s(section), pass(p), target(edgellm::target()), op(ops()), w(section.work), tokens(p.tokens) {}

    template <class F>
    void for_tokens(size_t count, const F& f) {
        share(count, SHARED_TOKENS, [&](size_t start, size_t end) {
            for (size_t t = start; t < end; t++) f(t);
        });
    }

    // Quantizes token t of x [tokens, in], for packed weights.
    void quantize(const float* x, size_t in, size_t t) {
        quantize({const_cast<float*>(x), w.q, w.scale, w.sum, w.offset}, in, t);
    }
    void quantize(const Input& into, size_t in, size_t t) {
        const size_t groups = in / GROUP;
        target.quantize(into.x + t * in, 1, in, into.q + t * in, into.scale + t * groups, into.sum + t * groups,
                        into.offset + t * groups);
    }

    Activations activations(const float* x, size_t count) { return {x, w.q, w.scale, w.sum, w.offset, count}; }

    // Rows [start, end) of a projection to y[t * ldy + row].
    void product(const Projection& p, const Activations& x, float* y, size_t ldy, size_t start, size_t end) {
        // y is where the weight's row 0 would go.
        float* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y) - p.first * sizeof(float));
        target.product(p.matrix, x, origin, ldy, p.first + start, p.first + end);
    }

    // Rows of several projections of w.normed, one after the other, to y[t * ldy + row].
    void products(const Projection* const* parts, size_t count, float* y, size_t ldy) {
        const Activations x = activations(w.normed, tokens);
        size_t rows = 0;
        for (size_t i = 0; i < count; i++) rows += parts[i]->rows;
        share(rows, ROWS_AT_ONCE, [&](size_t start, size_t end) {
            size_t at = 0;
            for (size_t i = 0; i < count; at += parts[i]->rows, i++) {
                const size_t from = start > at ? start : at;
                const size_t to = end < at + parts[i]->rows ? end : at + parts[i]->rows;
                if (from < to) product(*parts[i], x, y + at, ldy, from - at, to - at);
            }
        });
    }

    // w.added = projection of x, which is quantized first.
    void project(const Projection& p, const float* x) {
        const size_t in = p.matrix.in;
        if (is_packed(p.matrix.encoding)) for_tokens(tokens, [&](size_t t) { quantize(x, in, t); });
        const Activations a = activations(x, tokens);
        share(p.rows, ROWS_AT_ONCE,
              [&](size_t start, size_t end) { product(p, a, w.added, s.hidden, start, end); });
    }

    // What each part makes of w.normed (and of its quantized form) goes to w.added; the bias of what they return has still
    // to be added.
    const Projection* attention(const Attention&);
    const Projection* mlp(const Mlp&);
    const Projection* experts(const Layer&);
    const Projection* experts_apart(const Layer&);
    const Projection* recurrent(const Recurrent&);
    const Projection* per_layer(const PerLayer&);

    void embed();
    void embed(size_t id, float* x);
    void give_out();

    // Whether rows go out as the section gives them, not from a layer within it.
    bool sends() const { return pass.out && pass.layer_end == s.num_layers; }
    void settle(const Added&, size_t t);
    void enter_block(const Added&, const Norm&);
    void logits();
    void all();
};

}  // namespace edgellm
