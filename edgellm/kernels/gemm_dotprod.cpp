// Products with NEON and its dot product of bytes (ARMv8.2, as Cortex-A76).
// The target is set here, not on the command line, because compilers spell it differently.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#include <string.h>

#include "gemm_scalar.h"

namespace edgellm {
namespace {

#include "gemm_neon.h"

template <int E>
constexpr size_t most_tokens() { return 4; }

// With three tokens or more the sums of four vectors would leave no registers for weights and columns.
template <int E>
constexpr size_t vectors_at_once(size_t tokens, Order) { return tokens > 2 ? 2 : 4; }

template <int>
constexpr bool asks_ahead(size_t, Order) { return true; }

// All sums start from the bits of ROUNDER: Cortex-A76 subtracts two vectors at once where it converts one.
inline F dot_value(I acc) { return vsubq_f32(vreinterpretq_f32_s32(acc), spread(ROUNDER)); }

// Adds the dot products of a group to acc[p][t]: P vectors of rows at w[p], and T tokens, of which columns_of(half_of, t)
// are 16 columns: four lanes of four.
template <int E, size_t P, size_t T, class Columns>
ALWAYS_INLINE void add_dots(const uint8_t* const (&w)[P], const Columns& columns_of, I (&acc)[P][T]) {
#pragma GCC unroll 2
    for (size_t half_of = 0; half_of < 2; half_of++) {
        int8x16_t columns[T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) columns[t] = columns_of(half_of, t);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            int8x16_t a[4];
            if constexpr (is_nibbles(E)) {
                const uint8x16_t first = vld1q_u8(w[p] + 128 * half_of), second = vld1q_u8(w[p] + 128 * half_of + 64);
                a[0] = vreinterpretq_s8_u8(vandq_u8(first, vdupq_n_u8(15)));
                a[1] = vreinterpretq_s8_u8(vshrq_n_u8(first, 4));
                a[2] = vreinterpretq_s8_u8(vandq_u8(second, vdupq_n_u8(15)));
                a[3] = vreinterpretq_s8_u8(vshrq_n_u8(second, 4));
            } else {
#pragma GCC unroll 4
                for (size_t c = 0; c < 4; c++) a[c] = vreinterpretq_s8_u8(vld1q_u8(w[p] + 256 * half_of + 64 * c));
            }
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[0], columns[t], 0);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[1], columns[t], 1);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[2], columns[t], 2);
                acc[p][t] = vdotq_laneq_s32(acc[p][t], a[3], columns[t], 3);
            }
        }
    }
}

template <int E, size_t P, size_t T>
ALWAYS_INLINE void dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t* offset, size_t groups,
                        I (&acc)[P][T]) {
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) {
        I start = vdupq_n_s32(ROUNDER_BITS);
        if (E == INT4S) start = with_offset(start, offset + t * groups);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) acc[p][t] = start;
    }
    add_dots<E>(w, [&](size_t half_of, size_t t) { return vld1q_s8(x + t * in + 16 * half_of); }, acc);
}

#include "gemm_vector.h"

constexpr size_t few_vectors(Kind kind, size_t tokens) { return tokens <= 2 && kind_halves(kind) == 1 ? 4 : 2; }
constexpr size_t many_vectors(Kind kind) { return kind_halves(kind) == 2 ? 1 : 2; }
constexpr size_t many_tokens(Kind) { return 4; }

template <class Q, size_t P, size_t T>
ALWAYS_INLINE void code_dots(const uint8_t* const (&w)[P], const int8_t* x, size_t in, const int32_t*, size_t,
                             I (&acc)[Q::HALVES][P][T]) {
    constexpr size_t LAST = Q::HALVES - 1;
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++)
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++)
#pragma GCC unroll 2
            for (size_t h = 0; h <= LAST; h++) acc[h][p][t] = vdupq_n_s32(ROUNDER_BITS);
#pragma GCC unroll 2
    for (size_t half_of = 0; half_of < 2; half_of++) {
        int8x16_t columns[T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) columns[t] = vld1q_s8(x + t * in + 16 * half_of);
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            I a[4];
            Q::load(w[p], 2 * half_of, a[0], a[1]);
            Q::load(w[p], 2 * half_of + 1, a[2], a[3]);
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                I& sum = acc[half_of * LAST][p][t];
                sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a[0]), columns[t], 0);
                sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a[1]), columns[t], 1);
                sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a[2]), columns[t], 2);
                sum = vdotq_laneq_s32(sum, vreinterpretq_s8_s32(a[3]), columns[t], 3);
            }
        }
    }
}

#include "gemm_codes.h"

// ---- more tokens than one pass takes: activations in blocks of eight tokens, copied once for all the rows of a call

constexpr size_t BLOCK = 8;             // tokens: a weight is unpacked once for all of them
constexpr size_t ROUND = 64;            // tokens that pass over the same weights while these stay in the first cache
constexpr size_t SCRATCH_GROUPS = 256;  // of blocks, on the stack: 88 KB

// One group of a block, in the order of its use: one address serves all its tokens, and one load four scales.
struct alignas(16) BlockGroup {
    int8_t columns[2][BLOCK][16];
    int32_t start[BLOCK];  // of the sums of INT4S
    float scale[BLOCK];
    float sum[BLOCK];  // only for INT4
};

// Value t of a block's eight in every lane; after inlining it is a lane of a register.
ALWAYS_INLINE F spread_of(const float* eight, size_t t) { return spread(load(eight + t / 4 * 4)[t % 4]); }
ALWAYS_INLINE I spread_of(const int32_t* eight, size_t t) { return vdupq_n_s32(vld1q_s32(eight + t / 4 * 4)[t % 4]); }

// Copies the turn's groups of T tokens. All are loaded before the first is stored, so that clang does both in pairs.
template <int E, size_t T>
void copy_block(const Activations& a, size_t in, size_t token, const Turn& turn, BlockGroup* into) {
    const size_t groups = in / GROUP;
    for (size_t g = turn.group; g < turn.group_end; g++, into++) {
        int8x16_t columns[2][T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            const int8_t* q = a.q + (token + t) * in + g * GROUP;
            columns[0][t] = vld1q_s8(q);
            columns[1][t] = vld1q_s8(q + 16);
        }
#pragma GCC unroll 2
        for (size_t half_of = 0; half_of < 2; half_of++)
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) vst1q_s8(into->columns[half_of][t], columns[half_of][t]);
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            const size_t at = (token + t) * groups + g;
            into->scale[t] = a.scale[at];
            if (E == INT4S) into->start[t] = ROUNDER_BITS + first_half(a.offset[at]) + second_half(a.offset[at]);
            if (E == INT4) into->sum[t] = a.sum[at];
        }
    }
}

// A vector of rows times the T tokens of a block, whose results go to y[t * ldy + row].
template <int E, size_t T>
void block_product(const Matrix& w, const BlockGroup* x, float* y, size_t ldy, size_t v, size_t row_end,
                   const Turn& turn) {
    const uint8_t* rows = vector_at<E>(w, v) + turn.group * group_bytes(E);
    const size_t scales = static_cast<size_t>(scales_at<E>(w, v) - vector_at<E>(w, v));  // from rows on
    F total[T];
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) total[t] = turn.group ? load_rows(y + t * ldy, v * WIDTH, row_end) : zero();
    const BlockGroup* const end = x + (turn.group_end - turn.group);
    const BlockGroup* due = v % PARTS == 0 ? x + turn.pass : end;  // the next group at which to fetch ahead
    for (; x != end; x++, rows += group_bytes(E)) {
        if (x == due) {
            fetch<E>(rows + turn.ahead_bytes);
            due += turn.passes;
        }
        I acc[1][T];
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) acc[0][t] = E == INT4S ? spread_of(x->start, t) : vdupq_n_s32(ROUNDER_BITS);
        add_dots<E>({rows}, [=](size_t half_of, size_t t) { return vld1q_s8(x->columns[half_of][t]); }, acc);
        const F d = halves(rows + scales), m = E == INT4 ? halves(rows + scales + 2 * TILE) : zero();
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            if (E == INT4) total[t] = fma(m, spread_of(x->sum, t), total[t]);
            total[t] = fma(d, mul(spread_of(x->scale, t), dot_value(acc[0][t])), total[t]);
        }
    }
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) store_rows(y + t * ldy, v * WIDTH, row_end, total[t]);
}

template <size_t T>
struct Count {
    static constexpr size_t value = T;
};

// Calls f(Count<tokens>()) for 4 to T tokens.
template <size_t T, class Each>
ALWAYS_INLINE void with_count(size_t tokens, const Each& f) {
    if constexpr (T > 4) {
        if (tokens < T) return with_count<T - 1>(tokens, f);
    }
    f(Count<T>());
}

// Tokens [first, end), at most ROUND, over all rows. Blocks are of even size: 4 tokens are the fewest of more than 4.
template <int E>
void block_passes(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end,
                  size_t first, size_t end) {
    BlockGroup scratch[SCRATCH_GROUPS];
    const size_t groups = w.in / GROUP, v_end = (row_end + WIDTH - 1) / WIDTH;
    const size_t tokens = end - first, passes = (tokens + BLOCK - 1) / BLOCK;
    const size_t at_once = least(TURN_BYTES / group_bytes(E), SCRATCH_GROUPS / passes);
    // Calls f(turn, block, token, Count) for every block, over the groups from `group` on.
    const auto each_block = [&](size_t group, const auto& f) {
        for (size_t pass = 0; pass < passes; pass++) {
            const size_t token = first + tokens * pass / passes, next = first + tokens * (pass + 1) / passes;
            // What comes next are the same groups of the next tile.
            const Turn turn = {group, least(groups, group + at_once), stride_bytes(E, w.in), pass, passes};
            with_count<BLOCK>(next - token, [&](auto count) { f(turn, scratch + pass * at_once, token, count); });
        }
    };
    for (size_t group = 0; group < groups; group += at_once) {
        each_block(group, [&](const Turn& turn, BlockGroup* block, size_t token, auto count) {
            copy_block<E, count.value>(a, w.in, token, turn, block);
        });
        for (size_t tile = row_start / WIDTH; tile < v_end; tile += PARTS)
            each_block(group, [&](const Turn& turn, const BlockGroup* block, size_t token, auto count) {
                for (size_t v = tile; v < least(tile + PARTS, v_end); v++)
                    block_product<E, count.value>(w, block, y + token * ldy, ldy, v, row_end, turn);
            });
    }
}

template <int E>
void blocks_of(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    if (a.tokens <= most_tokens<E>()) return integer_of<E>(w, a, y, ldy, row_start, row_end);
    const size_t rounds = (a.tokens + ROUND - 1) / ROUND;
    for (size_t i = 0; i < rounds; i++)
        block_passes<E>(w, a, y, ldy, row_start, row_end, a.tokens * i / rounds, a.tokens * (i + 1) / rounds);
}

// ---- the same for codes: a turn of groups of a vector of rows is unpacked once for all the blocks

// A vector of rows times the T tokens of a block.
template <Kind K, size_t T>
void block_ready(const Turnful<K, 1>& turn, const BlockGroup* x, size_t group, size_t count, float* y, size_t ldy, size_t v,
                 size_t row_end) {
    F total[T];
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) total[t] = group ? load_rows(y + t * ldy, v * WIDTH, row_end) : zero();
    for (size_t g = 0; g < count; g++, x++) {
        const uint8_t* codes = turn.codes[g][0];
        const GroupScales of = ready_of<K>(turn.scales[g][0]);
        F dot[T];
#pragma GCC unroll 2
        for (size_t half_of = 0; half_of < 2; half_of++) {
            I acc[T];
            if (half_of == 0 || kind_halves(K) == 2) {
#pragma GCC unroll 8
                for (size_t t = 0; t < T; t++) acc[t] = vdupq_n_s32(ROUNDER_BITS);
            } else {
#pragma GCC unroll 8
                for (size_t t = 0; t < T; t++) acc[t] = vreinterpretq_s32_f32(dot[t]);
            }
            int8x16_t a[4];
#pragma GCC unroll 4
            for (size_t s = 0; s < 4; s++) a[s] = vreinterpretq_s8_s32(words(codes + (4 * half_of + s) * VECTOR_BYTES));
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                const int8x16_t columns = vld1q_s8(x->columns[half_of][t]);
                acc[t] = vdotq_laneq_s32(acc[t], a[0], columns, 0);
                acc[t] = vdotq_laneq_s32(acc[t], a[1], columns, 1);
                acc[t] = vdotq_laneq_s32(acc[t], a[2], columns, 2);
                acc[t] = vdotq_laneq_s32(acc[t], a[3], columns, 3);
            }
#pragma GCC unroll 8
            for (size_t t = 0; t < T; t++) {
                if constexpr (kind_halves(K) == 2)
                    dot[t] = half_of ? fma(of.s[1], dot_value(acc[t]), dot[t]) : mul(of.s[0], dot_value(acc[t]));
                else dot[t] = half_of ? dot_value(acc[t]) : vreinterpretq_f32_s32(acc[t]);
            }
        }
#pragma GCC unroll 8
        for (size_t t = 0; t < T; t++) {
            if constexpr (K == MINIMA_KIND) total[t] = fma(of.m, spread_of(x->sum, t), total[t]);
            total[t] = fma(of.d, mul(spread_of(x->scale, t), dot[t]), total[t]);
        }
    }
#pragma GCC unroll 8
    for (size_t t = 0; t < T; t++) store_rows(y + t * ldy, v * WIDTH, row_end, total[t]);
}

// Tokens [first, end), at most ROUND, over all rows.
template <int E>
void ready_blocks(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end, size_t first,
                  size_t end) {
    constexpr Kind K = kind_of(E);
    constexpr int LIKE = K == MINIMA_KIND ? INT4 : INT8;  // of what is copied of activations
    BlockGroup scratch[ROUND / BLOCK * TURN_GROUPS];
    Turnful<K, 1> unpacked;
    const size_t groups = w.in / GROUP, v_end = (row_end + WIDTH - 1) / WIDTH;
    const size_t tokens = end - first, passes = (tokens + BLOCK - 1) / BLOCK;
    const auto each_block = [&](const auto& f) {
        for (size_t pass = 0; pass < passes; pass++) {
            const size_t token = first + tokens * pass / passes, next = first + tokens * (pass + 1) / passes;
            with_count<BLOCK>(next - token, [&](auto count) { f(pass, scratch + pass * TURN_GROUPS, token, count); });
        }
    };
    for (size_t group = 0; group < groups; group += TURN_GROUPS) {
        const size_t count = least(groups - group, TURN_GROUPS);
        const Turn turn = {group, group + count, 0, 0, 1};
        each_block([&](size_t, BlockGroup* block, size_t token, auto n) { copy_block<LIKE, n.value>(a, w.in, token, turn, block); });
        for (size_t v = row_start / WIDTH; v < v_end; v++) {
            const uint8_t* rows[1] = {vector_at<E>(w, v) + group * group_bytes(E)};
            make_ready<E, 1>(rows, v, count, unpacked);
            each_block([&](size_t pass, const BlockGroup* block, size_t token, auto n) {
                // What comes next are the same groups of the next tile: each pass fetches its share.
                for (size_t g = pass; v % PARTS == 0 && g < count; g += passes)
                    fetch<E>(rows[0] + g * group_bytes(E) + stride_bytes(E, w.in));
                block_ready<K, n.value>(unpacked, block, group, count, y + token * ldy, ldy, v, row_end);
            });
        }
    }
}

template <int E>
void packed_in_blocks(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    if constexpr (is_nibbles(E) || E == INT8) {
        blocks_of<E>(w, a, y, ldy, row_start, row_end);
    } else if (a.tokens <= FEW || E == Q2_K) {
        codes_product<E>(w, a, y, ldy, row_start, row_end);
    } else if constexpr (E != Q2_K) {
        const size_t rounds = (a.tokens + ROUND - 1) / ROUND;
        for (size_t i = 0; i < rounds; i++)
            ready_blocks<E>(w, a, y, ldy, row_start, row_end, a.tokens * i / rounds, a.tokens * (i + 1) / rounds);
    }
}

void product_in_blocks(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    const auto packed = [&](auto code) { packed_in_blocks<code.value>(w, a, y, ldy, row_start, row_end); };
    if (!with_packed(w.encoding, packed)) product(w, a, y, ldy, row_start, row_end);
}

}  // namespace

const Target DOTPROD_TARGET = {"dotprod", quantize, product_in_blocks, product_exact, dequantize, read};

}  // namespace edgellm

#ifdef __clang__
#pragma clang attribute pop
#endif
