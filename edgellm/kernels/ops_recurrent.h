// Recurrent mixers in Lanes, for ops_*.cpp: a convolution over the last tokens, and states that each token decays, adds to
// and reads.
//
// What a token gets depends on what was before it alone, token by token, in any chunk:
//   convolution   y = bias, or 0; then for each row of the kernel, the oldest token first, y = fma(weight, x, y)
//   delta rule    m[j] = sum over i of k[i] * (decay * S[i][j]), a chain in ascending order, and u = beta * (v - m)
//   Mamba-2       decay = exp(-rate * dt), u = dt * v
//   both          S[i][j] = fma(k[i], u[j], decay * S[i][j]), and the result is the chain of q[i] * S[i][j], i ascending;
//                 of Mamba-2, d * v is added to it
// The columns j of a state don't depend on each other. So some of them, few enough to stay in the nearest cache, go through
// all tokens before the next ones.

namespace {

// log(1 + e^x), to about 1 ulp: with y = e^-|x| it is max(x, 0) + 2 artanh(y / (2 + y)), a short series.
inline Lanes softplus(Lanes x) {
    const Lanes y = exp(least(x, sub(splat(0.0f), x))), z = div(y, add(splat(2.0f), y)), w = mul(z, z);
    Lanes p = splat(1.0f / 17);
    for (int n = 15; n > 0; n -= 2) p = fma(p, w, splat(1.0f / static_cast<float>(n)));
    return fma(mul(splat(2.0f), z), p, most(x, splat(0.0f)));
}

// Calls f for LANES values at a time; of the last ones, copies, filled up.
template <class F>
inline void each_lanes(size_t n, const F& f) {
    for (size_t i = 0; i < n; i += LANES) f(i, n - i < LANES ? n - i : LANES);
}

inline Lanes load_some(const float* p, size_t n) {
    float values[LANES] = {};
    memcpy(values, p, n * sizeof(float));
    return load(values);
}

inline void store_some(float* p, Lanes a, size_t n) {
    float values[LANES];
    store(values, a);
    memcpy(p, values, n * sizeof(float));
}

template <size_t K>
void conv_of(const ConvJob& job) {
    for (size_t i = 0; i < job.n; i += LANES) {
        const auto plus = [=](Lanes x, const float* bias) { return bias ? add(x, load(bias + i)) : x; };
        Lanes x[K], weight[K];  // x[K - 1] is the token at hand
        for (size_t j = 0; j < K; j++) weight[j] = load(job.weight + j * job.channels + i);
        for (size_t j = 0; j + 1 < K; j++) x[j] = load(job.before + j * job.channels + i);
        for (size_t t = 0; t < job.tokens; t++) {
            const size_t at = t * job.ldx + i;
            x[K - 1] = plus(load(job.x + at), job.x_bias);
            if (job.times) x[K - 1] = mul(x[K - 1], plus(load(job.times + at), job.times_bias));
            if (t < job.logged) store(job.log + t * job.ld_log + i, x[K - 1]);
            Lanes y = plus(splat(0.0f), job.bias);
#pragma GCC unroll 8
            for (size_t j = 0; j < K; j++) y = fma(weight[j], x[j], y);
            if (job.silu) y = silu(y);
            if (job.out_times) y = mul(y, plus(load(job.out_times + at), job.out_bias));
            store(job.x + at, y);
#pragma GCC unroll 8
            for (size_t j = 0; j + 1 < K; j++) x[j] = x[j + 1];
        }
        for (size_t j = 0; j + 1 < K; j++) store(job.before + j * job.channels + i, x[j]);
    }
}

void conv(const ConvJob& job) {
    static_assert(MOST_KERNEL == 8, "the cases below");
    switch (job.kernel) {
        case 1: return conv_of<1>(job);
        case 2: return conv_of<2>(job);
        case 3: return conv_of<3>(job);
        case 4: return conv_of<4>(job);
        case 5: return conv_of<5>(job);
        case 6: return conv_of<6>(job);
        case 7: return conv_of<7>(job);
        default: return conv_of<8>(job);
    }
}

void unit(float* x, float scale, size_t n) {
    const float squares = sum_of(n, [&](size_t i, Lanes a) { return fma(load(x + i), load(x + i), a); });
    scale_by(x, scale / __builtin_sqrtf(squares + 1e-6f), n);
}

void delta_gates(float* a, float* b, const float* rate, const float* dt_bias, size_t n) {
    each_lanes(n, [&](size_t i, size_t some) {
        const Lanes dt = softplus(add(load_some(a + i, some), load_some(dt_bias + i, some)));
        store_some(a + i, exp(sub(splat(0.0f), mul(load_some(rate + i, some), dt))), some);
        store_some(b + i, sigmoid(load_some(b + i, some)), some);
    });
}

void time_steps(float* dt, const float* bias, const float* dt_bias, float least_dt, float most_dt, size_t n) {
    each_lanes(n, [&](size_t i, size_t some) {
        Lanes x = load_some(dt + i, some);
        if (bias) x = add(x, load_some(bias + i, some));
        x = softplus(add(x, load_some(dt_bias + i, some)));
        store_some(dt + i, most(splat(least_dt), least(splat(most_dt), x)), some);
    });
}

// u[p] to P columns of LANES of the state, and what q then reads of them.
template <size_t P>
inline void add_and_read(float* state, size_t next, const float* k, const float* q, size_t key_dim, Lanes decay,
                         const Lanes* u, Lanes* read) {
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++) read[p] = splat(0.0f);
    for (size_t i = 0; i < key_dim; i++) {
        const Lanes key = splat(k[i]), query = splat(q[i]);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            float* at = state + p * next + i * LANES;
            const Lanes s = fma(key, u[p], mul(load(at), decay));
            store(at, s);
            read[p] = fma(query, s, read[p]);
        }
    }
}

template <size_t P>
void delta_columns(const StateJob& job, size_t column) {
    const size_t next = job.key_dim * LANES;
    float* state = job.state + column * job.key_dim;
    for (size_t t = 0; t < job.tokens; t++) {
        const float *q = job.q + t * job.ld, *k = job.k + t * job.ld, *v = job.v + t * job.ld + column;
        const Lanes decay = splat(job.decay[t * job.ld]), beta = splat(job.beta[t * job.ld]);
        Lanes u[P], read[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) u[p] = splat(0.0f);
        for (size_t i = 0; i < job.key_dim; i++) {
            const Lanes key = splat(k[i]);
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) u[p] = fma(key, mul(load(state + p * next + i * LANES), decay), u[p]);
        }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) u[p] = mul(sub(load(v + p * LANES), u[p]), beta);
        add_and_read<P>(state, next, k, q, job.key_dim, decay, u, read);
        for (size_t p = 0; job.out && p < P; p++) store(job.out + t * job.ld_out + column + p * LANES, read[p]);
    }
}

template <size_t P>
void mamba2_columns(const StateJob& job, size_t column) {
    const size_t next = job.key_dim * LANES;
    float* state = job.state + column * job.key_dim;
    for (size_t t = 0; t < job.tokens; t++) {
        const float *q = job.q + t * job.ld, *k = job.k + t * job.ld, *v = job.v + t * job.ld + column;
        const Lanes dt = splat(job.dt[t * job.ld]), decay = exp(sub(splat(0.0f), mul(splat(job.rate), dt)));
        Lanes u[P], read[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) u[p] = mul(dt, load(v + p * LANES));
        add_and_read<P>(state, next, k, q, job.key_dim, decay, u, read);
        for (size_t p = 0; job.out && p < P; p++)
            store(job.out + t * job.ld_out + column + p * LANES, fma(splat(job.d), load(v + p * LANES), read[p]));
    }
}

constexpr size_t COLUMNS = REGISTERS >= 8 ? (REGISTERS >= 32 ? 4 : 2) : 1;  // of LANES, at once

void delta_rule(const StateJob& job) {
    size_t column = 0;
    for (; column + COLUMNS * LANES <= job.value_dim; column += COLUMNS * LANES) delta_columns<COLUMNS>(job, column);
    for (; column < job.value_dim; column += LANES) delta_columns<1>(job, column);
}

void mamba2(const StateJob& job) {
    size_t column = 0;
    for (; column + COLUMNS * LANES <= job.value_dim; column += COLUMNS * LANES) mamba2_columns<COLUMNS>(job, column);
    for (; column < job.value_dim; column += LANES) mamba2_columns<1>(job, column);
}

}  // namespace
