// The C ABI of a section: everything that comes in is checked here, so that what runs needs no checks.
#include "section.h"

#include <stdlib.h>
#include <string.h>

namespace edgellm {
namespace {

constexpr uint64_t MOST = uint64_t{1} << 24;  // of any size of a model: products of two stay far below 2^64

#define CHECK(call) \
    if (const int status = (call)) return status

int take(const FloatsSpec& spec, size_t count, bool needed, const float** into) {
    *into = spec.data;
    if (spec.data == nullptr) return needed ? BAD_POINTER : OK;
    if (!is_at(spec.data)) return BAD_POINTER;
    return spec.count == count ? OK : BAD_LENGTH;
}

int take(const NormSpec& spec, size_t count, float eps, Norm* into) {
    into->eps = eps;
    CHECK(take(spec.weight, count, true, &into->weight));
    return take(spec.bias, count, false, &into->bias);
}

int take(const ProjectionSpec& spec, size_t rows, size_t in, Projection* into) {
    if (spec.data == nullptr) return BAD_POINTER;
    if (spec.encoding < INT4 || spec.encoding >= ENCODINGS) return BAD_ENCODING;
    const int encoding = static_cast<int>(spec.encoding);
    if (spec.rows != rows || spec.in != in || spec.out >= MOST || spec.first > spec.out ||
        spec.rows > spec.out - spec.first || spec.first % TILE || (is_packed(encoding) && in % GROUP))
        return BAD_SHAPE;
    if (spec.bytes != matrix_bytes(encoding, spec.out, in)) return BAD_LENGTH;
    if (!is_packed(encoding) && reinterpret_cast<uintptr_t>(spec.data) % value_bytes(encoding)) return BAD_POINTER;
    into->matrix = {static_cast<const uint8_t*>(spec.data), spec.out, spec.in, encoding};
    into->first = spec.first;
    into->rows = spec.rows;
    return take(spec.bias, rows, false, &into->bias);
}

// An embedding or the head: all rows of a weight, and no bias.
int take_end(const ProjectionSpec& spec, size_t rows, const Section& s, Projection* into) {
    if (rows == 0 || spec.out != rows || spec.bias.data) return BAD_SHAPE;
    return take(spec, rows, s.hidden, into);
}

int take(const LayerSpec& spec, const Section& s, Layer* into) {
    const size_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    CHECK(take(spec.before_attention, s.hidden, s.eps, &into->before_attention));
    CHECK(take(spec.before_mlp, s.hidden, s.eps, &into->before_mlp));
    CHECK(take(spec.q, q, s.hidden, &into->q));
    CHECK(take(spec.k, kv, s.hidden, &into->k));
    CHECK(take(spec.v, kv, s.hidden, &into->v));
    CHECK(take(spec.o, s.hidden, q, &into->o));
    if (spec.gate.data) CHECK(take(spec.gate, s.intermediate, s.hidden, &into->gate));
    CHECK(take(spec.up, s.intermediate, s.hidden, &into->up));
    CHECK(take(spec.down, s.hidden, s.intermediate, &into->down));
    CHECK(take(spec.q_norm, s.head_dim, false, &into->q_norm));
    CHECK(take(spec.k_norm, s.head_dim, false, &into->k_norm));
    into->attention_scale = static_cast<float>(spec.attention_scale);
    into->window = spec.window;
    return OK;
}

int take(const SectionSpec& spec, Section* into) {
    Section& s = *into;
    const uint64_t sizes[] = {spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.intermediate, spec.num_layers};
    for (const uint64_t size : sizes)
        if (size == 0 || size >= MOST) return BAD_SHAPE;
    if (spec.hidden % LANE_COUNT || spec.intermediate % LANE_COUNT || spec.head_dim % LANE_COUNT ||
        spec.head_dim > MOST_HEAD_DIM || spec.heads > MOST_HEADS || spec.num_layers > 4096 ||
        spec.heads % spec.kv_heads || spec.heads / spec.kv_heads > MOST_ROWS || spec.rotary_dim % 2 || spec.rotary_dim > spec.head_dim ||
        spec.vocab >= MOST || spec.positions >= MOST)
        return BAD_SHAPE;
    s.hidden = spec.hidden;
    s.heads = spec.heads;
    s.kv_heads = spec.kv_heads;
    s.head_dim = spec.head_dim;
    s.rotary_dim = spec.rotary_dim;
    s.intermediate = spec.intermediate;
    s.vocab = spec.vocab;
    s.positions = spec.positions;
    s.eps = static_cast<float>(spec.eps);
    if (!is_at(spec.layers)) return BAD_POINTER;
    s.layers = static_cast<Layer*>(calloc(spec.num_layers, sizeof(Layer)));
    if (s.layers == nullptr) return NO_MEMORY;
    s.num_layers = spec.num_layers;
    for (size_t i = 0; i < s.num_layers; i++) CHECK(take(spec.layers[i], s, &s.layers[i]));
    if (spec.embedding.data) CHECK(take_end(spec.embedding, s.vocab, s, &s.embedding));
    if (spec.position_embedding.data)
        CHECK(take_end(spec.position_embedding, s.positions, s, &s.position_embedding));
    if (spec.head.data) {
        CHECK(take(spec.final_norm, s.hidden, s.eps, &s.final_norm));
        CHECK(take_end(spec.head, s.vocab, s, &s.head));
    }
    return OK;
}

int check(const Section& s, const StepSpec& step) {
    if (step.tokens == 0 || step.tokens > MOST_TOKENS || step.logits > step.tokens || step.rope >= ROPES)
        return BAD_SHAPE;
    if (step.context >= MOST || step.position > step.context || step.tokens > step.context - step.position)
        return BAD_SHAPE;
    if (step.kv_encoding != F16 && step.kv_encoding != F32) return BAD_ENCODING;
    if (step.kv == nullptr || reinterpret_cast<uintptr_t>(step.kv) % 4) return BAD_POINTER;
    const size_t layer = 2 * kv_layer_bytes(s, step.context, step.kv_encoding == F16);
    if (step.kv_bytes != s.num_layers * layer) return BAD_LENGTH;
    const size_t end = step.position + step.tokens;
    if (s.rotary_dim && s.ropes[step.rope].positions < end) return BAD_SHAPE;
    if (s.position_embedding && s.positions < end) return BAD_SHAPE;
    return OK;
}

}  // namespace

int edgellm_section_new(const SectionSpec* spec, uint64_t spec_bytes, Section** into) {
    if (!is_at(spec) || !is_at(into)) return BAD_POINTER;
    if (spec_bytes != sizeof(SectionSpec)) return BAD_LENGTH;
    Section* section = static_cast<Section*>(calloc(1, sizeof(Section)));
    if (section == nullptr) return NO_MEMORY;
    const int status = take(*spec, section);
    if (status) {
        free(section->layers);
        free(section);
        return status;
    }
    *into = section;
    return OK;
}

void edgellm_section_free(Section* section) {
    if (section == nullptr) return;
    free(section->work.memory);
    free(section->layers);
    free(section);
}

int edgellm_section_rope(Section* section, uint64_t which, const float* cos, const float* sin, uint64_t count,
                                uint64_t positions) {
    if (!is_at(section) || !is_at(cos) || !is_at(sin)) return BAD_POINTER;
    if (which >= ROPES || positions >= MOST) return BAD_SHAPE;
    if (count != positions * (section->rotary_dim / 2)) return BAD_LENGTH;
    section->ropes[which] = {cos, sin, positions};
    return OK;
}

int edgellm_section_run(Section* section, const StepSpec* steps, uint64_t num_steps, uint64_t layer_start,
                               uint64_t layer_end, const int64_t* ids, const float* hidden, uint64_t count, float* out,
                               uint64_t out_elements, float* logits, uint64_t logits_elements) {
    if (!is_at(section) || !is_at(steps) || (ids == nullptr) == (hidden == nullptr)) return BAD_POINTER;
    if ((ids && !is_at(ids)) || (hidden && !is_at(hidden)) || (out && !is_at(out))) return BAD_POINTER;
    Section& s = *section;
    if (num_steps == 0 || num_steps > MOST_STEPS || layer_start > layer_end || layer_end > s.num_layers)
        return BAD_SHAPE;
    uint64_t tokens = 0, wanted = 0;
    for (uint64_t i = 0; i < num_steps; i++) {
        CHECK(check(s, steps[i]));
        tokens += steps[i].tokens;
        wanted += steps[i].logits;
    }
    if (tokens > MOST_TOKENS || (ids && !s.embedding) || (wanted && !s.head)) return BAD_SHAPE;
    if (tokens != count || logits_elements != wanted * s.vocab) return BAD_LENGTH;
    if (out_elements != (out ? tokens * s.hidden : 0)) return BAD_LENGTH;
    if (wanted && !is_at(logits)) return BAD_POINTER;
    for (uint64_t i = 0; ids && i < tokens; i++)
        if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= s.vocab) return BAD_SHAPE;
    if (!make_room(s, tokens)) return NO_MEMORY;
    run(s, {steps, num_steps, tokens, layer_start, layer_end, ids, hidden, out, logits});
    return OK;
}

}  // namespace edgellm
