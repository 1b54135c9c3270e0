// Attention in Lanes, for ops_*.cpp: keys in blocks of 64, each read once for up to four queries, a softmax that runs along.
//
// What a query gets depends on its position and window alone: blocks begin at multiples of 64 of the position, and within
// one, keys and dimensions go in ascending order. For each block, with scores s = sum over d of q[d] * k[d] (a chain):
//   m' = max(m, s...),  p = e^(s - m'),  l = fma(l, e^(m - m'), sum p),  out[d] = out[d] * e^(m - m'), then + p * v[d]
// where a soft cap bounds s first, and in the end out / l. In 8 bits, a key's s is multiplied by its scale, and p by the
// value's before it weighs. m begins with a head's sink, and l then with 1. Of a block that a
// query sees in part, keys out of sight are neither in s nor touched in v.

namespace {

constexpr size_t BLOCK = 4 * KEYS;
static_assert(RING % BLOCK == 0, "no block goes beyond the end of a ring");
constexpr size_t ROWS = 4;  // that share what is read

struct Row {
    const float* q;
    float* out;
    float most, total;  // of the softmax so far
};

// A block's keys and values, and the scales of those in 8 bits.
template <class T>
struct Block {
    const T *keys, *values;
    const float *key_scales, *value_scales;
    size_t dim;
    static constexpr bool scaled = sizeof(T) == 1;
};

// Scores of `R` rows with keys [first, end), whole tiles of them: from end to end, as memory is fastest.
template <class T, size_t R>
void score(Row* const* rows, const Block<T>& b, size_t first, size_t end, float (*scores)[BLOCK]) {
    const size_t dim = b.dim;
    for (size_t tile = first / KEYS * KEYS; tile < end; tile += KEYS) {
        Lanes s[R];
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++) s[r] = splat(0);
        for (size_t d = 0; d < dim; d++) {
            const Lanes k = load(b.keys + tile * dim + d * KEYS);
#pragma GCC unroll 8
            for (size_t r = 0; r < R; r++) s[r] = fma(splat(rows[r]->q[d]), k, s[r]);
        }
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++) {
            if constexpr (Block<T>::scaled) s[r] = mul(s[r], load(b.key_scales + tile));
            store(scores[r] + tile, s[r]);
        }
    }
}

// Scores to probabilities; the factor for what was summed before.
inline float soften(Row& row, float* scores) {
    Lanes s[4];
    for (size_t t = 0; t < 4; t++) s[t] = load(scores + t * KEYS);
    const float before = row.most, now = largest(most(most(s[0], s[1]), most(s[2], s[3])));
    row.most = now > before ? now : before;
    for (size_t t = 0; t < 4; t++) {
        s[t] = exp(sub(s[t], splat(row.most)));
        store(scores + t * KEYS, s[t]);
    }
    float factor[LANES];
    store(factor, exp(splat(before - row.most)));
    row.total = __builtin_fmaf(row.total, factor[0], sum(add(add(s[0], s[1]), add(s[2], s[3]))));
    return factor[0];
}

// out = out * factor + sum over keys [first, end) of p * v, for P registers of dimensions.
template <class T, size_t R, size_t P>
inline void weigh_panel(Row* const* rows, const float* factors, const T* values, size_t dim, size_t at, size_t first,
                        size_t end, const float (*p)[BLOCK]) {
    Lanes out[R][P];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
        for (size_t i = 0; i < P; i++) out[r][i] = mul(load(rows[r]->out + at + i * LANES), splat(factors[r]));
    for (size_t key = first; key < end; key++) {
        Lanes v[P];
#pragma GCC unroll 8
        for (size_t i = 0; i < P; i++) v[i] = load(values + key * dim + at + i * LANES);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++) {
            const Lanes weight = splat(p[r][key]);
#pragma GCC unroll 8
            for (size_t i = 0; i < P; i++) out[r][i] = fma(weight, v[i], out[r][i]);
        }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
        for (size_t i = 0; i < P; i++) store(rows[r]->out + at + i * LANES, out[r][i]);
}

template <class T, size_t R>
void weigh(Row* const* rows, const float* factors, const T* values, size_t dim, size_t first, size_t end,
           const float (*p)[BLOCK]) {
    constexpr size_t MOST = REGISTERS >= 32 ? (R == 4 ? 6 : 8) : REGISTERS >= 8 ? (R == 1 ? 4 : R <= 3 ? 2 : 1) : 1;
    size_t at = 0;
    for (; at + MOST * LANES <= dim; at += MOST * LANES)
        weigh_panel<T, R, MOST>(rows, factors, values, dim, at, first, end, p);
    if constexpr (MOST > 4)
        for (; at + 4 * LANES <= dim; at += 4 * LANES)
            weigh_panel<T, R, 4>(rows, factors, values, dim, at, first, end, p);
    if constexpr (MOST > 2)
        for (; at + 2 * LANES <= dim; at += 2 * LANES)
            weigh_panel<T, R, 2>(rows, factors, values, dim, at, first, end, p);
    for (; at < dim; at += LANES) weigh_panel<T, R, 1>(rows, factors, values, dim, at, first, end, p);
}

// Keys [first, end) of a block, which all of the rows see.
template <class T, size_t R>
void block_of(Row* const* rows, const Block<T>& b, size_t first, size_t end, float soft_cap) {
    alignas(64) float scores[R][BLOCK];
    if (end - first < BLOCK)
        for (size_t r = 0; r < R; r++)
            for (size_t i = 0; i < BLOCK; i++) scores[r][i] = -__builtin_inff();
    score<T, R>(rows, b, first, end, scores);
    float factors[R];
    for (size_t r = 0; r < R; r++) {
        if (soft_cap != 0.0f)
            for (size_t i = first / KEYS * KEYS; i < end; i += KEYS)
                store(scores[r] + i, soft_capped(load(scores[r] + i), soft_cap));
        for (size_t i = first / KEYS * KEYS; i < first; i++) scores[r][i] = -__builtin_inff();
        for (size_t i = end; i % KEYS; i++) scores[r][i] = -__builtin_inff();
        factors[r] = soften(*rows[r], scores[r]);
        if constexpr (Block<T>::scaled)
            for (size_t i = first / KEYS * KEYS; i < end; i += KEYS)
                store(scores[r] + i, mul(load(scores[r] + i), load(b.value_scales + i)));
    }
    weigh<T, R>(rows, factors, b.values, b.dim, first, end, scores);
}

template <class T>
void block(Row* const* rows, size_t count, const Block<T>& b, size_t first, size_t end, float soft_cap) {
    switch (count) {
        case 1: return block_of<T, 1>(rows, b, first, end, soft_cap);
        case 2: return block_of<T, 2>(rows, b, first, end, soft_cap);
        case 3: return block_of<T, 3>(rows, b, first, end, soft_cap);
        default: return block_of<T, 4>(rows, b, first, end, soft_cap);
    }
}

template <class T>
void attend_as(const AttentionJob& job) {
    const size_t dim = job.kv.dim, all = job.queries * job.heads;
    Row rows[MOST_ROWS];
    for (size_t i = 0; i < all; i++) {
        const size_t query = i / job.heads, head = i % job.heads;
        rows[i] = {job.q + query * job.q_stride + head * job.head_stride, job.out + query * job.out_stride + head * dim,
                   job.sinks ? job.sinks[head] : -__builtin_inff(), job.sinks ? 1.0f : 0.0f};
        for (size_t d = 0; d < dim; d += LANES) store(rows[i].out + d, splat(0));
    }
    const auto sees_from = [&](size_t position) {
        return job.window && position >= job.window ? position - job.window + 1 : 0;
    };
    const size_t until = job.position + job.queries;  // of the last query
    for (size_t start = sees_from(job.position) / BLOCK * BLOCK; start < until; start += BLOCK) {
        const size_t at = start % job.kv.kept;  // blocks lie in one piece
        const Block<T> b = {static_cast<const T*>(job.kv.keys) + at * dim, static_cast<const T*>(job.kv.values) + at * dim,
                            job.kv.key_scales + at, job.kv.value_scales + at, dim};
        // Rows are taken together while they see the same part of the block.
        for (size_t i = 0; i < all;) {
            const auto sight = [&](size_t row, size_t* first, size_t* end) {
                const size_t position = job.position + row / job.heads, from = sees_from(position);
                *first = from <= start ? 0 : from - start < BLOCK ? from - start : BLOCK;
                *end = position < start ? 0 : position - start + 1 < BLOCK ? position - start + 1 : BLOCK;
            };
            size_t first, end, first_too, end_too, count = 1;
            sight(i, &first, &end);
            Row* together[ROWS] = {&rows[i]};
            for (; count < ROWS && i + count < all; count++) {
                sight(i + count, &first_too, &end_too);
                if (first_too != first || end_too != end) break;
                together[count] = &rows[i + count];
            }
            if (first < end) block<T>(together, count, b, first, end, job.soft_cap);
            i += count;
        }
    }
    for (size_t i = 0; i < all; i++) {
        const Lanes share = splat(1.0f / rows[i].total);
        for (size_t d = 0; d < dim; d += LANES) store(rows[i].out + d, mul(load(rows[i].out + d), share));
    }
}

void attend(const AttentionJob& job) {
    if (job.kv.encoding == INT8) return attend_as<int8_t>(job);
    job.kv.encoding == F16 ? attend_as<uint16_t>(job) : attend_as<float>(job);
}

}  // namespace
