// The MLP's part of a pass.
#include "run.h"

namespace edgellm {

namespace {
constexpr size_t COLUMNS = 256;  // of the inner width at a time, so that they are still in the cache
}

const Projection* Run::mlp(const Mlp& mlp) {
    const Activations x = activations(w.normed, tokens);
    const size_t inner = mlp.inner(), ld = mlp.gate ? 2 * inner : inner;
    float *gate = w.gate_up, *up = mlp.gate ? w.gate_up + inner : w.gate_up;
    share(inner, rounded_up(row_grain(inner), GROUP), [&](size_t start, size_t end) {
        const size_t at_once = tokens >= SHARED_TOKENS ? COLUMNS : end - start;
        for (size_t from = start; from < end; from += at_once) {
            const size_t to = from + at_once < end ? from + at_once : end;
            if (mlp.gate) product(mlp.gate, x, gate, ld, from, to);
            product(mlp.up, x, up, ld, from, to);
            const float* up_bias = mlp.up.bias ? mlp.up.bias + from : nullptr;
            const float* gate_bias = mlp.gate.bias ? mlp.gate.bias + from : nullptr;
            for (size_t t = 0; t < tokens; t++) {
                float* out = w.activated.x + t * inner + from;
                if (mlp.gate)
                    op.gated[mlp.activation](gate + t * ld + from, gate_bias, up + t * ld + from, up_bias, to - from,
                                             mlp.limit, out);
                else
                    op.plain[mlp.activation](up + t * ld + from, up_bias, to - from, out);
                // By whoever computed them: in whole groups, because `inner` is.
                if (is_packed(mlp.down.matrix.encoding)) quantize(w.activated.x, inner, t, from, to - from, w.activated);
            }
        }
    });
    project(mlp.down, w.activated.x, w.activated);
    return &mlp.down;
}

}  // namespace edgellm
