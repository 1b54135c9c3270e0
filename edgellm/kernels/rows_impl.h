// The loops over rows, the same for every instruction set.
//
// A file that includes this one defines before, in an anonymous namespace:
//   Vec                         a register of WIDTH floats
//   CHAINS                      accumulators for one output, so that additions need not wait for each other
//   rows_at_once(tokens)        rows that share the loads of x; as many accumulators as the registers hold
//   zero(), load(p), store(p, v), add(a, b), fma(a, b, c) = a*b+c, sum(v)
//   Scales<encoding>            what prepare<encoding>(p, count, scales) takes from up to 16 groups at once
//   decode<encoding>(p, scales, g, w)
//                               group g of those, which is at p: 32 weights to 32 / WIDTH registers, exactly d*q+m,
//                               d*q, or the value
// Everything here stays in that anonymous namespace: the files are compiled for different processors, and the linker
// must never merge their functions.
//
// An output is summed in an order that depends on `in` alone, so a token's result is bit for bit the same whatever
// other tokens, rows or threads are in the call.

constexpr size_t PARTS = GROUP / WIDTH;
constexpr size_t MOST_TOKENS = 8;   // tokens that share one decoding of the weights
constexpr size_t ROWS_A_TURN = 4;   // rows that stay in the cache while all tokens pass over them
constexpr size_t GROUPS_A_TURN = 16;  // groups of a row whose scales are prepared together

// One group of R rows by T tokens. Every x is loaded once for all rows.
template <int E, size_t R, size_t T>
inline void step(const uint8_t* const* rows, size_t at_byte, const float* const* xs, size_t at, const Scales<E>* scales,
                 size_t g, Vec (&acc)[R][T][CHAINS]) {
    Vec w[R][PARTS];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) decode<E>(rows[r] + at_byte, scales[r], g, w[r]);
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
        for (size_t i = 0; i < PARTS; i++) {
            const Vec x = load(xs[t] + at + i * WIDTH);
#pragma GCC unroll 8
            for (size_t r = 0; r < R; r++) acc[r][t][i % CHAINS] = fma(w[r][i], x, acc[r][t][i % CHAINS]);
        }
}

// R rows by T tokens.
template <int E, size_t R, size_t T>
void tile(const Linear& job, size_t row, size_t token) {
    Vec acc[R][T][CHAINS];
    const uint8_t* rows[R];
    const float* xs[T];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++) rows[r] = job.weights + (row + r) * job.row_bytes;
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) xs[t] = job.x + (token + t) * job.in;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; r++)
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
            for (size_t c = 0; c < CHAINS; c++) acc[r][t][c] = zero();

    Scales<E> scales[R];
    // The processor fetches along a row by itself, but starts late with every new one; so ask for the same place in the
    // next R rows (measured: int4 9 -> 11 GB/s, int8 14 -> 18). Long rows would crowd the first cache, so those of bf16
    // and f16 go to the second.
    const size_t ahead = R * job.row_bytes;
    const size_t groups = job.in / GROUP;
    for (size_t start = 0; start < groups; start += GROUPS_A_TURN) {
        const size_t count = groups - start < GROUPS_A_TURN ? groups - start : GROUPS_A_TURN;
        for (size_t r = 0; r < R; r++) prepare<E>(rows[r] + start * group_bytes(E), count, scales[r]);
        for (size_t g = 0; g < count; g++) {
            for (size_t r = 0; r < R; r++)
                __builtin_prefetch(rows[r] + (start + g) * group_bytes(E) + ahead, 0, E == INT4 || E == INT8 ? 3 : 2);
            step<E, R, T>(rows, (start + g) * group_bytes(E), xs, (start + g) * GROUP, scales, g, acc);
        }
    }

    // The rest of a row whose length isn't a multiple of 32 (bf16 and f16 only), padded with zeros.
    if (const size_t rest = job.in % GROUP) {
        uint8_t weights[R][2 * GROUP] = {};
        float x[T][GROUP] = {};
        const uint8_t* padded_rows[R];
        const float* padded_xs[T];
        for (size_t r = 0; r < R; r++) {
            memcpy(weights[r], rows[r] + groups * 2 * GROUP, 2 * rest);
            padded_rows[r] = weights[r];
        }
        for (size_t t = 0; t < T; t++) {
            memcpy(x[t], xs[t] + groups * GROUP, sizeof(float) * rest);
            padded_xs[t] = x[t];
        }
        step<E, R, T>(padded_rows, 0, padded_xs, 0, scales, 0, acc);
    }

    for (size_t r = 0; r < R; r++)
        for (size_t t = 0; t < T; t++) {
            Vec total = acc[r][t][0];
            for (size_t c = 1; c < CHAINS; c++) total = add(total, acc[r][t][c]);
            job.y[(token + t) * job.out + row + r] = sum(total);
        }
}

template <int E, size_t T>
void tiles(const Linear& job, size_t row, size_t row_end, size_t token) {
    constexpr size_t R = rows_at_once(T);
    for (; row + R <= row_end; row += R) tile<E, R, T>(job, row, token);
    for (; row < row_end; row++) tile<E, 1, T>(job, row, token);
}

template <int E>
void linear_of(const Linear& job, size_t row_start, size_t row_end) {
    for (size_t row = row_start; row < row_end; row += ROWS_A_TURN) {
        const size_t end = row + ROWS_A_TURN < row_end ? row + ROWS_A_TURN : row_end;
        for (size_t token = 0; token < job.tokens; token += MOST_TOKENS) {
            switch (job.tokens - token) {
                case 1: tiles<E, 1>(job, row, end, token); break;
                case 2: tiles<E, 2>(job, row, end, token); break;
                case 3: tiles<E, 3>(job, row, end, token); break;
                case 4: tiles<E, 4>(job, row, end, token); break;
                case 5: tiles<E, 5>(job, row, end, token); break;
                case 6: tiles<E, 6>(job, row, end, token); break;
                case 7: tiles<E, 7>(job, row, end, token); break;
                default: tiles<E, 8>(job, row, end, token); break;
            }
        }
    }
}

void linear(int encoding, const Linear& job, size_t row_start, size_t row_end) {
    switch (encoding) {
        case INT4: linear_of<INT4>(job, row_start, row_end); break;
        case INT8: linear_of<INT8>(job, row_start, row_end); break;
        case BF16: linear_of<BF16>(job, row_start, row_end); break;
        case F16: linear_of<F16>(job, row_start, row_end); break;
    }
}

template <int E>
void dequantize_of(const uint8_t* row, size_t in, float* into) {
    Vec w[PARTS];
    Scales<E> scales;
    const size_t groups = in / GROUP;
    for (size_t start = 0; start < groups; start += GROUPS_A_TURN) {
        const size_t count = groups - start < GROUPS_A_TURN ? groups - start : GROUPS_A_TURN;
        prepare<E>(row + start * group_bytes(E), count, scales);
        for (size_t g = 0; g < count; g++) {
            decode<E>(row + (start + g) * group_bytes(E), scales, g, w);
#pragma GCC unroll 8
            for (size_t i = 0; i < PARTS; i++) store(into + (start + g) * GROUP + i * WIDTH, w[i]);
        }
    }
    if (const size_t rest = in % GROUP) {
        uint8_t weights[2 * GROUP] = {};
        float values[GROUP];
        memcpy(weights, row + groups * 2 * GROUP, 2 * rest);
        decode<E>(weights, scales, 0, w);
        for (size_t i = 0; i < PARTS; i++) store(values + i * WIDTH, w[i]);
        memcpy(into + groups * GROUP, values, sizeof(float) * rest);
    }
}

void dequantize(int encoding, const uint8_t* row, size_t in, float* into) {
    switch (encoding) {
        case INT4: dequantize_of<INT4>(row, in, into); break;
        case INT8: dequantize_of<INT8>(row, in, into); break;
        case BF16: dequantize_of<BF16>(row, in, into); break;
        case F16: dequantize_of<F16>(row, in, into); break;
    }
}
