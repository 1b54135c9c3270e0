// The C ABI of libedgellm: every struct, code and constant that the library and its callers share stands here, once.
//
// Python reads this file with cffi (abi.py), C++ includes it through exported.h. So it is plain C without a line for the
// preprocessor. Whoever changes what a caller sees counts ABI_VERSION up.

static const int ABI_VERSION = 5;

static const uint64_t GROUP = 32;              // columns of a packed weight that share a scale
static const uint64_t TILE = 16;               // rows of a packed weight that lie together
static const uint64_t INT4_GROUP_BYTES = 320;  // of a group of a tile (gemm.h)
static const uint64_t INT4S_GROUP_BYTES = 288;
static const uint64_t INT8_GROUP_BYTES = 544;
static const uint64_t Q5_0_GROUP_BYTES = 352;
static const uint64_t Q5_1_GROUP_BYTES = 384;
static const uint64_t IQ4_NL_GROUP_BYTES = 288;
static const uint64_t MXFP4_GROUP_BYTES = 272;
static const uint64_t SUPER_BLOCK = 256;       // columns whose scales lie together, of what follows: eight groups
static const uint64_t IQ4_XS_GROUP_BYTES = 272;  // an eighth of a block's
static const uint64_t Q2_K_GROUP_BYTES = 168;
static const uint64_t Q3_K_GROUP_BYTES = 220;
static const uint64_t Q4_K_GROUP_BYTES = 288;
static const uint64_t Q5_K_GROUP_BYTES = 352;
static const uint64_t Q6_K_GROUP_BYTES = 420;

static const uint64_t MOST_TOKENS = 512;    // in one call of edgellm_section_run
static const uint64_t MOST_STEPS = 64;      // in one call of edgellm_section_run
static const uint64_t LANE_COUNT = 16;      // hidden, intermediate and head_dim are multiples of it
static const uint64_t MOST_HEADS = 1024;    // of queries
static const uint64_t MOST_HEAD_DIM = 1024;
static const uint64_t MOST_ROWS = 64;       // heads of queries that share one of keys and values
static const uint64_t KEYS = 16;            // keys that lie side by side in a slot: its context is a multiple, rounded up
static const uint64_t RING = 64;            // a window's ring (section.h) is a multiple, and so much or more beyond the window
static const uint64_t ROPES = 8;            // tables of rotary factors: two for each set, because LongRoPE has long ones
static const uint64_t NO_ROPE = 255;        // of a layer whose attention knows no positions
static const uint64_t MOST_EXPERTS = 1024;
static const uint64_t MOST_CHOSEN = 64;     // experts for one token
static const uint64_t LOG_TOKENS = 32;      // that a recurrent layer can take back, from its checkpoint on (section.h)
static const uint64_t STATE_HEADER_BYTES = 64;
static const uint64_t MOST_KERNEL = 8;      // tokens that a recurrent layer's convolution reaches
static const int MOST_THREADS = 64;

enum Encoding {
    INT4 = 0,
    INT8 = 1,
    BF16 = 2,
    F16 = 3,
    F32 = 4,
    INT4S = 5,
    Q5_0 = 6,
    Q5_1 = 7,
    IQ4_NL = 8,
    MXFP4 = 9,
    IQ4_XS = 10,
    Q2_K = 11,
    Q3_K = 12,
    Q4_K = 13,
    Q5_K = 14,
    Q6_K = 15,
    ENCODINGS
};

// What mixes a layer's tokens. LayerSpec has a struct for each kind.
enum Mixer { NO_MIXER = 0, ATTENTION = 1, LATENT_ATTENTION = 2, DELTA_RULE = 3, SHORT_CONV = 4, MAMBA2 = 5, MIXERS };

// What an MLP does between its matrices. SWIGLU_CLAMPED, with `limit`: gate = min(gate, limit), up within +-limit, then
// gate * sigmoid(1.702 gate) * (up + 1).
enum Activation { SILU = 0, GELU_TANH = 1, RELU_SQUARED = 2, SWIGLU_CLAMPED = 3, ACTIVATIONS };

// How a router's products become the weights of the experts that it chooses: the last over those chosen only.
enum Scoring { SOFTMAX = 0, SIGMOID = 1, SOFTMAX_OF_CHOSEN = 2, SCORINGS };

// What a call returns. Whatever isn't OK has done nothing.
enum Status {
    OK = 0,
    BAD_POINTER = 1,
    BAD_ENCODING = 2,
    BAD_SHAPE = 3,
    BAD_LENGTH = 4,
    BAD_THREADS = 5,
    BAD_TARGET = 6,
    NO_MEMORY = 7
};

// ---- the library

// The ABI_VERSION that the library was built with.
int edgellm_abi(void);

// The name of the instruction set in use.
const char *edgellm_target(void);

// Uses another instruction set from now on (for tests); a null name picks the best again. Not while others compute.
int edgellm_use_target(const char *name);

// Computes with `count` threads from now on, thread i on cores[i] if there are `n` >= count cores. Not from within work.
int edgellm_threads_set(int count, const int *cores, uint64_t n);

// How many threads compute.
int edgellm_threads(void);

// ---- single products: a weight is [out, in] in `bytes` bytes, as it lies in a shard

// y[tokens, out] = x[tokens, in] times the transpose of the weight; x and y are dense float32. Packed weights are
// multiplied with x itself, or with x in int8 if `integer` isn't 0 (gemm.h: product_exact, product).
int edgellm_linear(const void *weight, uint64_t bytes, int encoding, uint64_t out, uint64_t in, const float *x,
                   uint64_t tokens, float *y, int integer);

// Quantizes x[tokens, in] as gemm.h says: q[tokens, in]; scale, sum and offset [tokens, in / 32], an offset being two
// int16.
int edgellm_quantize(const float *x, uint64_t tokens, uint64_t in, int8_t *q, float *scale, float *sum, int32_t *offset);

// Writes rows [row_start, row_end) as float32 to `into`, which holds `into_elements` of them: their number times in.
int edgellm_dequantize(const void *weight, uint64_t bytes, int encoding, uint64_t out, uint64_t in, uint64_t row_start,
                       uint64_t row_end, float *into, uint64_t into_elements);

// Reads `bytes` (a multiple of 64) and writes the sum of their 64-bit words to `total`: how fast memory is.
int edgellm_read(const void *data, uint64_t bytes, uint64_t *total);

// ---- sections: layers of a decoder, run by one call

// float32 values; data is null where there are none.
typedef struct FloatsSpec {
    const float *data;
    uint64_t count;
} FloatsSpec;

// Rows [first, first + rows) of a weight [out, in], and a bias of `rows`. data is null where there is none. Of experts'
// weights there are `experts` matrices, one after the other, and as many biases; else it is 0.
typedef struct ProjectionSpec {
    const void *data;
    uint64_t bytes, out, in, first, rows, experts;
    int64_t encoding;
    FloatsSpec bias;
} ProjectionSpec;

// weight.data is null where there is no norm, bias.data but for LayerNorms.
typedef struct NormSpec {
    FloatsSpec weight, bias;
} NormSpec;

// families/mixers.py says what all of this means. `rope` is a set of rotary factors, or NO_ROPE. Flags are 0 or 1.
// `scale_every` is 0 where there are no query_scales.
//
// `source` is 1 + the number of an earlier layer of the section whose keys and values the queries see, which then is
// `shared`; 0: their own. Keys and values of a layer before the section come with the tokens, at `received` floats of a
// row of `hidden` (0: they don't); then there is no k. Those that a later section sees go to `sent` floats of a row of
// `out` (0: nobody does). Keys lie before values, as they are stored.
typedef struct AttentionSpec {
    uint64_t heads, kv_heads, head_dim, rotary_dim, rope, window;
    uint64_t interleaved, gated, scale_every;
    uint64_t source, shared, received, sent;
    double scale, soft_cap;
    ProjectionSpec q, k, v, o;  // without a v, values are what k gives
    FloatsSpec q_norm, k_norm, v_norm, sinks, query_scales;
} AttentionSpec;

// LATENT_ATTENTION; families/mixers.py says what all of this means. Without a q_a, `q` takes what goes into the layer. k_b
// and v_b have a matrix for each head. `eps` is that of q_norm and kv_norm.
typedef struct LatentSpec {
    uint64_t heads, nope_dim, rope_dim, value_dim, rank, rope;
    uint64_t interleaved;
    double scale, eps;
    ProjectionSpec q_a, q, kv_a, k_b, v_b, o;
    FloatsSpec q_norm, kv_norm;
} LatentSpec;

// DELTA_RULE, SHORT_CONV and MAMBA2 use what they have of this. Flags are 0 or 1. Rows of `in` are q, k and v, with z and a
// of their own; or b, c and x of SHORT_CONV; or all that MAMBA2 takes: z, x, B, C, dt. `interleaved`: a delta rule's rows
// lie by key head, those of `in` as (q, k, v, z), those of `b` as (b, a), and there is no z and no a. `tiled`: value head h
// belongs to key head h % key_heads, not to h / (value_heads / key_heads).
typedef struct RecurrentSpec {
    uint64_t channels, kernel;
    uint64_t key_heads, value_heads, key_dim, value_dim;  // of MAMBA2: groups, heads, state_dim, head_dim
    uint64_t interleaved, tiled;
    uint64_t norm_groups, gate_first;
    double least_dt, most_dt;
    ProjectionSpec in, z, a, b, out;
    FloatsSpec conv, conv_bias, rate, dt_bias, d, norm;  // conv is [kernel, channels]; rate is e^a_log
} RecurrentSpec;

// An MLP; without a gate it is plain. `up.data` is null where a layer has none.
typedef struct MlpSpec {
    int64_t activation;
    double limit;
    ProjectionSpec gate, up, down;
} MlpSpec;

typedef struct ExpertsSpec {
    uint64_t count, top_k, groups, top_groups, normalise;  // count is 0 where there are none
    uint64_t group_by_best;  // 1: a group is as good as its best expert, not as its two best ones together
    int64_t scoring;
    double scale;
    ProjectionSpec router;
    FloatsSpec correction;
    MlpSpec experts;
    ProjectionSpec shared_gate;
    FloatsSpec expert_scales;  // of each expert's weight, or null
    // Where the experts stand apart from the shared one: all of these, or none.
    FloatsSpec router_norm;
    NormSpec before, after_shared, after;
} ExpertsSpec;

// What a token's id adds to a layer's output (families/per_layer.py). table.data is null where it adds nothing.
typedef struct PerLayerSpec {
    ProjectionSpec table, model, gate, projection;
    FloatsSpec norm;
    NormSpec after;
    int64_t activation;
    double table_scale, model_scale, scale;
} PerLayerSpec;

typedef struct LayerSpec {
    NormSpec before_mixer, after_mixer, before_feed_forward, after_feed_forward;
    int64_t mixer;
    AttentionSpec attention;
    LatentSpec latent;
    RecurrentSpec recurrent;
    MlpSpec mlp;  // beside experts: the shared one
    ExpertsSpec experts;
    PerLayerSpec per_layer;
    double residual_scale, output_scale;
} LayerSpec;

// Tokens come in and go out in rows of `row_in` and `row_out` floats (0: `hidden`): the hidden state, where layers have
// something of a token's id the token's embedding, and then what layers receive and send.
typedef struct SectionSpec {
    uint64_t hidden, vocab, positions, num_layers, row_in, row_out;
    double eps, embed_scale, logit_scale, logit_soft_cap;
    const LayerSpec *layers;
    ProjectionSpec embedding, position_embedding, head;  // data is null where the section has none
    NormSpec final_norm;
    uint64_t swaps;  // 1: experts may not be in RAM, and those that a token needs are to be read at once
} SectionSpec;

// Consecutive positions of one sequence, to be computed.
typedef struct StepSpec {
    uint64_t tokens, position;
    uint64_t long_rope;  // 1: the second table of a set of rotary factors
    uint64_t logits;     // wanted after how many of its last tokens
    void *slot;          // for each layer what it remembers (section.h)
    uint64_t slot_bytes, context;
    int64_t kv_encoding;  // F16, F32 or INT8
} StepSpec;

typedef struct Section Section;

// Makes a section of what `spec` (of `spec_bytes`) describes. The weights stay where they are, and must stay there as long
// as the section exists.
int edgellm_section_new(const SectionSpec *spec, uint64_t spec_bytes, Section **into);

void edgellm_section_free(Section *section);

// Gives table `which` of rotary factors, 2 * set + (1 if long), for positions [0, positions): cos and sin are float32
// [positions, rotary_dim / 2], of `count` values each, and stay where they are. All layers of a set have one rotary_dim.
int edgellm_section_rope(Section *section, uint64_t which, const float *cos, const float *sin, uint64_t count,
                         uint64_t positions);

// Runs steps through layers [layer_start, layer_end) of the section, counted from its own first one. Either `ids` (then
// the section embeds them) or `hidden`, float32 [count, row_in], has what all steps' tokens go in with, one after the
// other; layers that have something of a token's id need both. What the last of the layers makes of them goes to `out`,
// float32 [count, row_out], or [count, hidden] if it isn't the section's last one, unless `out` is null; it doesn't overlap
// with `hidden`. Logits after the last tokens of each step that wants them go to `logits`, float32 [their number, vocab].
int edgellm_section_run(Section *section, const StepSpec *steps, uint64_t num_steps, uint64_t layer_start,
                        uint64_t layer_end, const int64_t *ids, const float *hidden, uint64_t count, float *out,
                        uint64_t out_elements, float *logits, uint64_t logits_elements);
