// The functions of an Ops table, written in Lanes. Sizes are multiples of LANES. See ops.h.

using namespace edgellm;

namespace {

// Sum of squares and sums: four chains over registers, then ((0 + 1) + (2 + 3)), then the lanes.
template <class F>
inline float sum_of(size_t n, const F& f) {
    Lanes chains[4] = {splat(0), splat(0), splat(0), splat(0)};
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
#pragma GCC unroll 4
        for (size_t c = 0; c < 4; c++) chains[c] = f(i + c * LANES, chains[c]);
#pragma GCC unroll 3
    for (size_t c = 0; c < 3; c++)
        if (i + c * LANES < n) chains[c] = f(i + c * LANES, chains[c]);
    return sum(add(add(chains[0], chains[1]), add(chains[2], chains[3])));
}

void add_to(float* x, const float* added, const float* bias, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        Lanes v = load(added + i);
        if (bias) v = add(v, load(bias + i));
        store(x + i, add(load(x + i), v));
    }
}

void norm_of(const float* x, const Norm& norm, size_t n, float* out) {
    const float count = static_cast<float>(n);
    if (norm.bias == nullptr) {
        const float squares = sum_of(n, [&](size_t i, Lanes a) { return fma(load(x + i), load(x + i), a); });
        const Lanes scale = splat(1.0f / __builtin_sqrtf(squares / count + norm.eps));
        for (size_t i = 0; i < n; i += LANES)
            store(out + i, mul(load(norm.weight + i), mul(load(x + i), scale)));
        return;
    }
    const Lanes mean = splat(sum_of(n, [&](size_t i, Lanes a) { return add(a, load(x + i)); }) / count);
    const float squares = sum_of(n, [&](size_t i, Lanes a) {
        const Lanes d = sub(load(x + i), mean);
        return fma(d, d, a);
    });
    const Lanes scale = splat(1.0f / __builtin_sqrtf(squares / count + norm.eps));
    for (size_t i = 0; i < n; i += LANES)
        store(out + i, fma(mul(sub(load(x + i), mean), scale), load(norm.weight + i), load(norm.bias + i)));
}

void add_and_norm(float* x, const float* added, const float* bias, const Norm& norm, size_t n, float* out) {
    if (added) add_to(x, added, bias, n);
    norm_of(x, norm, n, out);
}

void scale_by(float* x, float scale, size_t n) {
    for (size_t i = 0; i < n; i += LANES) store(x + i, mul(load(x + i), splat(scale)));
}

inline void scale_head(float* x, const HeadJob& job) {
    if (job.scale != 1.0f) scale_by(x, job.scale, job.dim);
}

void head(float* x, const HeadJob& job) {
    if (job.bias)
        for (size_t i = 0; i < job.dim; i += LANES) store(x + i, add(load(x + i), load(job.bias + i)));
    if (job.norm) norm_of(x, {job.norm, nullptr, job.eps}, job.dim, x);
    if (job.interleaved) {
        for (size_t j = 0; j < job.half; j++) {
            const float a = x[2 * j], b = x[2 * j + 1], c = job.cos[j], s = job.sin[j];
            x[2 * j] = a * c - b * s;
            x[2 * j + 1] = b * c + a * s;
        }
        return scale_head(x, job);
    }
    float* y = x + job.half;
    size_t i = 0;
    for (; i + LANES <= job.half; i += LANES) {
        const Lanes a = load(x + i), b = load(y + i), c = load(job.cos + i), s = load(job.sin + i);
        store(x + i, sub(mul(a, c), mul(b, s)));
        store(y + i, add(mul(b, c), mul(a, s)));
    }
    for (; i < job.half; i++) {
        const float a = x[i], b = y[i], c = job.cos[i], s = job.sin[i];
        x[i] = a * c - b * s;
        y[i] = b * c + a * s;
    }
    scale_head(x, job);
}

inline Lanes within_half(Lanes a) { return most(splat(-65504.0f), least(splat(65504.0f), a)); }

inline void store_as(uint16_t* p, Lanes a) { store(p, within_half(a)); }
inline void store_as(float* p, Lanes a) { store(p, a); }

// Calls put(i, q) for each dimension i of x[n], in 8 bits as ops.h says; returns their scale.
template <class F>
inline float in_8_bits(const float* x, size_t n, const F& put) {
    Lanes largest_yet = splat(0), not_finite = splat(0);
    for (size_t i = 0; i < n; i += LANES) {
        const Lanes v = load(x + i);
        largest_yet = most(largest_yet, most(v, sub(splat(0), v)));
        not_finite = fma(v, splat(0), not_finite);  // infinities and NaN times 0 are NaN
    }
    const float a = largest(largest_yet);
    if (!(sum(not_finite) == 0.0f) || a < 0x1p-100f) {
        for (size_t i = 0; i < n; i++) put(i, int8_t{0});
        return sum(not_finite) == 0.0f ? 0.0f : __builtin_nanf("");
    }
    const Lanes inverse = splat(127.0f / a), shift = splat(12582912.0f);  // 1.5 * 2^23: see exp
    for (size_t i = 0; i < n; i += LANES) {
        float shifted[LANES];
        store(shifted, add(mul(load(x + i), inverse), shift));
        for (size_t k = 0; k < LANES; k++) put(i + k, static_cast<int8_t>(to_bits(shifted[k]) & 0xff));
    }
    return a / 127.0f;
}

template <class T>
void store_key_as(T* tile, size_t dim, const float* key) {
    for (size_t d = 0; d < dim; d += LANES) {
        T values[LANES];
        store_as(values, load(key + d));
        for (size_t i = 0; i < LANES; i++) tile[(d + i) * KEYS] = values[i];
    }
}

void store_key(const KeysValues& kv, size_t position, const float* key) {
    const size_t place = position % kv.kept, at = place / KEYS * KEYS * kv.dim + place % KEYS;
    if (kv.encoding == INT8) {
        int8_t* tile = static_cast<int8_t*>(kv.keys) + at;
        kv.key_scales[place] = in_8_bits(key, kv.dim, [=](size_t i, int8_t q) { tile[i * KEYS] = q; });
    } else if (kv.encoding == F16) {
        store_key_as(static_cast<uint16_t*>(kv.keys) + at, kv.dim, key);
    } else {
        store_key_as(static_cast<float*>(kv.keys) + at, kv.dim, key);
    }
}

template <class T>
void store_value_as(T* row, size_t dim, const float* value, const float* bias) {
    for (size_t d = 0; d < dim; d += LANES) {
        const Lanes v = load(value + d);
        store_as(row + d, bias ? add(v, load(bias + d)) : v);
    }
}

void store_value(const KeysValues& kv, size_t position, const float* value, const float* bias) {
    const size_t place = position % kv.kept, at = place * kv.dim;
    if (kv.encoding == INT8) {
        float biased[MOST_HEAD_DIM];
        store_value_as(biased, kv.dim, value, bias);
        int8_t* row = static_cast<int8_t*>(kv.values) + at;
        kv.value_scales[place] = in_8_bits(biased, kv.dim, [=](size_t i, int8_t q) { row[i] = q; });
    } else if (kv.encoding == F16) {
        store_value_as(static_cast<uint16_t*>(kv.values) + at, kv.dim, value, bias);
    } else {
        store_value_as(static_cast<float*>(kv.values) + at, kv.dim, value, bias);
    }
}

inline Lanes sigmoid(Lanes x) { return div(splat(1.0f), add(splat(1.0f), exp(sub(splat(0.0f), x)))); }
inline Lanes silu(Lanes x) { return div(x, add(splat(1.0f), exp(sub(splat(0.0f), x)))); }

// x/2 * (1 + tanh(u)) is x / (1 + e^-2u), with u = sqrt(2/pi) * (x + 0.044715 x^3).
inline Lanes gelu_tanh(Lanes x) {
    const Lanes u = fma(mul(splat(0.044715f), mul(x, x)), x, x);
    return div(x, add(splat(1.0f), exp(mul(splat(-1.59576912160573071f), u))));
}

// cap * tanh(x / cap) is cap * (1 - 2 / (1 + e^(2x/cap))).
inline Lanes soft_capped(Lanes x, float cap) {
    const Lanes e = exp(mul(x, splat(2.0f / cap)));
    return mul(splat(cap), sub(splat(1.0f), div(splat(2.0f), add(splat(1.0f), e))));
}

void gate(float* x, const float* gate, const float* bias, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        Lanes g = load(gate + i);
        if (bias) g = add(g, load(bias + i));
        store(x + i, mul(load(x + i), sigmoid(g)));
    }
}

void bound(float* x, float scale, float cap, size_t n) {
    const auto bounded = [=](Lanes v) {
        v = mul(v, splat(scale));
        return cap == 0.0f ? v : soft_capped(v, cap);
    };
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(x + i, bounded(load(x + i)));
    if (i == n) return;
    float rest[LANES] = {};
    memcpy(rest, x + i, (n - i) * sizeof(float));
    store(rest, bounded(load(rest)));
    memcpy(x + i, rest, (n - i) * sizeof(float));
}

// Calls f(gate, up), each with its bias, for LANES values at a time.
template <class F>
inline void each_gated(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n,
                       float* out, const F& f) {
    for (size_t i = 0; i < n; i += LANES) {
        Lanes g = load(gate + i), u = load(up + i);
        if (gate_bias) g = add(g, load(gate_bias + i));
        if (up_bias) u = add(u, load(up_bias + i));
        store(out + i, f(g, u));
    }
}

template <class F>
inline void each_plain(const float* x, const float* bias, size_t n, float* out, const F& f) {
    for (size_t i = 0; i < n; i += LANES) {
        Lanes v = load(x + i);
        if (bias) v = add(v, load(bias + i));
        store(out + i, f(v));
    }
}

void silu_gated(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n, float,
                float* out) {
    each_gated(gate, gate_bias, up, up_bias, n, out, [](Lanes g, Lanes u) { return mul(silu(g), u); });
}

void gelu_gated(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n, float,
                float* out) {
    each_gated(gate, gate_bias, up, up_bias, n, out, [](Lanes g, Lanes u) { return mul(gelu_tanh(g), u); });
}

void relu_squared_gated(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n, float,
                        float* out) {
    each_gated(gate, gate_bias, up, up_bias, n, out, [](Lanes g, Lanes u) {
        const Lanes positive = most(g, splat(0.0f));
        return mul(mul(positive, positive), u);
    });
}

void swiglu_clamped(const float* gate, const float* gate_bias, const float* up, const float* up_bias, size_t n,
                    float limit, float* out) {
    each_gated(gate, gate_bias, up, up_bias, n, out, [=](Lanes g, Lanes u) {
        g = least(g, splat(limit));
        u = most(splat(-limit), least(u, splat(limit)));
        return mul(mul(g, sigmoid(mul(splat(1.702f), g))), add(u, splat(1.0f)));
    });
}

void silu_plain(const float* x, const float* bias, size_t n, float* out) {
    each_plain(x, bias, n, out, [](Lanes v) { return silu(v); });
}

void gelu_plain(const float* x, const float* bias, size_t n, float* out) {
    each_plain(x, bias, n, out, [](Lanes v) { return gelu_tanh(v); });
}

void relu_squared_plain(const float* x, const float* bias, size_t n, float* out) {
    each_plain(x, bias, n, out, [](Lanes v) {
        const Lanes positive = most(v, splat(0.0f));
        return mul(positive, positive);
    });
}

}  // namespace
