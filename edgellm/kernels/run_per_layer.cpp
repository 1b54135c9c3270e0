// Per-layer embeddings' part of a pass: what a token's id has for this layer, and what its embedding has, are added to what
// the layer gives, through a gate.
#include "run.h"

namespace edgellm {

const Projection* Run::per_layer(const PerLayer& p) {
    const size_t width = p.width(), ld = 2 * width;
    const Activations x = activations(w.normed, tokens);
    const Activations embedded = activations(w.embedded.x, w.embedded, tokens);
    share(ld, ROWS_AT_ONCE, [&](size_t start, size_t end) {
        if (start < width) product(p.gate, x, w.gate_up, ld, start, end < width ? end : width);
        if (end > width) product(p.model, embedded, w.gate_up + width, ld, start > width ? start - width : 0, end - width);
    });
    for_tokens(tokens, [&](size_t t) {
        float *gate = w.gate_up + t * ld, *input = gate + width, *row = w.activated.x + t * width;
        op.scale(input, p.model_scale, width);
        op.norm(input, {p.norm, nullptr, s.eps}, width, input);
        const size_t id = static_cast<size_t>(pass.ids[t]);
        target.dequantize(p.table.matrix, id, id + 1, row);
        op.scale(row, p.table_scale, width);
        op.add(input, row, nullptr, width);
        op.scale(input, p.scale, width);
        op.gated[p.activation](gate, nullptr, input, nullptr, width, 0.0f, row);
        if (is_packed(p.projection.matrix.encoding)) quantize(w.activated.x, width, t, 0, width, w.activated);
    });
    project(p.projection, w.activated.x, w.activated);
    return &p.projection;
}

}  // namespace edgellm
