// The loops of every vector instruction set. Included inside of an anonymous namespace by a gemm_*.cpp, which defines
//   WIDTH                               floats in a vector
//   F, I                                vectors of WIDTH floats, and of as many 32-bit integers
//   load, store, zero, spread, add, mul, fma(a, b, c), halves(p)  on F; halves reads fp16
//   words(p), bits<low, count>(i) (unsigned), byte<j>(i) (signed), to_float(i)  on I
//   widen<E>(p)                         WIDTH values of a plain weight
//   dots<E, P, T>(w, x, in, offset, groups, acc)   acc[p][t] = the dot products of a group, for P vectors of rows and T
//                                       tokens: rows at w[p], token t at x + t * in, its offset at offset[t * groups],
//                                       whose two numbers are -8 times the sums of its halves: add them to those of INT4S
//   dot_value(acc)                      the dot products that dots left in acc[p][t], as floats; exact, being small
//   most_tokens<E>()                    the largest T; more tokens take several passes over the same weights
//   vectors_at_once<E>(tokens, order)   P
//   asks_ahead<E>(tokens, order)        whether weights are asked for before their use
// A packed weight is seen as vectors of WIDTH rows: 16 / WIDTH of them are a tile.

constexpr size_t PARTS = TILE / WIDTH;                // vectors a tile, or a canonical 16 lanes
constexpr size_t TURN_BYTES = 20 << 10;                // of a tile, for many tokens: they stay in the first cache
constexpr size_t ACTIVATION_BYTES = 512 << 10;        // of tokens that pass together: they stay in the second cache
constexpr size_t AHEAD_BYTES = 2048;                  // how far before its use a weight is asked for

constexpr size_t FIRST_CACHE_BYTES = 32 << 10;

// Bytes of a token's activations.
constexpr size_t token_bytes(size_t in) { return in + in / GROUP * 12; }

// Whether activations stay in the first cache from one tile to the next, or are little beside a tile.
template <int E>
constexpr bool at_hand(size_t in, size_t tokens) {
    const size_t x = tokens * token_bytes(in), tile = stride_bytes(E, in);
    return tile + x <= FIRST_CACHE_BYTES || (x <= FIRST_CACHE_BYTES / 4 && 10 * x <= tile);
}

constexpr size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Which part of a packed weight is computed, and what is fetched meanwhile.
struct Turn {
    size_t group, group_end;  // of the columns
    size_t ahead_bytes;       // between a group and the one to fetch
    size_t pass, passes;      // one of several over the same weights: each fetches its share
};

template <int E>
inline const uint8_t* vector_at(const Matrix& w, size_t v) {
    return w.data + v / PARTS * stride_bytes(E, w.in) + v % PARTS * (WIDTH * 4);
}

template <int E>
inline const uint8_t* scales_at(const Matrix& w, size_t v) {
    return w.data + v / PARTS * stride_bytes(E, w.in) + q_bytes(E) + v % PARTS * (WIDTH * 2);
}

template <int E>
ALWAYS_INLINE void fetch(const uint8_t* group) {
    for (size_t at = 0; at < group_bytes(E); at += 64) __builtin_prefetch(group + at);
}

// Stores a vector of results for rows from n on, as far as they are asked for.
inline void store_rows(float* y, size_t n, size_t row_end, F value) {
    if (n + WIDTH <= row_end) return store(y + n, value);
    float values[WIDTH];
    store(values, value);
    for (size_t i = 0; n + i < row_end; i++) y[n + i] = values[i];
}

inline F load_rows(const float* y, size_t n, size_t row_end) {
    if (n + WIDTH <= row_end) return load(y + n);
    float values[WIDTH] = {};
    for (size_t i = 0; n + i < row_end; i++) values[i] = y[n + i];
    return load(values);
}

// ---- packed weights, integer activations

template <int E, size_t P, size_t T, Order ORDER>
inline void integer_block(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t row_end,
                          size_t token, const Turn& turn) {
    const size_t groups = w.in / GROUP;
    const uint8_t *rows[P], *scales[P];
    F total[P][T];
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++) {
        // Vectors of one tile at fixed distances, so that the compiler needs one address for them all.
        constexpr bool one_tile = PARTS % P == 0;
        rows[p] = one_tile ? vector_at<E>(w, v) + p * WIDTH * 4 : vector_at<E>(w, v + p);
        scales[p] = one_tile ? scales_at<E>(w, v) + p * WIDTH * 2 : scales_at<E>(w, v + p);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++)
            total[p][t] = turn.group ? load_rows(y + (token + t) * ldy, (v + p) * WIDTH, row_end) : zero();
    }
    const size_t at = token * groups;
    const float *scale = a.scale + at, *sum = a.sum + at;
    const int32_t* offset = a.offset + at;
    const int8_t* x = a.q + token * w.in;
    // The next group at which to fetch ahead. Of a tile's vectors only the first fetch; each pass fetches its share.
    size_t due = asks_ahead<E>(T, ORDER) && v % PARTS == 0 ? turn.group + turn.pass : turn.group_end;
    for (size_t g = turn.group; g < turn.group_end; g++) {
        const uint8_t* group_rows[P];
        I acc[P][T];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) group_rows[p] = rows[p] + g * group_bytes(E);
        if (g == due) {
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p += PARTS) fetch<E>(group_rows[p] + turn.ahead_bytes);
            due += turn.passes;
        }
        dots<E, P, T>(group_rows, x + g * GROUP, w.in, offset + g, groups, acc);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            const uint8_t* s = scales[p] + g * group_bytes(E);
            const F d = halves(s), m = E == INT4 ? halves(s + 2 * TILE) : zero();
#pragma GCC unroll 16
            for (size_t t = 0; t < T; t++) {
                if (E == INT4) total[p][t] = fma(m, spread(sum[t * groups + g]), total[p][t]);
                const F dot = mul(spread(scale[t * groups + g]), dot_value(acc[p][t]));
                total[p][t] = fma(d, dot, total[p][t]);
            }
        }
    }
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++) store_rows(y + (token + t) * ldy, (v + p) * WIDTH, row_end, total[p][t]);
}

template <int E, size_t T, Order ORDER>
void integer_tokens(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t v_end, size_t row_end,
                    size_t token, const Turn& turn) {
    constexpr size_t P = vectors_at_once<E>(T, ORDER);
    for (; v + P <= v_end; v += P) integer_block<E, P, T, ORDER>(w, a, y, ldy, v, row_end, token, turn);
    for (; v < v_end; v++) integer_block<E, 1, T, ORDER>(w, a, y, ldy, v, row_end, token, turn);
}

// Calls integer_tokens for T = tokens, of at most T.
template <int E, size_t T, Order ORDER>
void integer_count(size_t tokens, const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t v_end,
                   size_t row_end, size_t token, const Turn& turn) {
    if constexpr (T > 1) {
        if (tokens < T) return integer_count<E, T - 1, ORDER>(tokens, w, a, y, ldy, v, v_end, row_end, token, turn);
    }
    integer_tokens<E, T, ORDER>(w, a, y, ldy, v, v_end, row_end, token, turn);
}

// Tokens [first, end) over all rows, in passes of even size, so that none is for a few only.
template <int E>
void integer_passes(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end,
                    size_t first, size_t end) {
    constexpr size_t MOST = most_tokens<E>();
    const size_t groups = w.in / GROUP, tokens = end - first, passes = (tokens + MOST - 1) / MOST;
    const size_t v_end = (row_end + WIDTH - 1) / WIDTH;
    if (passes == 1) {
        const Turn turn = {0, groups, AHEAD_BYTES, 0, 1};
        if constexpr (PARTS == 1) {  // else a tile's own vectors are all that run side by side
            if (at_hand<E>(w.in, tokens))
                return integer_count<E, MOST, Order::END_TO_END>(tokens, w, a, y, ldy, row_start / WIDTH, v_end,
                                                                 row_end, first, turn);
        }
        return integer_count<E, MOST, Order::SIDE_BY_SIDE>(tokens, w, a, y, ldy, row_start / WIDTH, v_end, row_end,
                                                           first, turn);
    }
    constexpr size_t GROUPS_A_TURN = PARTS == 1 ? 64 : TURN_BYTES / group_bytes(E);  // AVX-512: measured, 1 % for INT8
    constexpr size_t AT_ONCE = PARTS == 1 ? vectors_at_once<E>(MOST, Order::PASSES) : PARTS;
    for (size_t v = row_start / WIDTH; v < v_end; v += AT_ONCE)
        for (size_t group = 0; group < groups; group += GROUPS_A_TURN)
            for (size_t pass = 0, token = first; pass < passes; pass++) {
                const Turn turn = {group, least(groups, group + GROUPS_A_TURN), GROUPS_A_TURN * group_bytes(E), pass,
                                   passes};
                const size_t next = first + tokens * (pass + 1) / passes;
                const size_t end = least(v + AT_ONCE, v_end);
                integer_count<E, MOST, Order::PASSES>(next - token, w, a, y, ldy, v, end, row_end, token, turn);
                token = next;
            }
}

template <int E>
void integer_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    constexpr size_t MOST = most_tokens<E>();
    const size_t fit = ACTIVATION_BYTES / token_bytes(w.in), at_once = fit > MOST ? fit / MOST * MOST : MOST;
    const size_t rounds = (a.tokens + at_once - 1) / at_once;
    for (size_t i = 0; i < rounds; i++) {
        const size_t first = i * at_once;
        integer_passes<E>(w, a, y, ldy, row_start, row_end, first, least(a.tokens, first + at_once));
    }
}

// ---- packed weights, float activations

// Calls f(column, weights) for the 32 columns of a group, in chunks of ascending columns.
template <int E, class Each>
inline void each_weight(const uint8_t* rows, const uint8_t* scales, const Each& f) {
    const F d = halves(scales), m = E == INT4 ? halves(scales + 2 * TILE) : zero();
    [[maybe_unused]] const auto weight = [&](I q) {
        return E == INT4S ? mul(d, add(to_float(q), spread(-8))) : fma(d, to_float(q), m);
    };
#pragma GCC unroll 8
    for (size_t c = 0; c < (is_nibbles(E) ? 4 : 8); c++) {
        const I bytes = words(rows + c * 64);
        if constexpr (is_nibbles(E)) {
            f(8 * c + 0, weight(bits<0, 4>(bytes)));
            f(8 * c + 1, weight(bits<8, 4>(bytes)));
            f(8 * c + 2, weight(bits<16, 4>(bytes)));
            f(8 * c + 3, weight(bits<24, 4>(bytes)));
            f(8 * c + 4, weight(bits<4, 4>(bytes)));
            f(8 * c + 5, weight(bits<12, 4>(bytes)));
            f(8 * c + 6, weight(bits<20, 4>(bytes)));
            f(8 * c + 7, weight(bits<28, 4>(bytes)));
        } else {
            f(4 * c + 0, mul(d, to_float(byte<0>(bytes))));
            f(4 * c + 1, mul(d, to_float(byte<1>(bytes))));
            f(4 * c + 2, mul(d, to_float(byte<2>(bytes))));
            f(4 * c + 3, mul(d, to_float(byte<3>(bytes))));
        }
    }
}

template <int E, size_t T>
void exact_block(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t row_end, size_t token) {
    const size_t groups = w.in / GROUP;
    const uint8_t *rows = vector_at<E>(w, v), *scales = scales_at<E>(w, v);
    F total[T];
    for (size_t t = 0; t < T; t++) total[t] = zero();
    for (size_t g = 0; g < groups; g++, rows += group_bytes(E), scales += group_bytes(E)) {
        if (token == 0 && v % PARTS == 0) fetch<E>(rows + AHEAD_BYTES);
        const float* x = a.x + token * w.in + g * GROUP;
        F chain[4][T];
        for (size_t j = 0; j < 4; j++)
            for (size_t t = 0; t < T; t++) chain[j][t] = zero();
        each_weight<E>(rows, scales, [&](size_t k, F weight) {
#pragma GCC unroll 4
            for (size_t t = 0; t < T; t++) chain[k % 4][t] = fma(weight, spread(x[t * w.in + k]), chain[k % 4][t]);
        });
        for (size_t t = 0; t < T; t++)
            total[t] = add(total[t], add(add(chain[0][t], chain[1][t]), add(chain[2][t], chain[3][t])));
    }
    for (size_t t = 0; t < T; t++) store_rows(y + (token + t) * ldy, v * WIDTH, row_end, total[t]);
}

template <int E>
void exact_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const size_t v_end = (row_end + WIDTH - 1) / WIDTH;
    for (size_t tile = row_start / WIDTH; tile < v_end; tile += PARTS)
        for (size_t token = 0; token < a.tokens; token += 4)
            for (size_t v = tile; v < least(tile + PARTS, v_end); v++) {
                switch (a.tokens - token) {
                    case 1: exact_block<E, 1>(w, a, y, ldy, v, row_end, token); break;
                    case 2: exact_block<E, 2>(w, a, y, ldy, v, row_end, token); break;
                    case 3: exact_block<E, 3>(w, a, y, ldy, v, row_end, token); break;
                    default: exact_block<E, 4>(w, a, y, ldy, v, row_end, token); break;
                }
            }
}

// ---- plain weights

template <int E, size_t R, size_t T>
inline void plain_step(const uint8_t* const (&rows)[R], const float* const (&xs)[T], size_t k, F (&acc)[R][T][PARTS]) {
#pragma GCC unroll 4
    for (size_t i = 0; i < PARTS; i++) {
        F x[T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) x[t] = load(xs[t] + k + i * WIDTH);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; r++) {
            const F weight = widen<E>(rows[r] + (k + i * WIDTH) * value_bytes(E));
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) acc[r][t][i] = fma(weight, x[t], acc[r][t][i]);
        }
    }
}

template <int E, size_t R, size_t T>
void plain_block(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row, size_t token) {
    const uint8_t* rows[R];
    const float* xs[T];
    F acc[R][T][PARTS];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) rows[r] = w.data + (row + r) * stride_bytes(E, w.in);
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) xs[t] = a.x + (token + t) * w.in;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++)
#pragma GCC unroll 4
            for (size_t i = 0; i < PARTS; i++) acc[r][t][i] = zero();
    // The processor fetches along a row by itself, but starts late with every new one; so ask for the same place in the
    // next R rows, in the second cache.
    const size_t ahead = R * stride_bytes(E, w.in), whole = w.in / 16 * 16;
    for (size_t k = 0; k < whole; k += 16) {
        for (size_t r = 0; r < R; r++) __builtin_prefetch(rows[r] + k * value_bytes(E) + ahead, 0, 2);
        plain_step<E, R, T>(rows, xs, k, acc);
    }
    if (const size_t rest = w.in - whole) {  // filled up with zeros
        uint8_t weights[R][16 * value_bytes(E)] = {};
        float x[T][16] = {};
        const uint8_t* filled_rows[R];
        const float* filled_xs[T];
        for (size_t r = 0; r < R; r++) {
            memcpy(weights[r], rows[r] + whole * value_bytes(E), rest * value_bytes(E));
            filled_rows[r] = weights[r];
        }
        for (size_t t = 0; t < T; t++) {
            memcpy(x[t], xs[t] + whole, rest * sizeof(float));
            filled_xs[t] = x[t];
        }
        plain_step<E, R, T>(filled_rows, filled_xs, 0, acc);
    }
    for (size_t r = 0; r < R; r++)
        for (size_t t = 0; t < T; t++) {
            float chain[16];
            for (size_t i = 0; i < PARTS; i++) store(chain + i * WIDTH, acc[r][t][i]);
            for (size_t half_of = 8; half_of > 0; half_of /= 2)
                for (size_t i = 0; i < half_of; i++) chain[i] += chain[i + half_of];
            y[(token + t) * ldy + row + r] = chain[0];
        }
}

template <int E, size_t T>
void plain_rows(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row, size_t row_end, size_t token) {
    constexpr size_t R = T == 1 ? 2 : PARTS == 1 ? 4 : T == 2 ? 2 : 1;
    for (; row + R <= row_end; row += R) plain_block<E, R, T>(w, a, y, ldy, row, token);
    for (; row < row_end; row++) plain_block<E, 1, T>(w, a, y, ldy, row, token);
}

template <int E>
void plain_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    constexpr size_t ROWS_A_TURN = 16;  // they stay in a cache while the tokens pass
    for (size_t row = row_start; row < row_end; row += ROWS_A_TURN) {
        const size_t end = least(row_end, row + ROWS_A_TURN);
        for (size_t token = 0; token < a.tokens; token += 4) {
            switch (a.tokens - token) {
                case 1: plain_rows<E, 1>(w, a, y, ldy, row, end, token); break;
                case 2: plain_rows<E, 2>(w, a, y, ldy, row, end, token); break;
                case 3: plain_rows<E, 3>(w, a, y, ldy, row, end, token); break;
                default: plain_rows<E, 4>(w, a, y, ldy, row, end, token); break;
            }
        }
    }
}

// ---- the table

// One stream: the processor fetches ahead by itself.
uint64_t read(const uint8_t* data, size_t bytes) {
    using Words = uint64_t __attribute__((vector_size(4 * WIDTH), aligned(8)));
    Words v, sum = {};
    for (size_t at = 0; at < bytes; at += sizeof v) {
        memcpy(&v, data + at, sizeof v);
        sum += v;
    }
    uint64_t total = 0;
    for (size_t i = 0; i < WIDTH / 2; i++) total += sum[i];
    return total;
}

template <int E>
void dequantize_tile(const Matrix& w, size_t tile, float* into) {  // [32 columns][16 rows] a group, then turned
    for (size_t g = 0; g < w.in / GROUP; g++) {
        float columns[GROUP][TILE];
        for (size_t i = 0; i < PARTS; i++) {
            const size_t v = tile * PARTS + i, at = g * group_bytes(E);
            each_weight<E>(vector_at<E>(w, v) + at, scales_at<E>(w, v) + at,
                           [&](size_t k, F weight) { store(columns[k] + i * WIDTH, weight); });
        }
        for (size_t r = 0; r < TILE; r++)
            for (size_t k = 0; k < GROUP; k++) into[r * w.in + g * GROUP + k] = columns[k][r];
    }
}
