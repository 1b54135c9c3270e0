// Experts' part of a pass: a router chooses some for each token, and each expert computes all the tokens that it is chosen
// for at once. A token's result is the sum of what its experts give, in ascending order of their numbers, whatever other
// tokens there are; the shared expert comes last.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run.h"

namespace edgellm {
namespace {

constexpr size_t COLUMNS = 256;       // of the inner width at a time, so that they are still in the cache
constexpr size_t RUNS_OF_MANY = 16;   // a thread: experts have as many tokens as it happens
const Projection NOTHING = {};        // left to be added

// Has the system read what of an expert's matrix isn't in RAM: page by page, as it is multiplied with, takes far longer.
void read_at_once(const Projection& all, size_t expert) {
    if (!all) return;
    const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t start = reinterpret_cast<uintptr_t>(of_expert(all, expert).matrix.data), from = start / page * page;
    posix_madvise(reinterpret_cast<void*>(from), start + all.expert_bytes - from, POSIX_MADV_WILLNEED);
}

// An expert that is chosen, for pairs [first, end).
struct Chosen {
    size_t number, first, end;
    size_t count() const { return end - first; }
};

struct Routed {
    Run& run;
    const Experts& e;
    ExpertsRoom& room;
    const size_t hidden, inner;
    size_t count = 0;
    Chosen chosen[MOST_EXPERTS];  // in ascending order

    Routed(Run& r, const Experts& experts)
        : run(r), e(experts), room(r.w.experts), hidden(r.s.hidden), inner(experts.experts.inner()) {}

    size_t scores_of() const { return e.count + (e.shared_gate ? 1 : 0); }

    void route() {
        const Projection* parts[] = {&e.router, &e.shared_gate};
        run.products(parts, e.shared_gate ? 2 : 1, room.scores, scores_of());
        run.for_tokens(run.tokens, [&](size_t t) {
            run.op.route({room.scores + t * scores_of(), e.router.bias, e.correction, e.count, e.top_k, e.groups,
                          e.top_groups, e.group_by_best, e.normalise, e.scoring, e.scale},
                         room.chosen + t * e.top_k, room.weights + t * e.top_k);
            for (size_t i = t * e.top_k; e.scales && i < (t + 1) * e.top_k; i++)
                room.weights[i] *= e.scales[room.chosen[i]];
        });
    }

    // Sorts what was chosen by expert.
    void sort() {
        size_t ends[MOST_EXPERTS] = {};
        const size_t pairs = run.tokens * e.top_k;
        for (size_t i = 0; i < pairs; i++) ends[room.chosen[i]]++;
        size_t at = 0;
        for (size_t i = 0; i < e.count; i++) {
            if (ends[i]) chosen[count++] = {i, at, at + ends[i]};
            at += ends[i];
            ends[i] = at - ends[i];
        }
        for (size_t i = 0; i < pairs; i++) {
            const size_t pair = ends[room.chosen[i]]++;
            room.tokens[pair] = static_cast<uint32_t>(i / e.top_k);
            room.shares[pair] = room.weights[i];
        }
    }

    // The disk has all that this layer needs to do at a time, in the order in which it is needed.
    void read_ahead() const {
        for (size_t i = 0; i < count; i++) {
            read_at_once(e.experts.gate, chosen[i].number);
            read_at_once(e.experts.up, chosen[i].number);
        }
        for (size_t i = 0; i < count; i++) read_at_once(e.experts.down, chosen[i].number);
    }

    // Whether an expert's tokens follow each other, so that they can stay where they are.
    bool in_place(const Chosen& c) const {
        return room.tokens[c.end - 1] - room.tokens[c.first] + 1 == c.count();
    }

    void gather() {
        const bool gate = static_cast<bool>(e.experts.gate), up_packed = is_packed(e.experts.up.matrix.encoding);
        const bool packed = up_packed || (gate && is_packed(e.experts.gate.matrix.encoding));
        const bool plain = !up_packed || (gate && !is_packed(e.experts.gate.matrix.encoding));
        const size_t groups = hidden / GROUP;
        const auto copy = [](auto* to, const auto* from, size_t n) { memcpy(to, from, n * sizeof *to); };
        share(run.tokens == 1 ? 0 : count, 1, [&](size_t start, size_t end) {
            for (size_t i = start; i < end; i++)
                for (size_t p = in_place(chosen[i]) ? chosen[i].end : chosen[i].first; p < chosen[i].end; p++) {
                    const size_t t = room.tokens[p];
                    if (plain) copy(room.gathered.x + p * hidden, run.w.normed + t * hidden, hidden);
                    if (!packed) continue;
                    const Quantized& from = run.w.quantized;
                    copy(room.gathered.q + p * hidden, from.q + t * hidden, hidden);
                    copy(room.gathered.scale + p * groups, from.scale + t * groups, groups);
                    copy(room.gathered.sum + p * groups, from.sum + t * groups, groups);
                    copy(room.gathered.offset + p * groups, from.offset + t * groups, groups);
                }
        });
    }

    static Activations rows(const Input& all, size_t in, size_t first, size_t count) {
        const size_t groups = first * (in / GROUP);
        return {all.x + first * in, all.q + first * in, all.scale + groups, all.sum + groups, all.offset + groups, count};
    }

    Activations input(const Chosen& c) const {
        if (!in_place(c)) return rows(room.gathered, hidden, c.first, c.count());
        return rows({run.w.quantized, run.w.normed}, hidden, room.tokens[c.first], c.count());
    }

    // Inner columns [from, to) of what an expert makes of its tokens, and these quantized.
    void activate(const Chosen& c, size_t from, size_t to) const {
        const Mlp& mlp = e.experts;
        const Projection gate = of_expert(mlp.gate, c.number), up = of_expert(mlp.up, c.number);
        const Activations x = input(c);
        float *ups = room.gate_up + c.first * 2 * inner, *gates = ups + c.count() * inner;
        if (gate) run.product(gate, x, gates, inner, from, to);
        run.product(up, x, ups, inner, from, to);
        const float* up_bias = up.bias ? up.bias + from : nullptr;
        const float* gate_bias = gate.bias ? gate.bias + from : nullptr;
        const size_t groups = inner / GROUP, n = to - from;
        for (size_t i = 0; i < c.count(); i++) {
            const size_t at = (c.first + i) * inner + from, group = (c.first + i) * groups + from / GROUP;
            float* out = room.inner.x + at;
            if (gate)
                run.op.gated[mlp.activation](gates + i * inner + from, gate_bias, ups + i * inner + from, up_bias, n,
                                             mlp.limit, out);
            else
                run.op.plain[mlp.activation](ups + i * inner + from, up_bias, n, out);
            if (is_packed(mlp.down.matrix.encoding))  // whole groups, because `inner` is
                run.target.quantize(out, 1, n, room.inner.q + at, room.inner.scale + group, room.inner.sum + group,
                                    room.inner.offset + group);
        }
    }

    void activate_all() const {
        share(count * inner, ROWS_AT_ONCE, [&](size_t start, size_t end) {
            while (start < end) {
                const Chosen& c = chosen[start / inner];
                const size_t from = start % inner, rest = end - start < inner - from ? end - start : inner - from;
                const size_t n = c.count() >= SHARED_TOKENS && rest > COLUMNS ? COLUMNS : rest;
                activate(c, from, from + n);
                start += n;
            }
        }, runs());
    }

    // sum = what a token's experts give, each times its weight.
    void add_up(float* sum) const {
        share(hidden, ROWS_AT_ONCE, [&](size_t from, size_t to) {
            for (size_t t = 0; t < run.tokens; t++) memset(sum + t * hidden + from, 0, (to - from) * sizeof(float));
            for (size_t i = 0; i < count; i++) {
                const Chosen& c = chosen[i];
                const Projection down = of_expert(e.experts.down, c.number);
                run.product(down, rows(room.inner, inner, c.first, c.count()), room.out, hidden, from, to);
                for (size_t j = 0; j < c.count(); j++)
                    run.op.accumulate(sum + room.tokens[c.first + j] * hidden + from, room.out + j * hidden + from,
                                      down.bias ? down.bias + from : nullptr, room.shares[c.first + j], to - from);
            }
        }, runs());
    }

    size_t runs() const { return run.tokens < SHARED_TOKENS ? RUNS : RUNS_OF_MANY; }

    // How much of the shared expert a token takes.
    float shared_share(size_t t) const {
        if (!e.shared_gate) return 1.0f;
        float ones[LANE_COUNT], gates[LANE_COUNT];
        const float gate = room.scores[t * scores_of() + e.count] + (e.shared_gate.bias ? *e.shared_gate.bias : 0.0f);
        for (size_t i = 0; i < LANE_COUNT; i++) ones[i] = 1.0f, gates[i] = gate;
        run.op.gate(ones, gates, nullptr, LANE_COUNT);
        return ones[0];
    }
};

}  // namespace

// Experts that stand apart from the MLP beside them: both, and the router, go by norms of their own of what the layer has
// so far, and the two results have norms of their own before they are added.
const Projection* Run::experts_apart(const Layer& layer) {
    Routed routed(*this, layer.experts);
    const Experts& e = layer.experts;
    const auto norm_x = [&](const Norm& norm) {
        for_tokens(tokens, [&](size_t t) {
            op.norm(w.x + t * s.hidden, norm, s.hidden, w.normed + t * s.hidden);
            if (s.hidden % GROUP == 0) quantize(w.normed, s.hidden, t);
        });
    };
    const float* bias = mlp(layer.mlp)->bias;
    float* beside = w.experts.sum;
    for_tokens(tokens, [&](size_t t) {
        float* added = w.added + t * s.hidden;
        if (bias) op.add(added, bias, nullptr, s.hidden);
        op.norm(added, e.after_shared, s.hidden, beside + t * s.hidden);
    });
    norm_x({e.router_norm, nullptr, s.eps});
    routed.route();
    norm_x(e.before);
    routed.sort();
    routed.gather();
    routed.activate_all();
    routed.add_up(w.added);
    for_tokens(tokens, [&](size_t t) {
        float* added = w.added + t * s.hidden;
        op.norm(added, e.after, s.hidden, added);
        op.add(added, beside + t * s.hidden, nullptr, s.hidden);
    });
    return &NOTHING;
}

const Projection* Run::experts(const Layer& layer) {
    if (layer.experts.router_norm) return experts_apart(layer);
    Routed routed(*this, layer.experts);
    routed.route();
    routed.sort();
    if (s.swaps) routed.read_ahead();
    routed.gather();
    routed.activate_all();
    if (!layer.mlp.up) {
        routed.add_up(w.added);
        return &NOTHING;
    }
    float* sum = w.experts.sum;
    routed.add_up(sum);
    const float* bias = mlp(layer.mlp)->bias;
    for_tokens(tokens, [&](size_t t) {
        const size_t at = t * s.hidden;
        op.accumulate(sum + at, w.added + at, bias, routed.shared_share(t), s.hidden);
    });
    w.experts.sum = w.added;
    w.added = sum;
    return &NOTHING;
}

}  // namespace edgellm
