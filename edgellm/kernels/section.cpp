// The C ABI of a section: everything that comes in is checked here, so that what runs needs no checks.
#include "section.h"

#include <stdlib.h>
#include <string.h>

namespace edgellm {
namespace {

constexpr uint64_t MOST = uint64_t{1} << 24;  // of any size of a model: products of two stay far below 2^64

constexpr uint64_t MOST_HIDDEN_OF_ROW = 64;    // as many floats a row may have at most; no model comes near

#define CHECK(call) \
    if (const int status = (call)) return status

int take(const FloatsSpec& spec, size_t count, bool needed, const float** into) {
    *into = spec.data;
    if (spec.data == nullptr) return needed ? BAD_POINTER : OK;
    if (!is_at(spec.data)) return BAD_POINTER;
    return spec.count == count ? OK : BAD_LENGTH;
}

int take(const NormSpec& spec, size_t count, bool needed, float eps, Norm* into) {
    into->eps = eps;
    if (spec.weight.data == nullptr && spec.bias.data) return BAD_POINTER;
    CHECK(take(spec.weight, count, needed, &into->weight));
    return take(spec.bias, count, false, &into->bias);
}

int take(const ProjectionSpec& spec, size_t rows, size_t in, size_t experts, Projection* into) {
    if (spec.data == nullptr) return BAD_POINTER;
    if (spec.encoding < INT4 || spec.encoding >= ENCODINGS) return BAD_ENCODING;
    const int encoding = static_cast<int>(spec.encoding);
    if (rows == 0 || spec.rows != rows || spec.in != in || spec.out >= MOST || spec.first > spec.out ||
        spec.rows > spec.out - spec.first || spec.first % TILE || spec.experts != experts ||
        (is_packed(encoding) && in % block_columns(encoding)))
        return BAD_SHAPE;
    const size_t bytes = matrix_bytes(encoding, spec.out, in);
    if (spec.bytes != bytes * (experts ? experts : 1)) return BAD_LENGTH;
    if (!is_packed(encoding) && reinterpret_cast<uintptr_t>(spec.data) % value_bytes(encoding)) return BAD_POINTER;
    into->matrix = {static_cast<const uint8_t*>(spec.data), spec.out, spec.in, encoding};
    into->first = spec.first;
    into->rows = spec.rows;
    into->experts = experts;
    into->expert_bytes = bytes;
    return take(spec.bias, rows * (experts ? experts : 1), false, &into->bias);
}

int take(const ProjectionSpec& spec, size_t rows, size_t in, Projection* into) { return take(spec, rows, in, 0, into); }

// An embedding or the head: all rows of a weight, and no bias.
int take_end(const ProjectionSpec& spec, size_t rows, const Section& s, Projection* into) {
    if (spec.out != rows || spec.bias.data) return BAD_SHAPE;
    return take(spec, rows, s.hidden, into);
}

// A norm over each head, or over all of them at once.
int take_norm(const FloatsSpec& spec, size_t dim, size_t heads, const float** into, bool* whole) {
    *whole = spec.data && heads > 1 && spec.count == heads * dim;
    return take(spec, *whole ? heads * dim : dim, false, into);
}

bool is_size(uint64_t size) { return size != 0 && size < MOST && size % LANE_COUNT == 0; }

// What another layer, or another section, gives or is given of keys and values. `number` counts the section's layers.
int take_shared(const AttentionSpec& spec, const Section& s, size_t number, Attention* into) {
    Attention& a = *into;
    const uint64_t floats = 2 * a.kv_rows();
    if (spec.shared > 1 || spec.source > number || (spec.source && (spec.shared || spec.received || spec.sent)))
        return BAD_SHAPE;
    if (spec.received && (spec.received < s.hidden || spec.received > s.row_in || floats > s.row_in - spec.received))
        return BAD_SHAPE;
    if (spec.sent && (spec.sent < s.hidden || spec.sent > s.row_out || floats > s.row_out - spec.sent)) return BAD_SHAPE;
    a.source = spec.source;
    a.received = spec.received;
    a.sent = spec.sent;
    a.shared = spec.shared;
    if (!a.source) return OK;
    const Layer& source = s.layers[a.source - 1];
    const Attention& seen = source.attention;
    const bool fits = source.mixer == ATTENTION && !seen.source && seen.shared && seen.kv_heads == a.kv_heads &&
                      seen.dim == a.dim && seen.window == a.window;
    return fits ? OK : BAD_SHAPE;
}

int take(const AttentionSpec& spec, const Section& s, size_t number, Attention* into) {
    if (!is_size(spec.head_dim) || spec.head_dim > MOST_HEAD_DIM || spec.heads == 0 || spec.heads > MOST_HEADS ||
        spec.kv_heads == 0 || spec.heads % spec.kv_heads || spec.heads / spec.kv_heads > MOST_ROWS ||
        spec.rotary_dim % 2 || spec.rotary_dim > spec.head_dim || spec.interleaved > 1 || spec.gated > 1 ||
        (spec.rope != NO_ROPE && (spec.rope >= ROPES / 2 || spec.rotary_dim == 0)) ||
        (spec.rope == NO_ROPE && spec.rotary_dim))
        return BAD_SHAPE;
    Attention& a = *into;
    a.heads = spec.heads;
    a.kv_heads = spec.kv_heads;
    a.dim = spec.head_dim;
    a.rotary_dim = spec.rotary_dim;
    a.rope = spec.rope;
    a.window = spec.window;
    a.interleaved = spec.interleaved;
    a.gated = spec.gated;
    a.scale = static_cast<float>(spec.scale);
    a.soft_cap = static_cast<float>(spec.soft_cap);
    CHECK(take_shared(spec, s, number, &a));
    CHECK(take(spec.q, a.q_rows(), s.hidden, &a.q));
    if ((a.source || a.received) != (spec.k.data == nullptr) || (spec.v.data && !spec.k.data)) return BAD_POINTER;
    if (spec.k.data) CHECK(take(spec.k, a.kv_rows(), s.hidden, &a.k));
    if (spec.v.data) CHECK(take(spec.v, a.kv_rows(), s.hidden, &a.v));
    CHECK(take(spec.o, s.hidden, a.heads * a.dim, &a.o));
    CHECK(take_norm(spec.q_norm, a.dim, a.heads, &a.q_norm, &a.q_norm_whole));
    CHECK(take_norm(spec.k_norm, a.dim, a.kv_heads, &a.k_norm, &a.k_norm_whole));
    if ((a.q_norm_whole && a.gated) || (!a.v && a.k.bias)) return BAD_SHAPE;  // no model is like this
    CHECK(take(spec.v_norm, a.dim, false, &a.v_norm));
    CHECK(take(spec.query_scales, spec.query_scales.count, false, &a.query_scales));
    if ((a.query_scales != nullptr) != (spec.scale_every != 0)) return BAD_SHAPE;
    a.num_scales = spec.query_scales.count;
    a.scale_every = spec.scale_every;
    return take(spec.sinks, a.heads, false, &a.sinks);
}

int take(const LatentSpec& spec, const Section& s, Latent* into) {
    const uint64_t dims[] = {spec.nope_dim, spec.rope_dim, spec.value_dim, spec.rank};
    for (const uint64_t dim : dims)
        if (!is_size(dim) || dim > MOST_HEAD_DIM) return BAD_SHAPE;
    if (spec.heads == 0 || spec.heads > MOST_HEADS || spec.rope >= ROPES / 2 || spec.interleaved > 1) return BAD_SHAPE;
    Latent& l = *into;
    l.heads = spec.heads;
    l.nope_dim = spec.nope_dim;
    l.rope_dim = spec.rope_dim;
    l.value_dim = spec.value_dim;
    l.rank = spec.rank;
    l.rope = spec.rope;
    l.interleaved = spec.interleaved;
    l.scale = static_cast<float>(spec.scale);
    l.eps = static_cast<float>(spec.eps);
    size_t in = s.hidden;
    if (spec.q_a.data) {
        in = spec.q_a.rows;
        if (!is_size(in)) return BAD_SHAPE;
        CHECK(take(spec.q_a, in, s.hidden, &l.q_a));
    }
    CHECK(take(spec.q_norm, in, spec.q_a.data != nullptr, &l.q_norm));
    CHECK(take(spec.q, l.q_rows(), in, &l.q));
    CHECK(take(spec.kv_a, l.kept_dim(), s.hidden, &l.kv_a));
    CHECK(take(spec.kv_norm, l.rank, true, &l.kv_norm));
    CHECK(take(spec.k_b, l.rank, l.nope_dim, l.heads, &l.k_b));
    CHECK(take(spec.v_b, l.value_dim, l.rank, l.heads, &l.v_b));
    if (spec.q.bias.data || spec.k_b.bias.data || spec.v_b.bias.data) return BAD_SHAPE;  // no model is like this
    return take(spec.o, s.hidden, l.heads * l.value_dim, &l.o);
}

// Sizes of the heads, of DELTA_RULE and MAMBA2.
bool fit(const RecurrentSpec& spec, int kind) {
    if (!is_size(spec.key_dim) || spec.key_dim > MOST_HEAD_DIM || !is_size(spec.value_dim) ||
        spec.value_dim > MOST_HEAD_DIM || spec.key_heads == 0 || spec.value_heads == 0 ||
        spec.value_heads > MOST_HEADS || spec.value_heads % spec.key_heads)
        return false;
    const uint64_t keys = spec.key_heads * spec.key_dim, inner = spec.value_heads * spec.value_dim;
    if (spec.channels != inner + 2 * keys) return false;
    if (kind == DELTA_RULE) return spec.interleaved <= 1 && spec.tiled <= 1 && spec.interleaved + spec.tiled < 2;
    return spec.norm_groups != 0 && inner % spec.norm_groups == 0 && inner / spec.norm_groups % LANE_COUNT == 0 &&
           spec.gate_first <= 1 && spec.least_dt <= spec.most_dt;
}

int take(const RecurrentSpec& spec, int kind, const Section& s, Recurrent* into) {
    if (!is_size(spec.channels) || spec.kernel == 0 || spec.kernel > MOST_KERNEL) return BAD_SHAPE;
    if (kind != SHORT_CONV && !fit(spec, kind)) return BAD_SHAPE;
    Recurrent& r = *into;
    r.kind = kind;
    r.channels = spec.channels;
    r.kernel = spec.kernel;
    CHECK(take(spec.conv, r.kernel * r.channels, true, &r.conv));
    CHECK(take(spec.conv_bias, r.channels, false, &r.conv_bias));
    if (kind == SHORT_CONV) {
        CHECK(take(spec.in, 3 * r.channels, s.hidden, &r.in));
        return take(spec.out, s.hidden, r.channels, &r.out);
    }
    r.key_heads = spec.key_heads;
    r.value_heads = spec.value_heads;
    r.key_dim = spec.key_dim;
    r.value_dim = spec.value_dim;
    CHECK(take(spec.rate, r.value_heads, true, &r.rate));
    CHECK(take(spec.dt_bias, r.value_heads, true, &r.dt_bias));
    CHECK(take(spec.out, s.hidden, r.inner(), &r.out));
    if (kind == MAMBA2) {
        r.norm_groups = spec.norm_groups;
        r.gate_first = spec.gate_first;
        r.least_dt = static_cast<float>(spec.least_dt);
        r.most_dt = static_cast<float>(spec.most_dt);
        CHECK(take(spec.d, r.value_heads, true, &r.d));
        CHECK(take(spec.norm, r.inner(), true, &r.norm));
        return take(spec.in, r.inner() + r.channels + r.value_heads, s.hidden, &r.in);
    }
    r.interleaved = spec.interleaved;
    r.tiled = spec.tiled;
    CHECK(take(spec.norm, r.value_dim, true, &r.norm));
    if (spec.in.bias.data || spec.z.bias.data || spec.a.bias.data || spec.b.bias.data) return BAD_SHAPE;  // nor any model
    if (r.interleaved) {
        CHECK(take(spec.in, r.channels + r.inner(), s.hidden, &r.in));
        return take(spec.b, 2 * r.value_heads, s.hidden, &r.b);
    }
    CHECK(take(spec.in, r.channels, s.hidden, &r.in));
    CHECK(take(spec.z, r.inner(), s.hidden, &r.z));
    CHECK(take(spec.a, r.value_heads, s.hidden, &r.a));
    return take(spec.b, r.value_heads, s.hidden, &r.b);
}

int take(const MlpSpec& spec, size_t hidden, size_t experts, Mlp* into) {
    if (spec.activation < 0 || spec.activation >= ACTIVATIONS || !is_size(spec.up.rows)) return BAD_SHAPE;
    into->activation = static_cast<int>(spec.activation);
    into->limit = static_cast<float>(spec.limit);
    const size_t inner = spec.up.rows;
    if (spec.gate.data) CHECK(take(spec.gate, inner, hidden, experts, &into->gate));
    if ((spec.activation == SWIGLU_CLAMPED || spec.activation == SILU) != (spec.gate.data != nullptr) &&
        spec.activation != GELU_TANH)
        return BAD_SHAPE;  // silu is for gates, relu squared isn't
    CHECK(take(spec.up, inner, hidden, experts, &into->up));
    return take(spec.down, hidden, inner, experts, &into->down);
}

int take(const ExpertsSpec& spec, const Section& s, bool shared, Experts* into) {
    const uint64_t count = spec.count, groups = spec.groups;
    if (count > MOST_EXPERTS || spec.top_k == 0 || spec.top_k > MOST_CHOSEN || spec.top_k > count || groups == 0 ||
        count % groups || spec.group_by_best > 1 ||
        (groups > 1 && count / groups < (spec.group_by_best ? 1 : 2)) || spec.top_groups == 0 || spec.top_groups > groups ||
        spec.top_k > spec.top_groups * (count / groups) || spec.normalise > 1 || spec.scoring < 0 ||
        spec.scoring >= SCORINGS || (spec.shared_gate.data && !shared))
        return BAD_SHAPE;
    Experts& e = *into;
    e.count = count;
    e.top_k = spec.top_k;
    e.groups = groups;
    e.top_groups = spec.top_groups;
    e.group_by_best = spec.group_by_best;
    e.normalise = spec.normalise;
    e.scoring = static_cast<int>(spec.scoring);
    e.scale = static_cast<float>(spec.scale);
    CHECK(take(spec.expert_scales, count, false, &e.scales));
    CHECK(take(spec.router_norm, s.hidden, false, &e.router_norm));
    if (e.router_norm) {
        if (!shared || spec.shared_gate.data) return BAD_SHAPE;
        CHECK(take(spec.before, s.hidden, true, s.eps, &e.before));
        CHECK(take(spec.after_shared, s.hidden, true, s.eps, &e.after_shared));
        CHECK(take(spec.after, s.hidden, true, s.eps, &e.after));
    }
    CHECK(take(spec.router, count, s.hidden, &e.router));
    CHECK(take(spec.correction, count, false, &e.correction));
    if (spec.shared_gate.data) CHECK(take(spec.shared_gate, 1, s.hidden, &e.shared_gate));
    return take(spec.experts, s.hidden, count, &e.experts);
}

int take(const PerLayerSpec& spec, const Section& s, PerLayer* into) {
    const uint64_t width = spec.gate.rows;
    if (!is_size(width) || spec.activation < 0 || spec.activation >= ACTIVATIONS || spec.table.bias.data ||
        spec.model.bias.data || spec.gate.bias.data || spec.table.first || spec.table.out != s.vocab)
        return BAD_SHAPE;
    PerLayer& p = *into;
    p.activation = static_cast<int>(spec.activation);
    p.table_scale = static_cast<float>(spec.table_scale);
    p.model_scale = static_cast<float>(spec.model_scale);
    p.scale = static_cast<float>(spec.scale);
    CHECK(take(spec.table, s.vocab, width, &p.table));
    CHECK(take(spec.model, width, s.hidden, &p.model));
    CHECK(take(spec.gate, width, s.hidden, &p.gate));
    CHECK(take(spec.projection, s.hidden, width, &p.projection));
    CHECK(take(spec.norm, width, true, &p.norm));
    return take(spec.after, s.hidden, true, s.eps, &p.after);
}

int take(const LayerSpec& spec, const Section& s, size_t number, Layer* into) {
    CHECK(take(spec.before_mixer, s.hidden, false, s.eps, &into->before_mixer));
    CHECK(take(spec.after_mixer, s.hidden, false, s.eps, &into->after_mixer));
    CHECK(take(spec.before_feed_forward, s.hidden, false, s.eps, &into->before_feed_forward));
    CHECK(take(spec.after_feed_forward, s.hidden, false, s.eps, &into->after_feed_forward));
    into->residual_scale = static_cast<float>(spec.residual_scale);
    into->output_scale = static_cast<float>(spec.output_scale);
    if (spec.mixer < 0 || spec.mixer >= MIXERS) return BAD_SHAPE;
    into->mixer = static_cast<int>(spec.mixer);
    if (into->mixer == ATTENTION) CHECK(take(spec.attention, s, number, &into->attention));
    if (into->mixer == LATENT_ATTENTION) CHECK(take(spec.latent, s, &into->latent));
    if (is_recurrent(into->mixer)) CHECK(take(spec.recurrent, into->mixer, s, &into->recurrent));
    if (spec.mlp.up.data) CHECK(take(spec.mlp, s.hidden, 0, &into->mlp));
    if (spec.per_layer.table.data) CHECK(take(spec.per_layer, s, &into->per_layer));
    if (spec.experts.count) return take(spec.experts, s, spec.mlp.up.data != nullptr, &into->experts);
    return OK;
}

int take(const SectionSpec& spec, Section* into) {
    Section& s = *into;
    if (!is_size(spec.hidden) || spec.num_layers == 0 || spec.num_layers > 4096 || spec.vocab == 0 ||
        spec.vocab >= MOST || spec.positions >= MOST)
        return BAD_SHAPE;
    s.hidden = spec.hidden;
    s.vocab = spec.vocab;
    s.positions = spec.positions;
    s.row_in = spec.row_in ? spec.row_in : spec.hidden;
    s.row_out = spec.row_out ? spec.row_out : spec.hidden;
    const auto is_row = [&](size_t row) { return row >= s.hidden && row <= MOST_HIDDEN_OF_ROW * s.hidden; };
    if (!is_row(s.row_in) || !is_row(s.row_out)) return BAD_SHAPE;
    s.eps = static_cast<float>(spec.eps);
    s.embed_scale = static_cast<float>(spec.embed_scale);
    s.logit_scale = static_cast<float>(spec.logit_scale);
    s.logit_soft_cap = static_cast<float>(spec.logit_soft_cap);
    if (spec.swaps > 1) return BAD_SHAPE;
    s.swaps = spec.swaps == 1;
    if (!is_at(spec.layers)) return BAD_POINTER;
    s.layers = static_cast<Layer*>(calloc(spec.num_layers, sizeof(Layer)));
    if (s.layers == nullptr) return NO_MEMORY;
    s.num_layers = spec.num_layers;
    for (size_t i = 0; i < s.num_layers; i++) {
        CHECK(take(spec.layers[i], s, i, &s.layers[i]));
        s.per_layer |= s.layers[i].per_layer.table ? true : false;
        s.receives |= s.layers[i].attention.received != 0;
    }
    if (spec.embedding.data) CHECK(take_end(spec.embedding, s.vocab, s, &s.embedding));
    if (spec.position_embedding.data)
        CHECK(take_end(spec.position_embedding, s.positions, s, &s.position_embedding));
    if (spec.head.data) {
        CHECK(take(spec.final_norm, s.hidden, true, s.eps, &s.final_norm));
        CHECK(take_end(spec.head, s.vocab, s, &s.head));
    }
    const size_t embedded = s.per_layer ? 2 * s.hidden : 0;  // of a row, with the hidden state before it
    const bool brought = s.embedding || s.row_in >= embedded, passed = s.row_out == s.hidden || s.row_out >= embedded;
    return brought && passed ? OK : BAD_SHAPE;
}

// Whether what a layer remembers in a slot lets a step begin.
bool can_begin(const uint8_t* memory, const StepSpec& step) {
    StateHeader header;
    memcpy(&header, memory, sizeof header);
    if (step.position == 0) return true;  // then it begins anew
    return header.position <= step.context && header.checkpoint <= header.position && header.logged <= LOG_TOKENS &&
           header.logged <= header.position - header.checkpoint && header.can_begin(step.position);
}

int check(const Section& s, const StepSpec& step, size_t layer_start, size_t layer_end) {
    if (step.tokens == 0 || step.tokens > MOST_TOKENS || step.logits > step.tokens || step.long_rope > 1)
        return BAD_SHAPE;
    if (step.context >= MOST || step.position > step.context || step.tokens > step.context - step.position)
        return BAD_SHAPE;
    if (step.kv_encoding != F16 && step.kv_encoding != F32 && step.kv_encoding != INT8) return BAD_ENCODING;
    if (step.slot == nullptr || reinterpret_cast<uintptr_t>(step.slot) % 4) return BAD_POINTER;
    const size_t end = step.position + step.tokens;
    if (s.position_embedding && s.positions < end) return BAD_SHAPE;
    size_t bytes = 0;
    for (size_t i = 0; i < s.num_layers; i++) {
        const Layer& layer = s.layers[i];
        bytes += slot_bytes(layer, step.context, step.kv_encoding);
        if (layer.mixer != ATTENTION && layer.mixer != LATENT_ATTENTION) continue;
        const Attention& a = layer.attention;
        if (a.query_scales && (end - 1) / a.scale_every >= a.num_scales) return BAD_SHAPE;
        const bool latent = layer.mixer == LATENT_ATTENTION;
        const size_t set = latent ? layer.latent.rope : a.rope, dim = latent ? layer.latent.rope_dim : a.rotary_dim;
        if (set == NO_ROPE) continue;
        const Rope& rope = s.ropes[2 * set + step.long_rope];
        if (rope.positions < end || rope.count != rope.positions * (dim / 2)) return BAD_SHAPE;
    }
    if (step.slot_bytes != bytes) return BAD_LENGTH;
    const uint8_t* memory = static_cast<const uint8_t*>(step.slot);
    for (size_t i = 0; i < layer_end; i++) {
        if (i >= layer_start && is_recurrent(s.layers[i].mixer) && !can_begin(memory, step)) return BAD_SHAPE;
        memory += slot_bytes(s.layers[i], step.context, step.kv_encoding);
    }
    return OK;
}

// A state goes from step to step: one slot can't be in two steps of a call.
bool share_a_state(const Section& s, const StepSpec* steps, size_t num_steps) {
    bool has_state = false;
    for (size_t i = 0; i < s.num_layers; i++) has_state |= is_recurrent(s.layers[i].mixer);
    for (size_t i = 0; has_state && i < num_steps; i++)
        for (size_t j = 0; j < i; j++)
            if (steps[i].slot == steps[j].slot) return true;
    return false;
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
    if (which >= ROPES || positions == 0 || positions >= MOST) return BAD_SHAPE;
    if (count == 0 || count % positions) return BAD_LENGTH;
    section->ropes[which] = {cos, sin, positions, count};
    return OK;
}

int edgellm_section_run(Section* section, const StepSpec* steps, uint64_t num_steps, uint64_t layer_start,
                               uint64_t layer_end, const int64_t* ids, const float* hidden, uint64_t count, float* out,
                               uint64_t out_elements, float* logits, uint64_t logits_elements) {
    if (!is_at(section) || !is_at(steps) || (ids == nullptr && hidden == nullptr)) return BAD_POINTER;
    if ((ids && !is_at(ids)) || (hidden && !is_at(hidden)) || (out && !is_at(out))) return BAD_POINTER;
    Section& s = *section;
    if (num_steps == 0 || num_steps > MOST_STEPS || layer_start > layer_end || layer_end > s.num_layers)
        return BAD_SHAPE;
    uint64_t tokens = 0, wanted = 0;
    for (uint64_t i = 0; i < num_steps; i++) {
        CHECK(check(s, steps[i], layer_start, layer_end));
        tokens += steps[i].tokens;
        wanted += steps[i].logits;
    }
    if (share_a_state(s, steps, num_steps)) return BAD_SHAPE;
    if ((ids && hidden && !s.per_layer) || (!ids && s.per_layer) || (!hidden && s.receives)) return BAD_POINTER;
    if (tokens > MOST_TOKENS || (!hidden && !s.embedding) || (wanted && !s.head)) return BAD_SHAPE;
    if (tokens != count || logits_elements != wanted * s.vocab) return BAD_LENGTH;
    const size_t row = layer_end == s.num_layers ? s.row_out : s.hidden;
    if (out_elements != (out ? tokens * row : 0)) return BAD_LENGTH;
    if (wanted && !is_at(logits)) return BAD_POINTER;
    for (uint64_t i = 0; ids && i < tokens; i++)
        if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= s.vocab) return BAD_SHAPE;
    if (!make_room(s, tokens)) return NO_MEMORY;
    run(s, {steps, num_steps, tokens, layer_start, layer_end, ids, hidden, out, logits});
    return OK;
}

}  // namespace edgellm
