// A pass through a section's layers, in the order in which it is computed.
#include <stdlib.h>
#include <string.h>

#include "run.h"

namespace edgellm {

void Run::embed(size_t id, float* x) {
    target.dequantize(s.embedding.matrix, id, id + 1, x);
    if (s.embed_scale != 1.0f) op.scale(x, s.embed_scale, s.hidden);
}

void Run::embed() {
    for (size_t t = 0; s.per_layer && t < tokens; t++) {
        float* x = w.embedded.x + t * s.hidden;
        if (s.embedding)
            embed(static_cast<size_t>(pass.ids[t]), x);
        else
            memcpy(x, pass.hidden + t * s.row_in + s.hidden, s.hidden * sizeof(float));
        if (s.hidden % GROUP == 0) quantize(w.embedded.x, s.hidden, t, 0, s.hidden, w.embedded);
    }
    if (pass.hidden) {
        for (size_t t = 0; t < tokens; t++)
            memcpy(w.x + t * s.hidden, pass.hidden + t * s.row_in, s.hidden * sizeof(float));
        return;
    }
    size_t t = 0;
    for (size_t i = 0; i < pass.num_steps; i++)
        for (size_t j = 0; j < pass.steps[i].tokens; j++, t++) {
            const size_t at = pass.steps[i].position + j;
            float* x = w.x + t * s.hidden;
            embed(static_cast<size_t>(pass.ids[t]), x);
            if (s.position_embedding) {
                target.dequantize(s.position_embedding.matrix, at, at + 1, w.normed + t * s.hidden);
                op.add(x, w.normed + t * s.hidden, nullptr, s.hidden);
            }
        }
}

// x += what the last block made of it.
void Run::settle(const Added& last, size_t t) {
    if (last.from == nullptr) return;
    float *x = w.x + t * s.hidden, *added = w.added + t * s.hidden;
    const float* bias = last.from->bias;
    if (last.norm->weight) {
        if (bias) op.add(added, bias, nullptr, s.hidden);
        op.norm(added, *last.norm, s.hidden, added);
        bias = nullptr;
    }
    if (last.scale != 1.0f) {
        if (bias) op.add(added, bias, nullptr, s.hidden);
        op.scale(added, last.scale, s.hidden);
        bias = nullptr;
    }
    op.add(x, added, bias, s.hidden);
}

// Settles the last block, then norms x for the next one.
void Run::enter_block(const Added& last, const Norm& norm) {
    const bool at_once = last.from && norm.weight && !last.norm->weight && last.scale == 1.0f;
    for_tokens(tokens, [&](size_t t) {
        float *x = w.x + t * s.hidden, *normed = w.normed + t * s.hidden;
        if (at_once) {
            op.add_and_norm(x, w.added + t * s.hidden, last.from->bias, norm, s.hidden, normed);
        } else {
            settle(last, t);
            if (norm.weight)
                op.norm(x, norm, s.hidden, normed);
            else
                memcpy(normed, x, s.hidden * sizeof(float));
        }
        if (s.hidden % GROUP == 0) quantize(w.normed, s.hidden, t);
    });
}

// Rows of hidden states, and of embeddings where the next section needs them. Keys and values are there already.
void Run::give_out() {
    if (pass.out == nullptr) return;
    const size_t row = sends() ? s.row_out : s.hidden, size = s.hidden * sizeof(float);
    for (size_t t = 0; t < tokens; t++) {
        memcpy(pass.out + t * row, w.x + t * s.hidden, size);
        if (s.per_layer && row > s.hidden) memcpy(pass.out + t * row + s.hidden, w.embedded.x + t * s.hidden, size);
    }
}

void Run::logits() {
    size_t t = 0, wanted = 0;
    for (size_t i = 0; i < pass.num_steps; i++) {
        t += pass.steps[i].tokens;
        for (size_t j = t - pass.steps[i].logits; j < t; j++, wanted++) {
            op.norm(w.x + j * s.hidden, s.final_norm, s.hidden, w.normed + wanted * s.hidden);
            if (s.hidden % GROUP == 0) quantize(w.normed, s.hidden, wanted);
        }
    }
    if (wanted == 0) return;
    const Activations x = activations(w.normed, wanted);
    const bool scaled = s.logit_scale != 1.0f || s.logit_soft_cap != 0.0f;
    share(s.vocab, ROWS_AT_ONCE, [&](size_t start, size_t end) {
        product(s.head, x, pass.logits, s.vocab, start, end);
        if (!scaled) return;
        for (size_t i = 0; i < wanted; i++)
            op.bound(pass.logits + i * s.vocab + start, s.logit_scale, s.logit_soft_cap, end - start);
    });
}

void Run::all() {
    for (size_t i = 0; i < pass.num_steps; i++) {
        slots[i] = static_cast<uint8_t*>(pass.steps[i].slot);
        for (size_t j = 0; j < pass.layer_start; j++)
            slots[i] += slot_bytes(s.layers[j], pass.steps[i].context, pass.steps[i].kv_encoding);
    }
    embed();
    Added last = {nullptr, nullptr, 1.0f};
    const auto settle_all = [&] {
        if (last.from) for_tokens(tokens, [&](size_t t) { settle(last, t); });
        last.from = nullptr;
    };
    for (size_t i = pass.layer_start; i < pass.layer_end; i++) {
        const Layer& layer = s.layers[i];
        if (layer.mixer) {
            enter_block(last, layer.before_mixer);
            const Projection* from = layer.mixer == ATTENTION          ? attention(layer.attention)
                                     : layer.mixer == LATENT_ATTENTION ? latent(layer.latent)
                                                                       : recurrent(layer.recurrent);
            last = {from, &layer.after_mixer, layer.residual_scale};
        }
        if (layer.experts.count || layer.mlp.up) {
            enter_block(last, layer.before_feed_forward);
            const Projection* from = layer.experts.count ? experts(layer) : mlp(layer.mlp);
            last = {from, &layer.after_feed_forward, layer.residual_scale};
        }
        if (layer.per_layer.table) {
            enter_block(last, {nullptr, nullptr, s.eps});
            last = {per_layer(layer.per_layer), &layer.per_layer.after, 1.0f};
        }
        if (layer.output_scale != 1.0f) {
            settle_all();
            for_tokens(tokens, [&](size_t t) { op.scale(w.x + t * s.hidden, layer.output_scale, s.hidden); });
        }
        for (size_t j = 0; j < pass.num_steps; j++)
            slots[j] += slot_bytes(layer, pass.steps[j].context, pass.steps[j].kv_encoding);
    }
    settle_all();
    give_out();
    logits();
}

void run(Section& section, const Pass& pass) { Run(section, pass).all(); }

bool make_room(Section& s, size_t tokens) {
    Workspace& w = s.work;
    if (tokens <= w.tokens) return true;
    size_t mixed = 0, attended = 0, inner = 0, gate_up = 0, replayed = 0;
    size_t experts = 0, top_k = 0, expert_inner = 0, shared = 0;
    size_t down = 0, nope = 0, queries = 0, sums = 0;  // of latent layers: the last three of all pairs
    const auto reach = [](size_t& most, size_t size) { most = size > most ? size : most; };
    for (size_t i = 0; i < s.num_layers; i++) {
        const Layer& layer = s.layers[i];
        reach(mixed, mixer_in(layer));
        reach(attended, mixer_out(layer));
        if (is_recurrent(layer.mixer)) reach(replayed, LOG_TOKENS * mixer_in(layer));
        if (layer.mixer == LATENT_ATTENTION) {
            const Latent& l = layer.latent;
            const size_t pairs = latent_pairs(l.heads, tokens);
            if (l.q_a) reach(down, l.q_a.rows);
            reach(nope, pairs * l.nope_dim);
            reach(queries, pairs * l.kept_dim());
            reach(sums, pairs * l.rank);
        }
        reach(inner, layer.mlp.inner());
        reach(gate_up, layer.mlp.gate ? 2 * layer.mlp.inner() : layer.mlp.inner());
        reach(inner, layer.per_layer.width());
        reach(gate_up, 2 * layer.per_layer.width());
        if (layer.experts.count == 0) continue;
        reach(experts, layer.experts.count + 1);
        reach(top_k, layer.experts.top_k);
        reach(expert_inner, layer.experts.experts.inner());
        if (layer.mlp.up) shared = s.hidden;
    }
    size_t widest = s.hidden;
    reach(widest, attended);
    ExpertsRoom& room = w.experts;
    const size_t into = top_k * s.hidden, from = top_k * expert_inner;  // of a token's pairs
    LatentRoom& latent = w.latent;
    const size_t embedded = s.per_layer ? s.hidden : 0;
    constexpr size_t INPUTS = 8;
    float *chosen, *pair_tokens, *q[INPUTS], *offset[INPUTS];  // of other types
    Quantized* const quantized[INPUTS] = {&w.quantized, &w.activated, &room.gathered, &room.inner,
                                          &w.embedded, &latent.down, &latent.nope, &latent.sums};
    const struct {
        float** place;
        size_t count;
    } parts[] = {
        {&w.x, s.hidden}, {&w.normed, s.hidden}, {&w.added, s.hidden}, {&w.mixed, mixed}, {&w.attended, attended},
        {&w.gate_up, gate_up}, {&q[0], widest / 4 + 1}, {&w.quantized.scale, widest / GROUP + 1},
        {&w.quantized.sum, widest / GROUP + 1}, {&offset[0], widest / GROUP + 1},
        {&w.activated.x, inner}, {&q[1], inner / 4}, {&w.activated.scale, inner / GROUP},
        {&w.activated.sum, inner / GROUP}, {&offset[1], inner / GROUP},
        {&w.embedded.x, embedded}, {&q[4], embedded / 4}, {&w.embedded.scale, embedded / GROUP},
        {&w.embedded.sum, embedded / GROUP}, {&offset[4], embedded / GROUP},
        {&room.scores, experts}, {&chosen, top_k}, {&room.weights, top_k}, {&pair_tokens, top_k}, {&room.shares, top_k},
        {&room.gathered.x, into}, {&q[2], into / 4}, {&room.gathered.scale, into / GROUP},
        {&room.gathered.sum, into / GROUP}, {&offset[2], into / GROUP},
        {&room.gate_up, 2 * from}, {&room.inner.x, from}, {&q[3], from / 4}, {&room.inner.scale, from / GROUP},
        {&room.inner.sum, from / GROUP}, {&offset[3], from / GROUP},
        {&room.out, top_k ? s.hidden : 0}, {&room.sum, shared}, {&latent.down.x, down}, {&q[5], down / 4},
        {&latent.down.scale, down / GROUP}, {&latent.down.sum, down / GROUP}, {&offset[5], down / GROUP},
    };
    const struct {
        float** place;
        size_t count;
    } of_pairs[] = {
        {&latent.nope.x, nope}, {&q[6], nope / 4}, {&latent.nope.scale, nope / GROUP}, {&latent.nope.sum, nope / GROUP},
        {&offset[6], nope / GROUP}, {&latent.queries, queries}, {&latent.sums.x, sums}, {&q[7], sums / 4},
        {&latent.sums.scale, sums / GROUP}, {&latent.sums.sum, sums / GROUP}, {&offset[7], sums / GROUP},
    };
    constexpr size_t LINE = 64 / sizeof(float);
    size_t total = (replayed + LINE - 1) / LINE * LINE;
    const auto lines = [=](size_t count) { return (count * tokens + LINE - 1) / LINE * LINE + LINE; };
    const auto lines_of = [=](size_t count) { return (count + LINE - 1) / LINE * LINE + LINE; };
    for (const auto& part : parts) total += lines(part.count);
    for (const auto& part : of_pairs) total += lines_of(part.count);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, total * sizeof(float))) return false;
    free(w.memory);
    w.memory = memory;
    w.tokens = tokens;
    float* at = static_cast<float*>(memory);
    for (const auto& part : parts) {
        *part.place = at;
        at += lines(part.count);
    }
    for (const auto& part : of_pairs) {
        *part.place = at;
        at += lines_of(part.count);
    }
    w.replayed = at;
    for (size_t i = 0; i < INPUTS; i++) {
        quantized[i]->q = reinterpret_cast<int8_t*>(q[i]);
        quantized[i]->offset = reinterpret_cast<int32_t*>(offset[i]);
    }
    room.chosen = reinterpret_cast<uint32_t*>(chosen);
    room.tokens = reinterpret_cast<uint32_t*>(pair_tokens);
    return true;
}

const Ops& ops() {
#ifdef EDGELLM_X86_64
    const char* name = target().name;
    if (strncmp(name, "avx512", 6) == 0) return AVX512_OPS;
    if (strncmp(name, "avx2", 4) == 0) return AVX2_OPS;
#endif
    return BASE_OPS;
}

}  // namespace edgellm
