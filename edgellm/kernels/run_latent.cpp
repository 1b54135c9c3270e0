// Latent attention's part of a pass: what a slot keeps of a token is one latent, and the part of its key that turns. Keys
// and values of the heads are never made. Queries go through k_b into the space of latents, and weighed sums of latents
// through v_b out of it, in rounds of as many heads as there is room for.
#include <string.h>

#include "run.h"

namespace edgellm {
namespace {

struct LatentAttending {
    Run& run;
    const Latent& l;
    LatentRoom& room;
    const size_t head_rows, q_at, kv_at, row_floats, tokens;
    size_t heads, first_head;  // of the round at hand

    LatentAttending(Run& r, const Latent& latent)
        : run(r), l(latent), room(r.w.latent), head_rows(latent.nope_dim + latent.rope_dim),
          q_at(latent.q_a ? latent.first_rows() : 0), kv_at(latent.first_rows() - latent.kept_dim()),
          row_floats(latent.first_rows() + (latent.q_a ? latent.q_rows() : 0)), tokens(r.tokens), heads(0),
          first_head(0) {}

    LatentJob memory(size_t step) const {
        const StepSpec& spec = run.pass.steps[step];
        const size_t kept = rounded_up(spec.context, KEYS), each = kv_element_bytes(spec.kv_encoding);
        const int encoding = static_cast<int>(spec.kv_encoding);
        const auto values = [=](uint8_t* at, size_t dim) {
            float* scales = reinterpret_cast<float*>(at + kept * dim * each);
            return KeysValues{nullptr, at, nullptr, scales, dim, kept, encoding};
        };
        uint8_t* latents = run.slots[step];
        LatentJob job = {};
        job.latents = values(latents, l.rank);
        job.ropes = values(latents + latent_bytes(l.rank, spec.context, spec.kv_encoding), l.rope_dim);
        return job;
    }

    // Turns a part of a query or key of a position, and scales it.
    void turn(float* x, size_t step, size_t position, float scale) const {
        const size_t half = l.rope_dim / 2;
        const Rope& rope = run.s.ropes[2 * l.rope + run.pass.steps[step].long_rope];
        run.op.head(x, {nullptr, nullptr, l.eps, scale, rope.cos + position * half, rope.sin + position * half, half,
                        l.rope_dim, l.interleaved});
    }

    // Calls f(token, step, position) for each token of the pass.
    template <class F>
    void for_places(const F& f) const {
        share(tokens, SHARED_TOKENS, [&](size_t start, size_t end) {
            size_t first = 0;
            for (size_t i = 0; first < end; first += run.pass.steps[i].tokens, i++) {
                const size_t until = first + run.pass.steps[i].tokens;
                for (size_t t = start > first ? start : first; t < end && t < until; t++)
                    f(t, i, run.pass.steps[i].position + t - first);
            }
        });
    }

    void store(size_t t, size_t step, size_t position) const {
        float *latent = run.w.mixed + t * row_floats + kv_at, *rope = latent + l.rank;
        if (l.kv_a.bias) run.op.add(latent, l.kv_a.bias, nullptr, l.kept_dim());
        run.op.norm(latent, {l.kv_norm, nullptr, l.eps}, l.rank, latent);
        turn(rope, step, position, 1.0f);
        const LatentJob job = memory(step);
        run.op.store_value(job.latents, position, latent, nullptr);
        run.op.store_value(job.ropes, position, rope, nullptr);
    }

    // Queries out of their own, smaller latents.
    void expand_queries() const {
        const size_t in = l.q_a.rows;
        const bool packed = is_packed(l.q.matrix.encoding);
        run.for_tokens(tokens, [&](size_t t) {
            float *down = run.w.mixed + t * row_floats, *x = room.down.x + t * in;
            if (l.q_a.bias) run.op.add(down, l.q_a.bias, nullptr, in);
            run.op.norm(down, {l.q_norm, nullptr, l.eps}, in, x);
            if (packed) run.quantize(room.down.x, in, t, 0, in, room.down);
        });
        const Activations x = Run::activations(room.down.x, room.down, tokens);
        share(l.q.rows, run.row_grain(l.q.rows), [&](size_t start, size_t end) {
            run.product(l.q, x, run.w.mixed + q_at, row_floats, start, end);
        });
    }

    // Takes a token's queries of the round apart.
    void part(size_t t, size_t step, size_t position) const {
        const bool packed = is_packed(l.k_b.matrix.encoding);
        const size_t n = l.nope_dim;
        for (size_t h = 0; h < heads; h++) {
            const float* q = run.w.mixed + t * row_floats + q_at + (first_head + h) * head_rows;
            const size_t pair = h * tokens + t;
            float *nope = room.nope.x + pair * n, *rope = room.queries + pair * l.kept_dim() + l.rank;
            memcpy(nope, q, n * sizeof(float));
            memcpy(rope, q + n, l.rope_dim * sizeof(float));
            run.op.scale(nope, l.scale, n);
            turn(rope, step, position, l.scale);
            if (packed) run.quantize(room.nope.x, n, pair, 0, n, room.nope);
        }
    }

    // Products of each head of the round with its own matrix of `all`: of token t's x to y + (head * head_y + t * ldy).
    void products(const Projection& all, const Input& in, float* y, size_t head_y, size_t ldy) const {
        const size_t columns = all.matrix.in, groups = columns / GROUP, rows = all.rows;
        share(heads * rows, run.row_grain(heads * rows), [&](size_t start, size_t end) {
            for (size_t h = start / rows; h * rows < end; h++) {
                const size_t from = start > h * rows ? start - h * rows : 0;
                const size_t to = end < (h + 1) * rows ? end - h * rows : rows, at = h * tokens;
                const Activations x = {in.x + at * columns, in.q + at * columns, in.scale + at * groups,
                                       in.sum + at * groups, in.offset + at * groups, tokens};
                run.product(of_expert(all, first_head + h), x, y + h * head_y, ldy, from, to);
            }
        });
    }

    // What queries [j, j + queries) of a step, whose first token is `first`, see, for heads [head, head + count) of the
    // round.
    void attend(size_t step, size_t first, size_t j, size_t queries, size_t head, size_t count) const {
        LatentJob job = memory(step);
        const size_t dim = l.kept_dim(), pair = head * tokens + first + j;
        job.q = room.queries + pair * dim;
        job.out = room.sums.x + pair * l.rank;
        job.q_stride = dim;
        job.head_stride = tokens * dim;
        job.out_stride = l.rank;
        job.out_head_stride = tokens * l.rank;
        job.position = run.pass.steps[step].position + j;
        job.queries = queries;
        job.heads = count;
        run.op.attend_latent(job);
        if (!is_packed(l.v_b.matrix.encoding)) return;
        for (size_t h = 0; h < count; h++)
            for (size_t i = 0; i < queries; i++)
                run.quantize(room.sums.x, l.rank, pair + h * tokens + i, 0, l.rank, room.sums);
    }

    // Units of work are some queries of a step with some heads: as many as share what is read.
    void attend_all() const {
        constexpr size_t TOGETHER = 4;  // rows that share what is read
        const size_t each = rounded_up((heads + pool_threads() - 1) / pool_threads(), TOGETHER);
        const size_t of_heads = each < MOST_ROWS ? each : MOST_ROWS, queries = MOST_ROWS / of_heads;
        const size_t parts = (heads + of_heads - 1) / of_heads;
        size_t units = 0;
        for (size_t i = 0; i < run.pass.num_steps; i++) units += (run.pass.steps[i].tokens + queries - 1) / queries * parts;
        share(units, 1, [&](size_t from, size_t end) {
            size_t first = 0, unit = 0;
            for (size_t i = 0; i < run.pass.num_steps; first += run.pass.steps[i].tokens, i++) {
                const size_t count = run.pass.steps[i].tokens, runs = (count + queries - 1) / queries;
                const size_t until = unit + runs * parts;
                for (size_t u = from > unit ? from : unit; u < end && u < until; u++) {
                    const size_t head = (u - unit) / runs * of_heads, j = (u - unit) % runs * queries;
                    attend(i, first, j, count - j < queries ? count - j : queries, head,
                           heads - head < of_heads ? heads - head : of_heads);
                }
                unit = until;
            }
        });
    }

    void all() {
        for_places([&](size_t t, size_t step, size_t position) { store(t, step, position); });
        if (l.q_a) expand_queries();
        const size_t at_once = latent_pairs(l.heads, tokens) / tokens;
        for (first_head = 0; first_head < l.heads; first_head += heads) {
            heads = l.heads - first_head < at_once ? l.heads - first_head : at_once;
            for_places([&](size_t t, size_t step, size_t position) { part(t, step, position); });
            products(l.k_b, room.nope, room.queries, tokens * l.kept_dim(), l.kept_dim());
            attend_all();
            products(l.v_b, room.sums, run.w.attended + first_head * l.value_dim, l.value_dim, l.heads * l.value_dim);
        }
    }
};

}  // namespace

const Projection* Run::latent(const Latent& l) {
    const Projection* parts[] = {l.q_a ? &l.q_a : &l.q, &l.kv_a};
    products(parts, 2, w.mixed, l.first_rows() + (l.q_a ? l.q_rows() : 0));
    LatentAttending(*this, l).all();
    if (is_packed(l.o.matrix.encoding))
        for_tokens(tokens, [&](size_t t) { quantize(w.attended, l.heads * l.value_dim, t); });
    project(l.o, w.attended, w.quantized);
    return &l.o;
}

}  // namespace edgellm
