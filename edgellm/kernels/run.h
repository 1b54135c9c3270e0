// One pass through a section, and what its parts share: work split among threads, products, quantizing. What a token gets
// depends on nothing but itself and what its slot remembers: rows are shared among threads, sums never.
#pragma once
#include "pool.h"
#include "section.h"

namespace edgellm {

constexpr size_t ROWS_AT_ONCE = 64;   // of a weight, at least, for a thread at a time
constexpr size_t FEW_ROWS = 1024;     // of which a few tokens' products are shared by the tile, so that no thread waits long
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

    // Rows of a weight that a thread takes at least.
    size_t row_grain(size_t rows) const { return tokens < SHARED_TOKENS && rows <= FEW_ROWS ? TILE : ROWS_AT_ONCE; }

    // Quantizes columns [start, start + count) of token t of x [tokens, in], whole groups, for packed weights.
    void quantize(const float* x, size_t in, size_t t, size_t start, size_t count, const Quantized& into) const {
        const size_t at = t * in + start;
        target.quantize(x + at, 1, count, into.q + at, into.scale + at / GROUP, into.sum + at / GROUP,
                        into.offset + at / GROUP);
    }
    void quantize(const float* x, size_t in, size_t t) const { quantize(x, in, t, 0, in, w.quantized); }

    static Activations activations(const float* x, const Quantized& q, size_t count) {
        return {x, q.q, q.scale, q.sum, q.offset, count};
    }
    Activations activations(const float* x, size_t count) const { return activations(x, w.quantized, count); }

    // Rows [start, end) of a projection to y[t * ldy + row].
    void product(const Projection& p, const Activations& x, float* y, size_t ldy, size_t start, size_t end) {
        // y is where the weight's row 0 would go.
        float* origin = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y) - p.first * sizeof(float));
        target.product(p.matrix, x, origin, ldy, p.first + start, p.first + end);
    }

    // Rows of several projections of w.normed, one after the other, to y[t * ldy + row].
    void products(const Projection* const* parts, size_t count, float* y, size_t ldy) {
        const Activations x = activations(w.normed, tokens);
        size_t rows = 0;  // each part's filled up to whole tiles, in which products begin
        for (size_t i = 0; i < count; i++) rows += rounded_up(parts[i]->rows, TILE);
        share(rows, row_grain(rows), [&](size_t start, size_t end) {
            float* into = y;
            for (size_t i = 0, at = 0; i < count && at < end; i++) {
                const size_t part = parts[i]->rows, from = start > at ? start - at : 0, to = end - at < part ? end - at : part;
                if (from < to) product(*parts[i], x, into, ldy, from, to);
                at += rounded_up(part, TILE);
                into += part;
            }
        });
    }

    // w.added = projection of x, whose quantized form is there if the projection wants one.
    void project(const Projection& p, const float* x, const Quantized& q) {
        const Activations a = activations(x, q, tokens);
        share(p.rows, row_grain(p.rows),
              [&](size_t start, size_t end) { product(p, a, w.added, s.hidden, start, end); });
    }

    // What each part makes of w.normed (and of its quantized form) goes to w.added; the bias of what they return has still
    // to be added.
    const Projection* attention(const Attention&);
    const Projection* latent(const Latent&);
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
