// One product on one instruction set, done a given number of times: instructions.py counts what it executes.
//     one_product TARGET ENCODING ROWS COLUMNS TOKENS TIMES
#include <stdio.h>
#include <stdlib.h>

#include "gemm.h"

using namespace edgellm;

int main(int count, char** words) {
    if (count != 7 || !use_target(words[1])) return fprintf(stderr, "this processor can't run that\n"), 2;
    const int encoding = atoi(words[2]);
    const size_t out = strtoul(words[3], nullptr, 10), in = strtoul(words[4], nullptr, 10);
    const size_t tokens = strtoul(words[5], nullptr, 10), times = strtoul(words[6], nullptr, 10), n = tokens * in / GROUP;
    // All zeros: no kernel's path depends on a value.
    const auto* weight = static_cast<uint8_t*>(calloc(matrix_bytes(encoding, out, in), 1));
    const auto* q = static_cast<int8_t*>(calloc(tokens * in, 1));
    const auto* scale = static_cast<float*>(calloc(2 * n, sizeof(float)));
    const auto* offset = static_cast<int32_t*>(calloc(n, sizeof(int32_t)));
    auto* y = static_cast<float*>(calloc(tokens * out, sizeof(float)));
    const Activations a = {nullptr, q, scale, scale + n, offset, tokens};
    for (size_t i = 0; i < times; i++) target().product({weight, out, in, encoding}, a, y, out, 0, out);
}
