// Attention over latents in Lanes, for ops_*.cpp, behind ops_attention.h: the same blocks of 64 and the same softmax.
//
// All heads of a query share the latents, which are keys and values at once, so they lie as values do: a position's
// dimensions side by side. A score is 16 chains over a key's dimensions in ascending order, those of the latent and then
// those that turn, of which chain i has dimensions i, i + 16, …; then `sum`. In 8 bits the parts have chains of their own,
// and with their scales the score is the sum of  fma(rope_scale, rope_chain, latent_scale * latent_chain).

namespace {

template <class T>
struct LatentBlock {
    const T *latents, *ropes;
    const float *latent_scales, *rope_scales;
    size_t rank, rope_dim;
};

constexpr size_t KEYS_AT_ONCE = REGISTERS >= 32 ? 4 : 1;

// One chain of each of R rows with each of K keys: a[r][k] += q[r] * key[k], over `n` dimensions.
template <class T, size_t R, size_t K>
inline void chain(Lanes (*a)[K], const float* const* q, const T* keys, size_t n) {
    for (size_t d = 0; d < n; d += LANES) {
        Lanes key[K];
#pragma GCC unroll 4
        for (size_t k = 0; k < K; k++) key[k] = load(keys + k * n + d);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++) {
            const Lanes x = load(q[r] + d);
#pragma GCC unroll 4
            for (size_t k = 0; k < K; k++) a[r][k] = fma(x, key[k], a[r][k]);
        }
    }
}

// Scores of R rows with keys [key, key + K) of a block.
template <class T, size_t R, size_t K>
inline void score_latents(Row* const* rows, const LatentBlock<T>& b, size_t key, float (*scores)[BLOCK]) {
    Lanes a[R][K];
    const float *latent[R], *rope[R];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; r++) {
        latent[r] = rows[r]->q;
        rope[r] = rows[r]->q + b.rank;
#pragma GCC unroll 4
        for (size_t k = 0; k < K; k++) a[r][k] = splat(0);
    }
    chain<T, R, K>(a, latent, b.latents + key * b.rank, b.rank);
    if constexpr (sizeof(T) == 1) {
        Lanes turned[R][K];
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++)
#pragma GCC unroll 4
            for (size_t k = 0; k < K; k++) turned[r][k] = splat(0);
        chain<T, R, K>(turned, rope, b.ropes + key * b.rope_dim, b.rope_dim);
#pragma GCC unroll 4
        for (size_t r = 0; r < R; r++)
#pragma GCC unroll 4
            for (size_t k = 0; k < K; k++)
                a[r][k] = fma(splat(b.rope_scales[key + k]), turned[r][k], mul(splat(b.latent_scales[key + k]), a[r][k]));
    } else {
        chain<T, R, K>(a, rope, b.ropes + key * b.rope_dim, b.rope_dim);
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 4
        for (size_t k = 0; k < K; k++) scores[r][key + k] = sum(a[r][k]);
}

// The first `end` keys of a block, which all of the rows see.
template <class T, size_t R>
void latent_block_of(Row* const* rows, const LatentBlock<T>& b, size_t end) {
    alignas(64) float scores[R][BLOCK];
    float factors[R];
    size_t key = 0;
    for (; key + KEYS_AT_ONCE <= end; key += KEYS_AT_ONCE) score_latents<T, R, KEYS_AT_ONCE>(rows, b, key, scores);
    for (; key < end; key++) score_latents<T, R, 1>(rows, b, key, scores);
    for (size_t r = 0; r < R; r++) {
        for (size_t i = end; i < BLOCK; i++) scores[r][i] = -__builtin_inff();
        factors[r] = soften(*rows[r], scores[r]);
        if constexpr (sizeof(T) == 1)
            for (size_t i = 0; i < end; i += KEYS)
                store(scores[r] + i, mul(load(scores[r] + i), load(b.latent_scales + i)));
    }
    weigh<T, R>(rows, factors, b.latents, b.rank, 0, end, scores);
}

template <class T>
void latent_block(Row* const* rows, size_t count, const LatentBlock<T>& b, size_t end) {
    switch (count) {
        case 1: return latent_block_of<T, 1>(rows, b, end);
        case 2: return latent_block_of<T, 2>(rows, b, end);
        case 3: return latent_block_of<T, 3>(rows, b, end);
        default: return latent_block_of<T, 4>(rows, b, end);
    }
}

template <class T>
void attend_latent_as(const LatentJob& job) {
    const size_t rank = job.latents.dim, rope_dim = job.ropes.dim, all = job.queries * job.heads;
    Row rows[MOST_ROWS];
    for (size_t i = 0; i < all; i++) {
        const size_t query = i / job.heads, head = i % job.heads;
        rows[i] = {job.q + query * job.q_stride + head * job.head_stride,
                   job.out + query * job.out_stride + head * job.out_head_stride, -__builtin_inff(), 0.0f};
        for (size_t d = 0; d < rank; d += LANES) store(rows[i].out + d, splat(0));
    }
    const auto seen = [&](size_t row, size_t start) {
        const size_t position = job.position + row / job.heads;
        return position < start ? 0 : position - start + 1 < BLOCK ? position - start + 1 : BLOCK;
    };
    for (size_t start = 0; start < job.position + job.queries; start += BLOCK) {
        const LatentBlock<T> b = {static_cast<const T*>(job.latents.values) + start * rank,
                                  static_cast<const T*>(job.ropes.values) + start * rope_dim,
                                  job.latents.value_scales + start, job.ropes.value_scales + start, rank, rope_dim};
        // Rows are taken together while they see the same part of the block.
        for (size_t i = 0; i < all;) {
            const size_t end = seen(i, start);
            size_t count = 0;
            Row* together[ROWS];
            for (; count < ROWS && i + count < all && seen(i + count, start) == end; count++)
                together[count] = &rows[i + count];
            if (end) latent_block<T>(together, count, b, end);
            i += count;
        }
    }
    for (size_t i = 0; i < all; i++) {
        const Lanes share = splat(1.0f / rows[i].total);
        for (size_t d = 0; d < rank; d += LANES) store(rows[i].out + d, mul(load(rows[i].out + d), share));
    }
}

void attend_latent(const LatentJob& job) {
    if (job.latents.encoding == INT8) return attend_latent_as<int8_t>(job);
    job.latents.encoding == F16 ? attend_latent_as<uint16_t>(job) : attend_latent_as<float>(job);
}

}  // namespace
