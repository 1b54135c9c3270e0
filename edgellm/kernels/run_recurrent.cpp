// Recurrent mixers' part of a pass: each token changes a state in its slot and reads it. Threads share heads, or channels
// of the convolution; a head's tokens go one after the other.
#include <string.h>

#include "run.h"

namespace edgellm {
namespace {

constexpr size_t CHANNELS = 64;  // of a convolution, for a thread at a time

// What a slot has of a layer: see section.h.
struct Memory {
    uint8_t* header;
    float *now, *checkpoint, *log;
};

// Tokens that go through the state: new ones, or those of the log again, which are in the same rows as new ones would be.
struct Piece {
    float* rows;
    size_t count;
    float* now;
    float* log;  // where the first `logged` of them are kept
    size_t logged;
    float* out;  // what they read, [count, inner]; null for those of the log
};

struct Recurring {
    Run& run;
    const Recurrent& r;
    size_t ld, keys;

    Recurring(Run& a, const Recurrent& b) : run(a), r(b), ld(b.rows()), keys(b.key_heads * b.key_dim) {}

    Memory memory(size_t step) const {
        uint8_t* at = run.slots[step];
        float* now = reinterpret_cast<float*>(at + STATE_HEADER_BYTES);
        return {at, now, now + r.now_floats(), now + 2 * r.now_floats()};
    }

    // Copies n floats, shared; zeros without a source.
    static void fill(float* to, const float* from, size_t n) {
        share(n, 16384, [&](size_t start, size_t end) {
            if (from)
                memcpy(to + start, from + start, (end - start) * sizeof(float));
            else
                memset(to + start, 0, (end - start) * sizeof(float));
        });
    }

    // ---- one piece

    // A convolution over channels [channel, channel + n), whose values are at `at` in the rows.
    void convolve(const Piece& piece, size_t channel, size_t n, size_t at, bool silu) const {
        const bool is_new = piece.out != nullptr, is_short = r.kind == SHORT_CONV;
        const auto bias = [&](size_t row) { return is_new && r.in.bias ? r.in.bias + row : nullptr; };
        ConvJob job = {};
        job.x = piece.rows + at;
        job.x_bias = bias(at);
        if (is_short && is_new) {
            job.times = piece.rows + channel;
            job.times_bias = bias(channel);
            job.out_times = piece.rows + r.channels + channel;
            job.out_bias = bias(r.channels + channel);
        }
        job.ldx = ld;
        job.tokens = piece.count;
        job.n = n;
        job.kernel = r.kernel;
        job.channels = r.channels;
        job.before = piece.now + channel;
        job.weight = r.conv + channel;
        job.bias = r.conv_bias ? r.conv_bias + channel : nullptr;
        job.log = piece.log + channel;
        job.ld_log = r.log_floats();
        job.logged = piece.logged;
        job.silu = silu;
        run.op.conv(job);
    }

    size_t short_at() const { return 2 * r.channels; }

    void short_conv(const Piece& piece, size_t channel, size_t n) const {
        convolve(piece, channel, n, short_at() + channel, false);
        for (size_t t = 0; piece.out && t < piece.count; t++)
            memcpy(piece.out + t * r.channels + channel, piece.rows + t * ld + short_at() + channel, n * sizeof(float));
    }

    // Where the parts of a delta rule's heads are in a row.
    struct Places {
        size_t q, k, v, z, a, b;
    };

    size_t value_heads_of_key() const { return r.value_heads / r.key_heads; }

    // The number of a key head's value head.
    size_t value_head(size_t key_head, size_t i) const {
        return r.tiled ? i * r.key_heads + key_head : key_head * value_heads_of_key() + i;
    }

    Places places(size_t key_head, size_t i) const {
        const size_t each = value_heads_of_key(), head = value_head(key_head, i);
        if (!r.interleaved) {
            const size_t z = r.channels, a = z + r.inner(), b = a + r.value_heads;
            return {key_head * r.key_dim, keys + key_head * r.key_dim, 2 * keys + head * r.value_dim,
                    z + head * r.value_dim, a + head, b + head};
        }
        const size_t q = key_head * 2 * (r.key_dim + each * r.value_dim), k = q + r.key_dim, v = k + r.key_dim;
        const size_t b = r.channels + r.inner() + key_head * 2 * each;
        return {q, k, v + i * r.value_dim, v + (each + i) * r.value_dim, b + each + i, b + i};
    }

    void delta_rule(const Piece& piece, size_t key_head) const {
        const size_t each = value_heads_of_key();
        const Places first = places(key_head, 0);
        convolve(piece, key_head * r.key_dim, r.key_dim, first.q, true);
        convolve(piece, keys + key_head * r.key_dim, r.key_dim, first.k, true);
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(r.key_dim));
        for (size_t t = 0; t < piece.count; t++) {
            run.op.unit(piece.rows + t * ld + first.q, scale, r.key_dim);
            run.op.unit(piece.rows + t * ld + first.k, 1.0f, r.key_dim);
        }
        const size_t together = r.tiled ? 1 : each;  // value heads whose gates lie side by side
        for (size_t i = 0; piece.out && i < each; i += together) {
            const size_t head = value_head(key_head, i);
            const Places at = places(key_head, i);
            for (size_t t = 0; t < piece.count; t++) {
                float *a = piece.rows + t * ld + at.a, *b = piece.rows + t * ld + at.b;
                run.op.delta_gates(a, b, r.rate + head, r.dt_bias + head, together);
                if (t >= piece.logged) continue;
                float* gates = piece.log + t * r.log_floats() + r.channels + head;
                memcpy(gates, a, together * sizeof(float));
                memcpy(gates + r.value_heads, b, together * sizeof(float));
            }
        }
        for (size_t i = 0; i < each; i++) {
            const size_t head = value_head(key_head, i), inner = r.inner();
            const Places at = places(key_head, i);
            convolve(piece, 2 * keys + head * r.value_dim, r.value_dim, at.v, true);
            StateJob job = {};
            job.state = piece.now + r.conv_floats() + head * r.head_state();
            job.q = piece.rows + at.q;
            job.k = piece.rows + at.k;
            job.v = piece.rows + at.v;
            job.decay = piece.rows + at.a;
            job.beta = piece.rows + at.b;
            job.ld = ld;
            job.tokens = piece.count;
            job.key_dim = r.key_dim;
            job.value_dim = r.value_dim;
            job.out = piece.out ? piece.out + head * r.value_dim : nullptr;
            job.ld_out = inner;
            run.op.delta_rule(job);
            for (size_t t = 0; piece.out && t < piece.count; t++) {
                float* out = job.out + t * inner;
                run.op.norm(out, {r.norm, nullptr, run.s.eps}, r.value_dim, out);
                run.op.gated[SILU](piece.rows + t * ld + at.z, nullptr, out, nullptr, r.value_dim, 0.0f, out);
            }
        }
    }

    // Mamba-2's rows: z, then x, B and C, which the convolution takes, then dt.
    size_t x_at() const { return r.inner(); }
    size_t dt_at() const { return r.inner() + r.channels; }

    void mamba2(const Piece& piece, size_t head) const {
        const size_t group = head / (r.value_heads / r.key_heads), at = dt_at() + head;
        const float* bias = r.in.bias ? r.in.bias + at : nullptr;
        for (size_t t = 0; piece.out && t < piece.count; t++) {
            float* dt = piece.rows + t * ld + at;
            run.op.time_steps(dt, bias, r.dt_bias + head, r.least_dt, r.most_dt, 1);
            if (t < piece.logged) piece.log[t * r.log_floats() + r.channels + head] = *dt;
        }
        StateJob job = {};
        job.state = piece.now + r.conv_floats() + head * r.head_state();
        job.v = piece.rows + x_at() + head * r.value_dim;
        job.k = piece.rows + x_at() + r.inner() + group * r.key_dim;
        job.q = job.k + keys;
        job.dt = piece.rows + at;
        job.ld = ld;
        job.tokens = piece.count;
        job.key_dim = r.key_dim;
        job.value_dim = r.value_dim;
        job.rate = r.rate[head];
        job.d = r.d[head];
        job.out = piece.out ? piece.out + head * r.value_dim : nullptr;
        job.ld_out = r.inner();
        run.op.mamba2(job);
    }

    void gate_and_norm(float* out, const float* z) const {
        const size_t inner = r.inner(), size = inner / r.norm_groups;
        const auto gate = [&] { run.op.gated[SILU](z, r.in.bias, out, nullptr, inner, 0.0f, out); };
        if (r.gate_first) gate();
        for (size_t i = 0; i < inner; i += size) run.op.norm(out + i, {r.norm + i, nullptr, run.s.eps}, size, out + i);
        if (!r.gate_first) gate();
    }

    // ---- pieces of several slots

    // Calls f(piece, i) for i in [0, each) of all pieces.
    template <class F>
    static void share_each(const Piece* pieces, size_t count, size_t each, const F& f) {
        share(count * each, 1, [&](size_t start, size_t end) {
            for (size_t i = start; i < end; i++) f(pieces[i / each], i % each);
        });
    }

    void advance(const Piece* pieces, size_t count) const {
        if (r.kind == DELTA_RULE)
            return share_each(pieces, count, r.key_heads, [&](const Piece& p, size_t i) { delta_rule(p, i); });
        const size_t blocks = (r.channels + CHANNELS - 1) / CHANNELS;
        share_each(pieces, count, blocks, [&](const Piece& piece, size_t i) {
            const size_t channel = i * CHANNELS, rest = r.channels - channel, n = rest < CHANNELS ? rest : CHANNELS;
            if (r.kind == SHORT_CONV)
                short_conv(piece, channel, n);
            else
                convolve(piece, channel, n, x_at() + channel, true);
        });
        if (r.kind == SHORT_CONV) return;
        share_each(pieces, count, r.value_heads, [&](const Piece& p, size_t i) { mamba2(p, i); });
    }

    // Copies the log's first tokens to rows, each value to where a new token has it behind the gates.
    void take_from_log(const float* log, size_t count, float* rows) const {
        for (size_t t = 0; t < count; t++, log += r.log_floats(), rows += ld) {
            const float* gates = log + r.channels;
            if (r.kind == SHORT_CONV) {
                memcpy(rows + short_at(), log, r.channels * sizeof(float));
            } else if (r.kind == MAMBA2) {
                memcpy(rows + x_at(), log, r.channels * sizeof(float));
                memcpy(rows + dt_at(), gates, r.value_heads * sizeof(float));
            } else {
                for (size_t i = 0; i < r.key_heads; i++) {
                    const Places at = places(i, 0);
                    memcpy(rows + at.q, log + i * r.key_dim, r.key_dim * sizeof(float));
                    memcpy(rows + at.k, log + keys + i * r.key_dim, r.key_dim * sizeof(float));
                    for (size_t j = 0; j < value_heads_of_key(); j++) {
                        const size_t head = value_head(i, j);
                        const Places of = places(i, j);
                        memcpy(rows + of.v, log + 2 * keys + head * r.value_dim, r.value_dim * sizeof(float));
                        rows[of.a] = gates[head];
                        rows[of.b] = gates[r.value_heads + head];
                    }
                }
            }
        }
    }

    // Brings a slot to where a step begins, with room in its log.
    StateHeader begin(const Memory& m, size_t position, size_t tokens) const {
        StateHeader header;
        memcpy(&header, m.header, sizeof header);
        if (position == 0) {
            fill(m.now, nullptr, r.now_floats());
            fill(m.checkpoint, nullptr, r.now_floats());
            return {0, 0, 0};
        }
        if (position != header.position) {
            header.logged = position - header.checkpoint;
            fill(m.now, m.checkpoint, r.now_floats());
            take_from_log(m.log, header.logged, run.w.replayed);
            const Piece piece = {run.w.replayed, header.logged, m.now, m.log, 0, nullptr};
            if (header.logged) advance(&piece, 1);
        }
        if (position - header.checkpoint != header.logged || header.logged + tokens > LOG_TOKENS) {
            fill(m.checkpoint, m.now, r.now_floats());
            header = {position, position, 0};
        }
        return header;
    }

    void all() const {
        Piece pieces[MOST_STEPS];
        StateHeader headers[MOST_STEPS];
        size_t first = 0;
        const size_t count = run.pass.num_steps;
        for (size_t i = 0; i < count; i++) {
            const StepSpec& step = run.pass.steps[i];
            const Memory m = memory(i);
            StateHeader& header = headers[i] = begin(m, step.position, step.tokens);
            const size_t room = LOG_TOKENS - header.logged, logged = step.tokens < room ? step.tokens : room;
            pieces[i] = {run.w.mixed + first * ld, step.tokens, m.now, m.log + header.logged * r.log_floats(), logged,
                         run.w.attended + first * r.inner()};
            header = {step.position + step.tokens, header.checkpoint, header.logged + logged};
            first += step.tokens;
        }
        advance(pieces, count);
        for (size_t i = 0; i < count; i++) memcpy(run.slots[i], &headers[i], sizeof headers[i]);
        if (r.kind == MAMBA2)
            run.for_tokens(run.tokens, [&](size_t t) { gate_and_norm(run.w.attended + t * r.inner(), run.w.mixed + t * ld); });
    }
};

}  // namespace

const Projection* Run::recurrent(const Recurrent& r) {
    const Projection* parts[] = {&r.in, &r.z, &r.a, &r.b};
    size_t count = 0;
    for (const Projection* part : parts)
        if (*part) parts[count++] = part;
    products(parts, count, w.mixed, r.rows());
    Recurring(*this, r).all();
    if (is_packed(r.out.matrix.encoding)) for_tokens(tokens, [&](size_t t) { quantize(w.attended, r.inner(), t); });
    project(r.out, w.attended, w.quantized);
    return &r.out;
}

}  // namespace edgellm
