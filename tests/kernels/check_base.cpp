// Compares the base instruction set with plain arithmetic in double; test_base_target.py runs it for other processors.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "rows.h"

using namespace edgellm;

static uint32_t state = 1;
static uint32_t next() { return state = state * 1664525u + 1013904223u; }

static double half(const uint8_t* p) {
    const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double value = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return bits >> 15 ? -value : value;
}

static double weight(int encoding, const uint8_t* row, size_t k) {
    const uint8_t* block = row + k / GROUP * group_bytes(encoding);
    const size_t i = k % GROUP;
    if (encoding == INT4) return half(block) * (i < 16 ? block[4 + i] & 15 : block[4 + i - 16] >> 4) + half(block + 2);
    if (encoding == INT8) return half(block) * static_cast<int8_t>(block[2 + i]);
    if (encoding == F16) return half(block + 2 * i);
    const uint32_t bits = static_cast<uint32_t>(block[2 * i] | block[2 * i + 1] << 8) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

int main() {
    size_t compared = 0;
    for (int encoding = INT4; encoding <= F16; encoding++)
        for (size_t in : {32u, 64u, 544u, 1056u, 33u, 95u}) {
            if (in % GROUP && encoding <= INT8) continue;
            const size_t out = 7, groups = (in + GROUP - 1) / GROUP;
            const size_t row_bytes = encoding <= INT8 ? groups * group_bytes(encoding) : 2 * in;
            std::vector<uint8_t> weights(out * row_bytes);
            for (uint8_t& byte : weights) byte = next() >> 24;
            // Finite halves of ordinary size, subnormals among them; bf16 near 1.
            const size_t stride = encoding <= INT8 ? group_bytes(encoding) : 2;
            for (size_t at = 0; at < weights.size(); at += stride)
                for (size_t j = 1; j < (encoding == INT4 ? 4u : 2u); j += 2)
                    weights[at + j] = encoding == BF16 ? (weights[at + j] & 0x80) | 0x3f : weights[at + j] & 0xbf;
            std::vector<float> row(in);
            for (size_t n = 0; n < out; n++) {
                BASE_TARGET.dequantize(encoding, &weights[n * row_bytes], in, row.data());
                for (size_t k = 0; k < in; k++, compared++)
                    if (row[k] != static_cast<float>(weight(encoding, &weights[n * row_bytes], k))) {
                        std::printf("encoding %d, in %zu: row %zu, column %zu: %g\n", encoding, in, n, k, row[k]);
                        return 1;
                    }
            }
            for (size_t tokens = 1; tokens <= 17; tokens++) {
                std::vector<float> x(tokens * in), y(tokens * out), alone(out);
                for (float& value : x) value = static_cast<float>(next() >> 8) / (1 << 23) - 1;
                BASE_TARGET.linear(encoding, {weights.data(), row_bytes, in, out, x.data(), tokens, y.data()}, 0, out);
                for (size_t t = 0; t < tokens; t++) {
                    const Linear one = {weights.data(), row_bytes, in, out, &x[t * in], 1, alone.data()};
                    BASE_TARGET.linear(encoding, one, 0, out);
                    for (size_t n = 0; n < out; n++, compared++) {
                        double expected = 0, size = 0;
                        for (size_t k = 0; k < in; k++) {
                            const double term = weight(encoding, &weights[n * row_bytes], k) * x[t * in + k];
                            expected += term, size += std::fabs(term);
                        }
                        const float got = y[t * out + n];
                        if (!(std::fabs(got - expected) <= 1e-6 * size) || got != alone[n]) {
                            std::printf("encoding %d, in %zu: token %zu of %zu, row %zu: %g, alone %g, expected %g\n",
                                        encoding, in, t, tokens, n, got, alone[n], expected);
                            return 1;
                        }
                    }
                }
            }
        }
    std::printf("%s: %zu values agree\n", BASE_TARGET.name, compared);
}
