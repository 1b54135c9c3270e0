// Sections with the features of every family, weights and tokens out of a seed. What each computes must be finite, the
// same bits on every instruction set of this processor, and the same however it is computed: as one chunk, as several,
// token by token among other sequences, layer by layer, with one thread and with three. Run natively, under an
// emulator, and with sanitizers: every buffer is exactly as long as it was said to be. Prints each section's hash, the
// same on every processor, or the first difference.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <vector>

#include "section.h"

using namespace edgellm;

static uint32_t state = 1;
static uint32_t next() { return (state = state * 1664525u + 1013904223u) >> 8; }
static size_t below(size_t n) { return next() % n; }
static float value() { return static_cast<float>(next()) / (1 << 23) - 1; }  // within -1 ... 1

struct Features {
    const char* name;
    size_t hidden, heads, kv_heads, head_dim, rotary_dim, inner, vocab, window;
    int weights, ends, kv;  // encodings
    bool layer_norm, biases, gated, qk_norm;
    bool joined;      // q, k and v are rows of one weight, gate and up too
    bool positions;   // learned ones
    size_t ropes;     // LongRoPE has two sets of factors
    int mixer = ATTENTION;  // of every other layer
    bool interleaved = false, tiled = false;
    size_t experts = 0, top_k = 0, groups = 1;  // in every other layer, beside the MLP
    int scoring = SOFTMAX;
    size_t more = 0;  // tokens, so that a window goes round its ring
};

static const Features FAMILIES[] = {
    // in the order of the members above
    {"llama", 64, 4, 2, 16, 16, 128, 67, 0, INT8, INT8, F16, false, false, true, false, false, false, 1},
    {"llama biases", 64, 4, 1, 16, 16, 128, 64, 0, BF16, F16, F32, false, true, true, false, false, false, 1},
    {"llama wide heads", 96, 4, 4, 48, 48, 160, 33, 0, INT4S, INT8, F32, false, false, true, false, false, false, 1},
    {"qwen2 window", 64, 4, 2, 16, 16, 128, 64, 8, INT8, INT4, F16, false, true, true, false, false, false, 1},
    {"qwen3", 64, 4, 2, 32, 32, 128, 64, 0, INT4, BF16, F16, false, false, true, true, false, false, 1},
    {"mistral window", 64, 8, 2, 16, 16, 96, 64, 70, F16, F32, F16, false, false, true, false, false, false, 1},
    {"phi3 longrope", 64, 4, 4, 16, 16, 128, 64, 0, INT4, INT8, F16, false, false, true, false, true, false, 2},
    {"phi3 partial", 64, 2, 1, 64, 44, 128, 64, 11, INT8, INT8, F32, false, false, true, false, true, false, 1},
    {"gpt2", 64, 4, 4, 16, 0, 256, 65, 0, INT8, F16, F16, true, true, false, false, true, true, 0},
    {"odd widths", 48, 3, 3, 16, 6, 80, 31, 1, F32, F32, F32, true, false, false, true, false, true, 1},
    {"delta rule", 64, 4, 2, 16, 16, 128, 64, 0, INT8, INT8, F16, false, false, true, true, false, false, 1, DELTA_RULE},
    {"delta rule by key head", 64, 4, 2, 16, 16, 128, 64, 0, INT4, BF16, F16, false, false, true, true, false, false, 1,
     DELTA_RULE, true},
    {"tiled delta rule", 96, 4, 2, 16, 16, 128, 64, 0, BF16, BF16, F16, false, false, true, true, false, false, 1,
     DELTA_RULE, false, true},
    {"short convolution", 64, 4, 2, 16, 16, 128, 64, 0, INT4S, INT8, F32, false, true, true, true, false, false, 1,
     SHORT_CONV},
    {"mamba 2", 64, 4, 2, 16, 0, 128, 64, 0, INT8, INT8, F16, false, true, true, false, false, false, 0, MAMBA2},
    {"experts", 64, 4, 2, 16, 16, 96, 64, 0, INT4S, INT8, F16, false, true, true, true, false, false, 1, ATTENTION, false,
     false, 24, 5, 1, SOFTMAX},
    {"experts in groups", 96, 4, 2, 16, 16, 64, 64, 0, INT8, INT8, F16, false, false, true, false, false, false, 1,
     ATTENTION, false, false, 20, 3, 4, SIGMOID},
    {"plain experts", 64, 4, 2, 16, 16, 80, 64, 9, BF16, BF16, F32, false, true, true, false, false, false, 1, ATTENTION,
     false, false, 7, 7, 1, SOFTMAX_OF_CHOSEN},
    {"K-quants", 256, 4, 2, 64, 64, 512, 67, 0, Q4_K, Q6_K, F16, false, false, true, false, false, false, 1},
    {"K-quants of more bits", 256, 4, 4, 64, 64, 256, 64, 0, Q5_K, Q5_1, F16, false, true, true, false, true, false, 1},
    {"K-quants of fewer bits", 256, 4, 2, 64, 64, 256, 64, 0, Q3_K, Q2_K, F16, false, false, true, true, false, false, 1},
    {"tables", 256, 4, 2, 64, 64, 256, 64, 9, IQ4_XS, IQ4_NL, F16, false, false, true, true, false, false, 1},
    {"MXFP4 experts", 64, 4, 2, 16, 16, 96, 64, 0, MXFP4, Q5_0, F16, false, true, true, true, false, false, 1, ATTENTION,
     false, false, 8, 3, 1, SOFTMAX_OF_CHOSEN},
    {"int8 slot", 64, 4, 2, 48, 16, 128, 67, 0, INT8, INT8, INT8, false, true, true, true, false, false, 1},
    {"ring", 64, 8, 2, 16, 16, 96, 64, 20, INT8, INT8, F16, false, false, true, false, false, false, 1, ATTENTION, false,
     false, 0, 0, 1, SOFTMAX, 90},
    {"int8 ring", 32, 2, 1, 16, 16, 32, 64, 64, INT4, INT8, INT8, false, false, true, false, false, false, 1, ATTENTION,
     false, false, 0, 0, 1, SOFTMAX, 80},
    {"many heads", 32, 64, 1, 16, 16, 32, 16, 0, INT8, INT8, F16, false, false, true, false, false, false, 1},
};

static constexpr size_t LAYERS = 2;

// Of exactly as many bytes as asked for, so that a sanitizer sees one too many.
struct Memory {
    std::vector<std::unique_ptr<uint8_t[]>> kept;
    uint8_t* bytes(size_t count) { return kept.emplace_back(new uint8_t[count]).get(); }

    FloatsSpec floats(bool wanted, size_t count, float middle) {
        if (!wanted) return {nullptr, 0};
        float* data = reinterpret_cast<float*>(bytes(4 * count));
        for (size_t i = 0; i < count; i++) data[i] = middle + 0.1f * value();
        return {data, count};
    }

    NormSpec norm(const Features& f) { return {floats(true, f.hidden, 1), floats(f.layer_norm, f.hidden, 0)}; }

    // Weights of some tenths; scales of both signs.
    ProjectionSpec weight(int encoding, size_t out, size_t in) {
        const size_t count = matrix_bytes(encoding, out, in);
        uint8_t* data = bytes(count);
        for (size_t i = 0; i < count; i++) data[i] = next();
        const bool powers = encoding == MXFP4;  // its scales are bytes, and no halves
        const uint8_t sign = powers ? 0 : 0x80;
        const uint8_t high = powers ? 0x74 : is_super(encoding) ? 0x08 : encoding == Q5_0 || encoding == Q5_1 ? 0x1c
                             : is_nibbles(encoding) ? 0x20 : encoding == INT8 || encoding == IQ4_NL ? 0x14
                             : encoding == BF16 ? 0x3d : 0x28;
        const size_t group = is_packed(encoding) ? group_bytes(encoding) * block_groups(encoding) : 2;
        const size_t first = is_packed(encoding) ? scales_at_byte(encoding) + d_at_byte(encoding) : 0;
        if (encoding == F32)
            for (size_t i = 0; i < count; i += 4) {
                const float v = 0.3f * value();
                memcpy(data + i, &v, 4);
            }
        else
            for (size_t at = 0; at < count; at += group)
                for (size_t i = powers ? first : first + 1; i < group; i += powers ? 1 : 2)
                    data[at + i] = (data[at + i] & sign) | (high + (encoding == BF16 ? 0 : data[at + i] & 7));
        return {data, count, out, in, 0, out, 0, encoding, {nullptr, 0}};
    }

    ProjectionSpec part(const ProjectionSpec& whole, size_t first, size_t rows, bool biased) {
        ProjectionSpec p = whole;
        p.first = first, p.rows = rows, p.bias = floats(biased, rows, 0);
        return p;
    }

    // The same of each of several experts.
    ProjectionSpec of_each(int encoding, size_t out, size_t in, size_t experts, bool biased) {
        ProjectionSpec all = weight(encoding, out * experts, in);
        all.out = all.rows = out, all.experts = experts;
        all.bias = floats(biased, out * experts, 0);
        return all;
    }

    ExpertsSpec experts(const Features& f) {
        ExpertsSpec e = {};
        e.count = f.experts, e.top_k = f.top_k, e.groups = f.groups, e.top_groups = (f.groups + 1) / 2;
        e.scoring = f.scoring, e.normalise = f.scoring == SIGMOID, e.scale = 1.5;
        e.router = part(weight(F32, f.experts, f.hidden), 0, f.experts, f.biases);
        e.correction = floats(f.groups > 1, f.experts, 0);
        e.shared_gate = part(weight(F32, 1, f.hidden), 0, 1, f.biases);
        e.experts.activation = SWIGLU_CLAMPED, e.experts.limit = 0.9;
        e.experts.gate = of_each(f.weights, f.inner, f.hidden, f.experts, f.biases);
        e.experts.up = of_each(f.weights, f.inner, f.hidden, f.experts, f.biases);
        e.experts.down = of_each(f.weights, f.hidden, f.inner, f.experts, f.biases);
        return e;
    }

    RecurrentSpec recurrent(const Features& f) {
        RecurrentSpec r = {};
        const auto rows = [&](size_t count, bool biased) {
            return part(weight(f.weights, count, f.hidden), 0, count, biased);
        };
        const size_t inner = 4 * 32, keys = 2 * 16;
        r.kernel = f.mixer == SHORT_CONV ? 3 : 4;
        r.channels = f.mixer == SHORT_CONV ? inner : inner + 2 * keys;
        r.conv = floats(true, r.kernel * r.channels, 0.5f);
        r.out = part(weight(f.weights, f.hidden, inner), 0, f.hidden, f.biases);
        r.conv_bias = floats(f.biases, r.channels, 0);
        if (f.mixer == SHORT_CONV) {
            r.in = rows(3 * inner, f.biases);
            return r;
        }
        r.key_heads = 2, r.value_heads = 4, r.key_dim = 16, r.value_dim = 32;
        r.rate = floats(true, 4, 1), r.dt_bias = floats(true, 4, -2);
        if (f.mixer == MAMBA2) {
            r.in = rows(inner + r.channels + 4, f.biases);
            r.norm_groups = 2, r.gate_first = 1, r.least_dt = 0.01, r.most_dt = 0.9;
            r.d = floats(true, 4, 1), r.norm = floats(true, inner, 1);
            return r;
        }
        r.norm = floats(true, 32, 1), r.interleaved = f.interleaved, r.tiled = f.tiled;
        r.in = rows(f.interleaved ? r.channels + inner : r.channels, false);
        r.b = rows(f.interleaved ? 8 : 4, false);
        if (!f.interleaved) r.z = rows(inner, false), r.a = rows(4, false);
        return r;
    }

    LayerSpec layer(const Features& f, size_t index) {
        const size_t q = f.heads * f.head_dim, kv = f.kv_heads * f.head_dim;
        LayerSpec l = {};
        l.before_mixer = norm(f), l.before_feed_forward = norm(f);
        l.mixer = ATTENTION, l.residual_scale = l.output_scale = 1;
        if (f.mixer != ATTENTION && index % 2 == 0) {
            l.mixer = f.mixer;
            l.recurrent = recurrent(f);
        }
        if (f.experts && index % 2 == 0) l.experts = experts(f);
        AttentionSpec& a = l.attention;
        a.heads = f.heads, a.kv_heads = f.kv_heads, a.head_dim = f.head_dim, a.rotary_dim = f.rotary_dim;
        a.rope = f.rotary_dim ? 0 : NO_ROPE;
        MlpSpec& m = l.mlp;
        m.activation = f.gated ? SILU : GELU_TANH;
        if (f.joined) {
            const ProjectionSpec qkv = weight(f.weights, q + 2 * kv, f.hidden);
            a.q = part(qkv, 0, q, f.biases), a.k = part(qkv, q, kv, f.biases), a.v = part(qkv, q + kv, kv, f.biases);
        } else {
            a.q = part(weight(f.weights, q, f.hidden), 0, q, f.biases);
            a.k = part(weight(f.weights, kv, f.hidden), 0, kv, f.biases);
            a.v = part(weight(f.weights, kv, f.hidden), 0, kv, f.biases);
        }
        a.o = part(weight(f.weights, f.hidden, q), 0, f.hidden, f.biases);
        if (f.joined && f.gated) {
            const ProjectionSpec both = weight(f.weights, 2 * f.inner, f.hidden);
            m.gate = part(both, 0, f.inner, f.biases), m.up = part(both, f.inner, f.inner, f.biases);
        } else {
            if (f.gated) m.gate = part(weight(f.weights, f.inner, f.hidden), 0, f.inner, f.biases);
            m.up = part(weight(f.weights, f.inner, f.hidden), 0, f.inner, f.biases);
        }
        m.down = part(weight(f.weights, f.hidden, f.inner), 0, f.hidden, f.biases);
        a.q_norm = floats(f.qk_norm, f.head_dim, 1), a.k_norm = floats(f.qk_norm, f.head_dim, 1);
        a.scale = 0.25;
        a.window = index % 2 ? 0 : f.window;  // as in families that have it in every other layer
        return l;
    }
};

// A section, the tokens of a text, and what is computed of them.
struct Trial {
    const Features& f;
    Memory memory;
    std::vector<LayerSpec> layers;
    Section* section = nullptr;
    std::vector<int64_t> ids;
    size_t rope = 0, context, kv_bytes;

    Trial(const Features& features, size_t tokens) : f(features), ids(tokens), context(tokens) {
        for (size_t i = 0; i < LAYERS; i++) layers.push_back(memory.layer(f, i));
        SectionSpec spec = {f.hidden, f.vocab, f.positions ? context : 0, LAYERS, 0, 0, 1e-5, 1, 1, 0, layers.data(), {},
                            {}, {}, memory.norm(f), 0};
        spec.embedding = memory.weight(f.ends, f.vocab, f.hidden);
        if (f.positions) spec.position_embedding = memory.weight(f.ends, context, f.hidden);
        spec.head = memory.weight(f.ends, f.vocab, f.hidden);
        expect(edgellm_section_new(&spec, sizeof spec, &section), "new");
        for (size_t which = 0; which < f.ropes; which++) {
            const size_t half = f.rotary_dim / 2, count = context * half;
            float* cos = reinterpret_cast<float*>(memory.bytes(4 * count));
            float* sin = reinterpret_cast<float*>(memory.bytes(4 * count));
            for (size_t i = 0; i < count; i++) {  // an angle without libm, whose last bits differ
                const float u = value(), square = u * u;
                cos[i] = (1 - square) / (1 + square), sin[i] = 2 * u / (1 + square);
            }
            expect(edgellm_section_rope(section, which, cos, sin, count, context), "rope");
        }
        for (int64_t& id : ids) id = below(f.vocab);
        kv_bytes = 0;
        for (size_t i = 0; i < LAYERS; i++) kv_bytes += slot_bytes(section->layers[i], context, f.kv);
    }
    ~Trial() { edgellm_section_free(section); }
    Trial(const Trial&) = delete;

    void expect(int status, const char* call) {
        if (status == 0) return;
        printf("%s: %s gives status %d\n", f.name, call, status);
        exit(1);
    }

    // What another sequence may have left there doesn't matter.
    uint8_t* slot() {
        uint8_t* kv = memory.bytes(kv_bytes);
        for (size_t i = 0; i < kv_bytes; i++) kv[i] = f.kv != F32 || i % 4 == 3 ? next() & 0x3f : 0;
        return kv;
    }

    StepSpec step(uint8_t* kv, size_t position, size_t tokens, size_t logits) {
        return {tokens, position, rope, logits, kv, kv_bytes, context, f.kv};
    }

    // Logits, each step's last ones, and hidden states if `out` is wanted.
    std::vector<float> run(const std::vector<StepSpec>& steps, std::vector<float>* out = nullptr) {
        std::vector<int64_t> fed;
        size_t wanted = 0;
        for (const StepSpec& s : steps) {
            fed.insert(fed.end(), &ids[s.position], &ids[s.position] + s.tokens);
            wanted += s.logits;
        }
        std::vector<float> logits(wanted * f.vocab);
        if (out) out->resize(fed.size() * f.hidden);
        expect(edgellm_section_run(section, steps.data(), steps.size(), 0, LAYERS, fed.data(), nullptr, fed.size(),
                                   out ? out->data() : nullptr, out ? out->size() : 0, logits.data(), logits.size()),
               "run");
        return logits;
    }

    void same(const std::vector<float>& got, const float* expected, const char* how) {
        for (size_t i = 0; i < got.size(); i++)
            if (memcmp(&got[i], expected + i, 4)) {
                printf("%s, %s: %s gives %.9g, not %.9g, at %zu of %zu\n", f.name, target().name, how, got[i],
                       expected[i], i, got.size());
                exit(1);
            }
    }

    // Logits of every token, then their hidden states, as one chunk and one thread give them; other ways must too.
    std::vector<float> all() {
        const size_t n = ids.size();
        std::vector<float> hidden, logits = run({step(slot(), 0, n, n)}, &hidden);

        edgellm_threads_set(3, nullptr, 0);
        uint8_t* kv = slot();
        for (size_t at = 0, turn = 0; at < n; turn++) {
            static const size_t CHUNKS[] = {1, 3, 17, 2, 40, 1};
            const size_t chunk = CHUNKS[turn % 6], count = chunk < n - at ? chunk : n - at;
            same(run({step(kv, at, count, count)}), &logits[at * f.vocab], "chunks");
            at += count;
        }

        // Tokens taken back, some at the beginning of a step, some in the middle of it.
        kv = slot();
        const size_t early = n / 3;
        run({step(kv, 0, early, 0)});
        for (const size_t begin : {early, early + 3, early + 1, early + 2})
            same(run({step(kv, begin, 5, 5)}), &logits[begin * f.vocab], "a step again");

        // Sequences of several lengths, a token each; then a token of one beside the last chunk of another.
        std::vector<uint8_t*> slots;
        std::vector<size_t> lengths = {n / 2 + 5, n / 2, 1, 5};
        std::vector<StepSpec> prompts, tokens;
        for (const size_t length : lengths) {
            slots.push_back(slot());
            prompts.push_back(step(slots.back(), 0, length, 0));
            tokens.push_back(step(slots.back(), length, 1, 1));
        }
        run(prompts);
        std::vector<float> together = run(tokens), expected;
        for (const size_t length : lengths)
            expected.insert(expected.end(), &logits[length * f.vocab], &logits[length * f.vocab] + f.vocab);
        same(together, expected.data(), "a batch");
        const size_t rest = n - n / 2 - 1;
        std::vector<float> mixed = run(
            {step(slots[3], 6, 1, 0), step(slots[1], n / 2 + 1, rest, rest), step(slots[2], 2, 1, 0)});
        same(mixed, &logits[(n / 2 + 1) * f.vocab], "a chunk among tokens");

        edgellm_threads_set(2, nullptr, 0);
        kv = slot();
        StepSpec whole = step(kv, 0, n, 0);
        std::vector<float> x(n * f.hidden), y(x.size());
        expect(edgellm_section_run(section, &whole, 1, 0, 0, ids.data(), nullptr, n, x.data(), x.size(), nullptr, 0),
               "embed");
        for (size_t i = 0; i < LAYERS; i++, x.swap(y))
            expect(edgellm_section_run(section, &whole, 1, i, i + 1, nullptr, x.data(), n, y.data(), y.size(), nullptr,
                                       0), "layer");
        same(x, hidden.data(), "layer by layer");
        edgellm_threads_set(1, nullptr, 0);

        logits.insert(logits.end(), hidden.begin(), hidden.end());
        return logits;
    }
};

// FNV-1a of the bits; 0 for what no healthy section gives: infinity, NaN, or always the same.
static uint64_t hash(const std::vector<float>& values) {
    uint64_t h = 14695981039346656037u;
    bool varied = false;
    for (const float& v : values) {
        if (!(v - v == 0)) return 0;
        varied |= v != values[0];
        uint32_t bits;
        memcpy(&bits, &v, 4);
        h = (h ^ bits) * 1099511628211u;
    }
    return varied ? h : 0;
}

// Features that no family has together.
static Features some(size_t number) {
    static char name[32];
    snprintf(name, sizeof name, "random %zu", number);
    const bool packed = below(2);
    const size_t unit = packed ? 32 : 16, head_dim = 16 * (1 + below(5)), kv_heads = 1 + below(3);
    size_t group = 1 + below(5);
    if (kv_heads * group * head_dim % unit) group *= 2;
    const auto coin = [] { return below(2) == 0; };
    const size_t rotary_dim = below(4) ? 2 * (1 + below(head_dim / 2)) : 0;
    Features f = {name, unit * (1 + below(3)), kv_heads * group, kv_heads, head_dim, rotary_dim};
    f.inner = unit * (1 + below(4)), f.vocab = 1 + below(80), f.window = coin() ? 1 + below(80) : 0;
    f.weights = static_cast<int>(packed ? below(2) : BF16 + below(3));
    f.ends = static_cast<int>(packed ? below(5) : BF16 + below(3)), f.kv = coin() ? F16 : coin() ? F32 : INT8;
    f.layer_norm = coin(), f.biases = coin(), f.gated = coin(), f.qk_norm = coin(), f.joined = coin();
    f.positions = coin(), f.ropes = rotary_dim ? 1 + below(2) : 0;
    return f;
}

// TOKENS RANDOM [INSTRUCTION SET...]: of how many tokens a text is, how many sections of random features there are
// beside the families', and on what (all that this processor has).
int main(int count, char** arguments) {
    const size_t tokens = count > 1 ? strtoul(arguments[1], nullptr, 10) : 80;
    const size_t random = count > 2 ? strtoul(arguments[2], nullptr, 10) : 10;
    std::vector<const char*> sets;
    for (int i = 3; i < count; i++) sets.push_back(arguments[i]);
    if (sets.empty())
        for (const char* name : {"avx512vnni", "avx2", "dotprod", "neon", "scalar"})
            if (use_target(name)) sets.push_back(name);
    constexpr size_t KNOWN = sizeof FAMILIES / sizeof *FAMILIES;
    for (size_t i = 0; i < KNOWN + random; i++) {
        state = static_cast<uint32_t>(i + 1);
        const Features f = i < KNOWN ? FAMILIES[i] : some(i - KNOWN);
        const uint32_t begin = state;
        for (size_t rope = 0; rope < (f.ropes ? f.ropes : 1); rope++) {
            std::vector<float> expected;
            for (const char* name : sets) {
                if (!use_target(name)) return printf("this processor has no %s\n", name), 1;
                state = begin;
                Trial trial(f, tokens + f.more);
                trial.rope = rope;
                const std::vector<float> got = trial.all();
                if (expected.empty()) expected = got;
                trial.same(got, expected.data(), sets[0]);
            }
            const uint64_t h = hash(expected);
            if (h == 0) return printf("%s: what it computes is no number, or always the same\n", f.name), 1;
            printf("%s, factors %zu: %016llx\n", f.name, rope, static_cast<unsigned long long>(h));
        }
    }
    for (const char* name : sets) printf("%s\n", name);
}
