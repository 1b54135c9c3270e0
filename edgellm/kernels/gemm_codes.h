// Products of the encodings that come from GGUF alone: Q5_0 and all that follow it in abi.h. Included after gemm_vector.h,
// inside of an anonymous namespace, by a gemm_*.cpp, which defines besides
//   field(i, low, count, to)  of every byte `count` bits from bit `low` on, moved to bit `to`
//   raised(i, by)             `by` added to every byte
//   looked_up(i, table)       of every byte, which is below 16, what the table has
//   widened8(p), widened16(p) WIDTH bytes, or 16-bit integers, as integers of 32 bits
//   LIFT<E>, READY_LIFT<KIND>  what is added to the integers of a weight for code_dots, which takes it off again
//   code_dots<Q, P, T>(w, x, in, offset, groups, acc)  as dots, of what Q::load reads; acc[h] has the sums of each half if
//                             Q::HALVES is 2
//   FEW                       tokens that read codes where they lie
//   few_vectors(kind, tokens), many_vectors(kind)  how many vectors of rows are computed at once; they divide PARTS, or that
//                             is 1
//   many_tokens(kind)         the largest T of a pass over what is ready
// A few tokens are multiplied with codes as they are unpacked (Direct). For more of them, a turn of groups is unpacked once,
// and what that gives, which is the same for all encodings of a kind, serves all the tokens (Ready).

constexpr size_t TURN_GROUPS = 16;  // that are unpacked at once: they stay in the first cache
constexpr size_t VECTOR_BYTES = 4 * WIDTH;

using U = uint32_t __attribute__((vector_size(4 * WIDTH)));
using S = int32_t __attribute__((vector_size(4 * WIDTH)));

// Vectors of scales a group that are ready.
constexpr size_t ready_scales(Kind kind) {
    return kind == PLAIN_KIND ? 1 : kind == MINIMA_KIND ? 2 : kind == HALVES_KIND ? 3 : 6;
}

// The scales of a group for a vector of rows.
struct GroupScales {
    F d, m, s[2], z[2];
};

template <int N, class Each>
ALWAYS_INLINE void each_index(const Each& f) {
    if constexpr (N > 0) {
        each_index<N - 1>(f);
        f(Code<N - 1>());
    }
}

// 2^(e - 128) of the bytes at p. As bits (e - 1) << 23, but for e of 0 and 1, which are subnormal.
inline F powers(const uint8_t* p) {
    const S e = (S)widened8(p), normal = (e - 1) << 23, least_one = (1 - (S)(e > 0)) << 21, use = normal > least_one;
    const S chosen = (normal & use) | (least_one & ~use);
    F value;
    memcpy(&value, &chosen, sizeof value);
    return value;
}

// The scales of the groups of a block for the vector of rows `part` of its tile, at `rows` in its first chunk.
template <int E>
struct BlockScales {
    static constexpr size_t G = block_groups(E), D = has_halves(E) ? 1 : G, H = has_halves(E) ? 2 * G : 1;
    F d[D], m[D], s[H], z[H];

    ALWAYS_INLINE void load(const uint8_t* rows, size_t part) {
        const uint8_t* at = rows + scales_at_byte(E);
        if constexpr (E == MXFP4) {
            d[0] = powers(at - part * WIDTH * 3);
        } else {
            const uint8_t* numbers = at + d_at_byte(E) - part * WIDTH * 2;
            const F one = halves(numbers);
            if constexpr (!is_super(E)) {
                d[0] = one;
                if constexpr (has_minima(E)) m[0] = halves(numbers + 2 * TILE);
            } else {
                steps(at, one, part);
                if constexpr (E == Q4_K || E == Q5_K) steps_and_minima(at, one, mul(halves(numbers + 2 * TILE), spread(-1)));
                if constexpr (E == Q2_K) m[0] = halves(numbers + 2 * TILE);
            }
        }
    }

    ALWAYS_INLINE GroupScales of(size_t i) const {
        GroupScales g;
        g.d = d[D == 1 ? 0 : i];
        if constexpr (has_minima(E)) g.m = m[D == 1 ? 0 : i];
        if constexpr (has_halves(E)) g.s[0] = s[2 * i], g.s[1] = s[2 * i + 1];
        if constexpr (E == Q2_K) g.z[0] = z[2 * i], g.z[1] = z[2 * i + 1];
        return g;
    }

private:
    static ALWAYS_INLINE F unsigned_byte(U v, size_t j) { return to_float((I)(v >> (8 * j) & 255)); }

    ALWAYS_INLINE void steps_and_minima(const uint8_t* at, F one, F minus) {
        const U a = (U)words(at), b = (U)words(at + 64), c = (U)words(at + 128);
        const U low = a & 0x3f3f3f3f, high = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030);
        const U low_m = b & 0x3f3f3f3f, high_m = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) {
            d[j] = mul(one, unsigned_byte(low, j));
            d[(4 + j) % D] = mul(one, unsigned_byte(high, j));
            m[j] = mul(minus, unsigned_byte(low_m, j));
            m[(4 + j) % D] = mul(minus, unsigned_byte(high_m, j));
        }
    }

    ALWAYS_INLINE void steps(const uint8_t* at, F one, size_t part) {
        if constexpr (has_halves(E)) d[0] = one;
        if constexpr (E == IQ4_XS) {
            const U low = (U)words(at), high = (U)widened16(at + 64 - part * WIDTH * 2);
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++) {
                const U step = (low >> (i % 4 * 8 + i / 4 * 4) & 15) | (high >> 2 * i & 3) << 4;
                d[i % D] = mul(one, to_float((I)((S)step - 32)));
            }
        } else if constexpr (E == Q3_K) {
            const U a = (U)words(at), b = (U)words(at + 64), c = (U)words(at + 128);
            const U of[4] = {(a & 0x0f0f0f0f) | (c << 4 & 0x30303030), (b & 0x0f0f0f0f) | (c << 2 & 0x30303030),
                             (a >> 4 & 0x0f0f0f0f) | (c & 0x30303030), (b >> 4 & 0x0f0f0f0f) | (c >> 2 & 0x30303030)};
#pragma GCC unroll 16
            for (size_t h = 0; h < 16; h++) s[h % H] = add(unsigned_byte(of[h / 4], h % 4), spread(-32));
        } else if constexpr (has_halves(E)) {
#pragma GCC unroll 4
            for (size_t word = 0; word < 4; word++) {
                const U v = (U)words(at + word * 64);
#pragma GCC unroll 4
                for (size_t j = 0; j < 4; j++) {
                    const size_t h = (4 * word + j) % H;
                    if constexpr (E == Q6_K) s[h] = to_float((I)((S)(v << (24 - 8 * j)) >> 24));
                    if constexpr (E == Q2_K) {
                        s[h] = to_float((I)(v >> (8 * j) & 15));
                        z[h] = to_float((I)(v >> (8 * j + 4) & 15));
                    }
                }
            }
        }
    }
};

// The bytes that code_dots multiplies with columns 8c ... 8c + 7: those of the first four columns, and of the others.
template <int E>
ALWAYS_INLINE void load_codes(const uint8_t* group, size_t c, I& first, I& second) {
    constexpr size_t LOW = low_bits(E), HIGH = high_bits(E);
    const auto load = [&](size_t slot) __attribute__((always_inline)) {
        I code = field(words(group + slot / (8 / LOW) * 64), slot % (8 / LOW) * LOW, LOW, 0);
        if constexpr (HIGH != 0) {
            const I high = words(group + (LOW + slot / (8 / HIGH)) * 64);
            code = (I)((U)code | (U)field(high, slot % (8 / HIGH) * HIGH, HIGH, LOW));
        }
        if constexpr (E == IQ4_NL || E == IQ4_XS) return looked_up<LIFT<E>>(code, IQ4);
        else if constexpr (E == MXFP4) return looked_up<LIFT<E>>(code, MXFP4_VALUES);
        else if constexpr (LIFT<E> != centre(E)) return raised(code, LIFT<E> - centre(E));
        else return code;
    };
    first = load(2 * c);
    second = load(2 * c + 1);
}

template <int E>
struct Direct {
    static constexpr Kind KIND = kind_of(E);
    static constexpr size_t HALVES = kind_halves(KIND);
    static constexpr int LIFTED = LIFT<E>;
    static constexpr int MOST = E == IQ4_NL || E == IQ4_XS ? 127 : E == MXFP4 ? 12 : (1 << (low_bits(E) + high_bits(E))) - 1;
    static ALWAYS_INLINE void load(const uint8_t* group, size_t c, I& first, I& second) {
        load_codes<E>(group, c, first, second);
    }
};

// A group that is ready: the bytes of columns 4s ... 4s + 3 at s * VECTOR_BYTES, for s from 0 to 7.
template <Kind K>
struct Ready {
    static constexpr Kind KIND = K;
    static constexpr size_t HALVES = kind_halves(KIND);
    static constexpr int LIFTED = READY_LIFT<K>;
    static constexpr int MOST = K == PLAIN_KIND ? 127 : K == MINIMA_KIND ? 31 : K == HALVES_KIND ? 63 : 3;
    static ALWAYS_INLINE void load(const uint8_t* group, size_t c, I& first, I& second) {
        first = words(group + 2 * c * VECTOR_BYTES);
        second = words(group + (2 * c + 1) * VECTOR_BYTES);
    }
};

// Some tokens' activations from the first one on.
struct Tokens {
    const int8_t* x;
    const float *scale, *sum;
    const int32_t* offset;
    size_t in, groups;

    Tokens(const Activations& a, size_t columns, size_t token)
        : x(a.q + token * columns), scale(a.scale + token * (columns / GROUP)), sum(a.sum + token * (columns / GROUP)),
          offset(a.offset + token * (columns / GROUP)), in(columns), groups(columns / GROUP) {}
};

// Adds group g, whose codes are at w[p] and whose scales are scales(p), to total[p][t].
template <class Q, size_t P, size_t T, class Scales>
ALWAYS_INLINE void add_group(const uint8_t* const (&w)[P], const Scales& scales, const Tokens& a, size_t g, F (&total)[P][T]) {
    I acc[Q::HALVES][P][T];
    code_dots<Q, P, T>(w, a.x + g * GROUP, a.in, a.offset + g, a.groups, acc);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++) {
        const GroupScales of = scales(p);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++) {
            const size_t at = t * a.groups + g;
            const F scale = spread(a.scale[at]);
            if constexpr (Q::KIND == MINIMA_KIND) total[p][t] = fma(of.m, spread(a.sum[at]), total[p][t]);
            if constexpr (Q::KIND == BOTH_KIND) {
                const F first = spread(static_cast<float>(first_half(a.offset[at])));
                const F second = spread(static_cast<float>(second_half(a.offset[at])));
                const F offsets = fma(of.z[1], second, mul(of.z[0], first));
                total[p][t] = fma(of.m, mul(mul(scale, spread(0.125f)), offsets), total[p][t]);
            }
            F dot = dot_value(acc[0][p][t]);
            if constexpr (Q::HALVES == 2)
                dot = fma(of.s[1], dot_value(acc[Q::HALVES - 1][p][t]), mul(of.s[0], dot));
            total[p][t] = fma(of.d, mul(scale, dot), total[p][t]);
        }
    }
}

template <size_t P, size_t T>
ALWAYS_INLINE void store_all(const F (&total)[P][T], float* y, size_t ldy, size_t v, size_t row_end) {
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++) store_rows(y + t * ldy, (v + p) * WIDTH, row_end, total[p][t]);
}

// ---- a few tokens

// P vectors of rows times the first T tokens.
template <int E, size_t P, size_t T>
void direct_block(const Matrix& w, const Activations& activations, float* y, size_t ldy, size_t v, size_t v_end,
                  size_t row_end) {
    const Tokens a(activations, w.in, 0);
    const uint8_t* rows[P];
    F total[P][T];
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++) {
        // Vectors past the last tile are the last one again, and not stored.
        rows[p] = PARTS % P == 0 ? vector_at<E>(w, v) + p * VECTOR_BYTES : vector_at<E>(w, least(v + p, v_end - 1));
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++) total[p][t] = zero();
    }
    const bool asks = v % PARTS == 0;  // of a tile's vectors only the first
    for (size_t g = 0; g < a.groups; g += block_groups(E)) {
        BlockScales<E> scales[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) scales[p].load(rows[p], (v + p) % PARTS);
        for (size_t i = 0; i < block_groups(E); i++) {
            const uint8_t* codes[P];
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                codes[p] = rows[p] + i * q_bytes(E);
                if (asks && p % PARTS == 0) fetch<E>(rows[p] + i * group_bytes(E) + AHEAD_BYTES);
            }
            add_group<Direct<E>, P, T>(codes, [&](size_t p) { return scales[p].of(i); }, a, g + i, total);
        }
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) rows[p] += block_groups(E) * group_bytes(E);
    }
    store_all(total, y, ldy, v, row_end);
}

template <int E, size_t T>
void direct_tokens(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    constexpr size_t P = few_vectors(kind_of(E), T);
    const size_t first = row_start / WIDTH, v_end = (row_end + WIDTH - 1) / WIDTH;
    if constexpr (PARTS == 1 && T <= 2) {
        if (at_hand<E>(w.in, T)) {  // one tile after the other, which memory likes best
            for (size_t v = first; v < v_end; v++) direct_block<E, 1, T>(w, a, y, ldy, v, v_end, row_end);
            return;
        }
    }
    for (size_t v = first; v < v_end; v += P) direct_block<E, P, T>(w, a, y, ldy, v, v_end, row_end);
}

// direct_tokens for all tokens, of at most T.
template <int E, size_t T>
void direct_count(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    if constexpr (T > 1) {
        if (a.tokens < T) return direct_count<E, T - 1>(w, a, y, ldy, row_start, row_end);
    }
    direct_tokens<E, T>(w, a, y, ldy, row_start, row_end);
}

// ---- more tokens

// A turn of groups for P vectors of rows, unpacked.
template <Kind K, size_t P>
struct Turnful {
    alignas(64) uint8_t codes[TURN_GROUPS][P][8 * VECTOR_BYTES];
    alignas(64) float scales[TURN_GROUPS][P][ready_scales(K)][WIDTH];
};

// Unpacks `count` groups, whole blocks, from those at rows[p] on.
template <int E, size_t P>
void make_ready(const uint8_t* const (&from)[P], size_t v, size_t count, Turnful<kind_of(E), P>& into) {
    constexpr Kind K = kind_of(E);
    for (size_t p = 0; p < P; p++) {
        const uint8_t* rows = from[p];
        for (size_t g = 0; g < count; g += block_groups(E), rows += block_groups(E) * group_bytes(E)) {
            BlockScales<E> scales;
            scales.load(rows, (v + p) % PARTS);
            for (size_t i = 0; i < block_groups(E); i++) {
                uint8_t* codes = into.codes[g + i][p];
#pragma GCC unroll 4
                for (size_t c = 0; c < 4; c++) {
                    I first, second;
                    load_codes<E>(rows + i * q_bytes(E), c, first, second);
                    if constexpr (READY_LIFT<K> != LIFT<E>) {
                        first = raised(first, READY_LIFT<K> - LIFT<E>);
                        second = raised(second, READY_LIFT<K> - LIFT<E>);
                    }
                    memcpy(codes + 2 * c * VECTOR_BYTES, &first, sizeof first);
                    memcpy(codes + (2 * c + 1) * VECTOR_BYTES, &second, sizeof second);
                }
                const GroupScales of = scales.of(i);
                float(&s)[ready_scales(K)][WIDTH] = into.scales[g + i][p];
                store(s[0], of.d);
                if constexpr (K == MINIMA_KIND) store(s[1], of.m);
                if constexpr (kind_halves(K) == 2) store(s[1], of.s[0]), store(s[2], of.s[1]);
                if constexpr (K == BOTH_KIND) store(s[3], of.z[0]), store(s[4], of.z[1]), store(s[5], of.m);
            }
        }
    }
}

template <Kind K>
ALWAYS_INLINE GroupScales ready_of(const float (&s)[ready_scales(K)][WIDTH]) {
    GroupScales of;
    of.d = load(s[0]);
    if constexpr (K == MINIMA_KIND) of.m = load(s[1]);
    if constexpr (kind_halves(K) == 2) of.s[0] = load(s[1]), of.s[1] = load(s[2]);
    if constexpr (K == BOTH_KIND) of.z[0] = load(s[3]), of.z[1] = load(s[4]), of.m = load(s[5]);
    return of;
}

// A pass of tokens over a turn: its groups [group, group + count), and its share of the next turn to fetch, one of the
// `passes` turns that have `bytes` a group from next[p] on.
template <size_t P>
struct Pass {
    size_t group, count, pass, passes, bytes;
    const uint8_t* next[P];
};

// T tokens times P vectors of rows. y begins at the first token.
template <Kind K, size_t P, size_t T>
void ready_block(const Turnful<K, P>& turn, const Pass<P>& pass, const Tokens& a, float* y, size_t ldy, size_t v,
                 size_t row_end) {
    F total[P][T];
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++)
            total[p][t] = pass.group ? load_rows(y + t * ldy, (v + p) * WIDTH, row_end) : zero();
    size_t due = v % PARTS == 0 ? pass.pass : pass.count;  // of a tile's vectors only the first fetches
    for (size_t g = 0; g < pass.count; g++) {
        if (g == due) {
            due += pass.passes;
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p += PARTS)
                for (size_t at = 0; at < pass.bytes; at += 64) __builtin_prefetch(pass.next[p] + g * pass.bytes + at);
        }
        const uint8_t* codes[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) codes[p] = turn.codes[g][p];
        add_group<Ready<K>, P, T>(codes, [&](size_t p) { return ready_of<K>(turn.scales[g][p]); }, a, pass.group + g, total);
    }
    store_all(total, y, ldy, v, row_end);
}

// ready_block for T = tokens, of at most T.
template <Kind K, size_t P, size_t T>
void ready_tokens(size_t tokens, const Turnful<K, P>& turn, const Pass<P>& pass, const Tokens& a, float* y, size_t ldy,
                  size_t v, size_t row_end) {
    if constexpr (T > 1) {
        if (tokens < T) return ready_tokens<K, P, T - 1>(tokens, turn, pass, a, y, ldy, v, row_end);
    }
    ready_block<K, P, T>(turn, pass, a, y, ldy, v, row_end);
}

// Tokens [first, end), in passes of even size over each turn.
template <int E>
void ready_passes(const Matrix& w, const Activations& activations, float* y, size_t ldy, size_t row_start, size_t row_end,
                  size_t first, size_t end) {
    constexpr Kind K = kind_of(E);
    constexpr size_t P = many_vectors(K), MOST = many_tokens(K);
    const size_t groups = w.in / GROUP, tokens = end - first, passes = (tokens + MOST - 1) / MOST;
    const size_t v_end = (row_end + WIDTH - 1) / WIDTH;
    Turnful<K, P> turn;
    for (size_t v = row_start / WIDTH; v < v_end; v += P)
        for (size_t group = 0; group < groups; group += TURN_GROUPS) {
            const size_t count = least(groups - group, TURN_GROUPS);
            const uint8_t* rows[P];
            for (size_t p = 0; p < P; p++)  // vectors past the last one are computed, and not stored
                rows[p] = vector_at<E>(w, least(v + p, v_end - 1)) + group * group_bytes(E);
            make_ready<E, P>(rows, v, count, turn);
            Pass<P> pass = {group, count, 0, passes, group_bytes(E), {}};
            for (size_t p = 0; p < P; p++) pass.next[p] = rows[p] + count * group_bytes(E);
            for (size_t token = first; pass.pass < passes; pass.pass++) {
                const size_t next = first + tokens * (pass.pass + 1) / passes;
                ready_tokens<K, P, MOST>(next - token, turn, pass, Tokens(activations, w.in, token), y + token * ldy, ldy, v,
                                         row_end);
                token = next;
            }
        }
}

template <int E>
void codes_product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    if (a.tokens == 0) return;
    if (a.tokens <= FEW) return direct_count<E, FEW>(w, a, y, ldy, row_start, row_end);
    const size_t fit = ACTIVATION_BYTES / token_bytes(w.in), at_once = fit > 64 ? fit : 64;
    const size_t rounds = (a.tokens + at_once - 1) / at_once;
    for (size_t i = 0; i < rounds; i++)
        ready_passes<E>(w, a, y, ldy, row_start, row_end, a.tokens * i / rounds, a.tokens * (i + 1) / rounds);
}

// ---- float activations

// Calls f(column, weights) for the 32 columns of group i of a block, ascending.
template <int E, class Each>
ALWAYS_INLINE void each_code(const uint8_t* rows, const BlockScales<E>& scales, size_t i, const Each& f) {
    const GroupScales of = scales.of(i);
    F d[2] = {of.d, of.d}, m[2] = {};
    if constexpr (has_halves(E)) d[0] = mul(of.d, of.s[0]), d[1] = mul(of.d, of.s[1]);
    if constexpr (kind_of(E) == MINIMA_KIND) m[0] = m[1] = of.m;
    if constexpr (E == Q2_K)
        for (size_t h = 0; h < 2; h++) m[h] = mul(mul(of.m, spread(-1)), of.z[h]);
    const auto weight = [&](size_t c, I integers) __attribute__((always_inline)) {
        F q = to_float(integers);
        if constexpr (LIFT<E> != 0) q = add(q, spread(-LIFT<E>));
        return has_minima(E) ? fma(d[c / 2], q, m[c / 2]) : mul(d[c / 2], q);
    };
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; c++) {
        I pair[2];
        load_codes<E>(rows + i * q_bytes(E), c, pair[0], pair[1]);
#pragma GCC unroll 2
        for (size_t k = 0; k < 2; k++) {
            const size_t column = 8 * c + 4 * k;
            if constexpr (LIFT<E> >= 128) {
                f(column + 0, weight(c, bits<0, 8>(pair[k])));
                f(column + 1, weight(c, bits<8, 8>(pair[k])));
                f(column + 2, weight(c, bits<16, 8>(pair[k])));
                f(column + 3, weight(c, bits<24, 8>(pair[k])));
            } else {
                f(column + 0, weight(c, byte<0>(pair[k])));
                f(column + 1, weight(c, byte<1>(pair[k])));
                f(column + 2, weight(c, byte<2>(pair[k])));
                f(column + 3, weight(c, byte<3>(pair[k])));
            }
        }
    }
}

template <int E, size_t T>
void exact_codes(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t row_end, size_t token) {
    const size_t groups = w.in / GROUP;
    const uint8_t* rows = vector_at<E>(w, v);
    F total[T];
    for (size_t t = 0; t < T; t++) total[t] = zero();
    for (size_t g = 0; g < groups; g += block_groups(E), rows += block_groups(E) * group_bytes(E)) {
        BlockScales<E> scales;
        scales.load(rows, v % PARTS);
        for (size_t i = 0; i < block_groups(E); i++) {
            const float* x = a.x + token * w.in + (g + i) * GROUP;
            F chain[4][T];
            for (size_t j = 0; j < 4; j++)
                for (size_t t = 0; t < T; t++) chain[j][t] = zero();
            each_code<E>(rows, scales, i, [&](size_t k, F weight) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (size_t t = 0; t < T; t++) chain[k % 4][t] = fma(weight, spread(x[t * w.in + k]), chain[k % 4][t]);
            });
            for (size_t t = 0; t < T; t++)
                total[t] = add(total[t], add(add(chain[0][t], chain[1][t]), add(chain[2][t], chain[3][t])));
        }
    }
    for (size_t t = 0; t < T; t++) store_rows(y + (token + t) * ldy, v * WIDTH, row_end, total[t]);
}

template <int E>
void codes_product_exact(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t v_end = (row_end + WIDTH - 1) / WIDTH;
    for (size_t tile = row_start / WIDTH; tile < v_end; tile += PARTS)
        for (size_t token = 0; token < a.tokens;) {
            const size_t count = a.tokens - token < 4 ? 1 : 4;
            for (size_t v = tile; v < least(tile + PARTS, v_end); v++) {
                if (count == 4) exact_codes<E, 4>(w, a, y, ldy, v, row_end, token);
                else exact_codes<E, 1>(w, a, y, ldy, v, row_end, token);
            }
            token += count;
        }
}

template <int E>
void dequantize_codes(const Matrix& w, size_t tile, float* into) {  // [32 columns][16 rows] a group, then turned
    for (size_t g = 0; g < w.in / GROUP; g += block_groups(E)) {
        BlockScales<E> scales[PARTS];
        const uint8_t* rows[PARTS];
        for (size_t part = 0; part < PARTS; part++) {
            rows[part] = vector_at<E>(w, tile * PARTS + part) + g * group_bytes(E);
            scales[part].load(rows[part], part);
        }
        for (size_t i = 0; i < block_groups(E); i++) {
            float columns[GROUP][TILE];
            for (size_t part = 0; part < PARTS; part++)
                each_code<E>(rows[part], scales[part], i, [&](size_t k, F weight) __attribute__((always_inline)) {
                    store(columns[k] + part * WIDTH, weight);
                });
            for (size_t r = 0; r < TILE; r++)
                for (size_t k = 0; k < GROUP; k++) into[r * w.in + (g + i) * GROUP + k] = columns[k][r];
        }
    }
}

// ---- the table

template <int E>
void packed_product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    if constexpr (is_nibbles(E) || E == INT8) integer_of<E>(w, a, y, ldy, row_start, row_end);
    else codes_product<E>(w, a, y, ldy, row_start, row_end);
}

void product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const auto packed = [&](auto code) { packed_product<code.value>(w, a, y, ldy, row_start, row_end); };
    if (with_packed(w.encoding, packed)) return;
    if (w.encoding == BF16) return plain_of<BF16>(w, a, y, ldy, row_start, row_end);
    if (w.encoding == F16) return plain_of<F16>(w, a, y, ldy, row_start, row_end);
    plain_of<F32>(w, a, y, ldy, row_start, row_end);
}

void product_exact(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const auto packed = [&](auto code) {
        constexpr int E = code.value;
        if constexpr (is_nibbles(E) || E == INT8) exact_of<E>(w, a, y, ldy, row_start, row_end);
        else codes_product_exact<E>(w, a, y, ldy, row_start, row_end);
    };
    if (!with_packed(w.encoding, packed)) product(w, a, y, ldy, row_start, row_end);
}

void dequantize(const Matrix& w, size_t row_start, size_t row_end, float* into) {
    while (row_start < row_end) {
        const bool whole = is_packed(w.encoding) && row_start % TILE == 0 && row_start + TILE <= row_end;
        const size_t rows = whole ? TILE : 1;
        const auto packed = [&](auto code) {
            constexpr int E = code.value;
            if constexpr (is_nibbles(E) || E == INT8) dequantize_tile<E>(w, row_start / TILE, into);
            else dequantize_codes<E>(w, row_start / TILE, into);
        };
        if (whole) with_packed(w.encoding, packed);
        else scalar_dequantize(w, row_start, row_start + 1, into);
        row_start += rows, into += rows * w.in;
    }
}
