// A two-level int4 and its AVX512-VNNI product, beside the project's own int4 compiled in the same file.
//
// Layout: tiles of 16 rows, each tile its blocks of 256 columns, one after the other; a block has 2304 bytes (4.5 bits
// a weight):
//   0    128 bytes: byte 16g + r has the low four bits of group g's scale in its low nibble, of its minimum in its high
//   128  64 bytes: byte 16g + r (g < 4) has the upper two bits of group g's scale, of its minimum, of group g + 4's
//        scale, of its minimum, from the lowest bits up
//   192  16 fp16 scales d, then 16 fp16 minima m
//   256  8 groups of 32 columns, 256 bytes each: nibbles as in INT4 (gemm.h)
// A weight is (d * scale) * q + (m * minimum), scale and minimum from 0 to 63.
//
// The arithmetic is that of INT4 with d * scale for d and m * minimum for m, both rounded to float32.
#include "gemm_avx512vnni.cpp"

namespace edgellm {
namespace {

constexpr size_t BLOCK_GROUPS = 8, BLOCK_BYTES = 2304;

inline size_t tile_bytes(size_t in) { return in / (GROUP * BLOCK_GROUPS) * BLOCK_BYTES; }

inline I low_bits(I v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(mask))); }

// The 6-bit scales, then minima, of a block's groups as bytes: into[g * 16 + r].
inline void unpack_scales(const uint8_t* block, uint8_t* into) {
    const I first = words(block), second = words(block + 64), upper = words(block + 128);
    const I two = _mm512_slli_epi16(upper, 2), four = _mm512_slli_epi16(upper, 4), less = _mm512_srli_epi16(upper, 2);
    const I high_first = _mm512_srli_epi16(first, 4), high_second = _mm512_srli_epi16(second, 4);
    _mm512_store_si512(into, _mm512_or_si512(low_bits(first, 15), low_bits(four, 48)));
    _mm512_store_si512(into + 64, _mm512_or_si512(low_bits(second, 15), low_bits(upper, 48)));
    _mm512_store_si512(into + 128, _mm512_or_si512(low_bits(high_first, 15), low_bits(two, 48)));
    _mm512_store_si512(into + 192, _mm512_or_si512(low_bits(high_second, 15), low_bits(less, 48)));
}

inline F bytes_to_float(const uint8_t* p) {
    return to_float(_mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p))));
}

// A group's share of the 36 cache lines of a block.
inline void fetch_share(const uint8_t* block, size_t i) {
    for (size_t line = 0; line < 4; line++) __builtin_prefetch(block + (i * 4 + line) * 64);
    if (i % 2 == 0) __builtin_prefetch(block + (32 + i / 2) * 64);
}

template <size_t P, size_t T, Order ORDER>
inline void two_level_block(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t row_end,
                            size_t token, const Turn& turn) {
    const size_t groups = w.in / GROUP;
    const uint8_t* tiles[P];
    F total[P][T];
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++) {
        tiles[p] = w.data + (v + p) * tile_bytes(w.in);
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++)
            total[p][t] = turn.group ? load_rows(y + (token + t) * ldy, (v + p) * WIDTH, row_end) : zero();
    }
    const size_t at = token * groups;
    const float *scale = a.scale + at, *sum = a.sum + at;
    const int8_t* x = a.q + token * w.in;
    for (size_t b = turn.group / BLOCK_GROUPS; b < turn.group_end / BLOCK_GROUPS; b++) {
        alignas(64) uint8_t levels[P][256];
        const uint8_t* blocks[P];
        F d[P], m[P];
#pragma GCC unroll 8
        for (size_t p = 0; p < P; p++) {
            blocks[p] = tiles[p] + b * BLOCK_BYTES;
            unpack_scales(blocks[p], levels[p]);
            d[p] = halves(blocks[p] + 192);
            m[p] = halves(blocks[p] + 224);
        }
        for (size_t i = 0, g = b * BLOCK_GROUPS; i < BLOCK_GROUPS; i++, g++) {
            const uint8_t* group_rows[P];
            I acc[P][T];
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                group_rows[p] = blocks[p] + 256 + i * 256;
                if (asks_ahead<INT4>(T, ORDER) && g % turn.passes == turn.pass)
                    fetch_share(blocks[p] + turn.ahead_bytes, i);
            }
            dots<INT4, P, T>(group_rows, x + g * GROUP, w.in, nullptr, groups, acc);
#pragma GCC unroll 8
            for (size_t p = 0; p < P; p++) {
                const F group_d = mul(d[p], bytes_to_float(levels[p] + i * 16));
                const F group_m = mul(m[p], bytes_to_float(levels[p] + 128 + i * 16));
#pragma GCC unroll 16
                for (size_t t = 0; t < T; t++) {
                    total[p][t] = fma(group_m, spread(sum[t * groups + g]), total[p][t]);
                    const F dot = mul(spread(scale[t * groups + g]), to_float(acc[p][t]));
                    total[p][t] = fma(group_d, dot, total[p][t]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (size_t p = 0; p < P; p++)
#pragma GCC unroll 16
        for (size_t t = 0; t < T; t++) store_rows(y + (token + t) * ldy, (v + p) * WIDTH, row_end, total[p][t]);
}

// From here on as in gemm_vector.h, whose loops know only its own encodings.

template <size_t T, Order ORDER>
void two_level_count(size_t tokens, const Matrix& w, const Activations& a, float* y, size_t ldy, size_t v, size_t v_end,
                     size_t row_end, size_t token, const Turn& turn) {
    if constexpr (T > 1) {
        if (tokens < T) return two_level_count<T - 1, ORDER>(tokens, w, a, y, ldy, v, v_end, row_end, token, turn);
    }
    constexpr size_t P = vectors_at_once<INT4>(T, ORDER);
    for (; v + P <= v_end; v += P) two_level_block<P, T, ORDER>(w, a, y, ldy, v, row_end, token, turn);
    for (; v < v_end; v++) two_level_block<1, T, ORDER>(w, a, y, ldy, v, row_end, token, turn);
}

void two_level_passes(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end,
                      size_t first, size_t end) {
    constexpr size_t MOST = most_tokens<INT4>();
    const size_t groups = w.in / GROUP, tokens = end - first, passes = (tokens + MOST - 1) / MOST;
    const size_t v_end = (row_end + WIDTH - 1) / WIDTH;
    if (passes == 1) {
        const Turn turn = {0, groups, AHEAD_BYTES, 0, 1};
        const auto count = at_hand<INT4>(w.in, tokens) ? two_level_count<MOST, Order::END_TO_END>
                                                       : two_level_count<MOST, Order::SIDE_BY_SIDE>;
        return count(tokens, w, a, y, ldy, row_start / WIDTH, v_end, row_end, first, turn);
    }
    constexpr size_t AT_ONCE = vectors_at_once<INT4>(MOST, Order::PASSES);
    constexpr size_t GROUPS_A_TURN = 64;  // so that weights stay in the first cache
    for (size_t v = row_start / WIDTH; v < v_end; v += AT_ONCE)
        for (size_t group = 0; group < groups; group += GROUPS_A_TURN)
            for (size_t pass = 0, token = first; pass < passes; pass++) {
                const Turn turn = {group, least(groups, group + GROUPS_A_TURN),
                                   GROUPS_A_TURN / BLOCK_GROUPS * BLOCK_BYTES, pass, passes};
                const size_t next = first + tokens * (pass + 1) / passes;
                const size_t v_next = least(v + AT_ONCE, v_end);
                two_level_count<MOST, Order::PASSES>(next - token, w, a, y, ldy, v, v_next, row_end, token, turn);
                token = next;
            }
}

void two_level_product(const Matrix& w, const Activations& a, float* y, size_t ldy, size_t row_start, size_t row_end) {
    constexpr size_t MOST = most_tokens<INT4>();
    const size_t fit = ACTIVATION_BYTES / token_bytes(w.in), at_once = fit > MOST ? fit / MOST * MOST : MOST;
    const size_t rounds = (a.tokens + at_once - 1) / at_once;
    for (size_t i = 0; i < rounds; i++)
        two_level_passes(w, a, y, ldy, row_start, row_end, i * at_once, least(a.tokens, (i + 1) * at_once));
}

}  // namespace
}  // namespace edgellm

// y [tokens, out] for rows [row_start, row_end) of a weight [out, in] in one thread; q, scale and sum as quantize writes.
extern "C" void multiply(int two_levels, const uint8_t* data, size_t out, size_t in, const int8_t* q,
                         const float* scale, const float* sum, size_t tokens, float* y, size_t row_start,
                         size_t row_end) {
    const edgellm::Matrix w = {data, out, in, edgellm::INT4};
    const edgellm::Activations a = {nullptr, q, scale, sum, nullptr, tokens};
    if (two_levels)
        edgellm::two_level_product(w, a, y, out, row_start, row_end);
    else
        edgellm::AVX512VNNI_TARGET.product(w, a, y, out, row_start, row_end);
}
