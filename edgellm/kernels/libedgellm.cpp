// The C ABI of libedgellm: checks arguments, picks this processor's instruction set, shares rows among threads.
#include <stdint.h>
#include <string.h>

#include "rows.h"

#ifdef EDGELLM_X86_64
#include <cpuid.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights are little-endian and are read in place"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace edgellm;

// GNU OpenMP's runtime by its ABI instead of pragmas: any compiler will do, and our threads are those that torch has.
extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

namespace {

// Kept in step with native.py.
enum Status : int {
    OK = 0,
    BAD_POINTER = 1,
    BAD_ENCODING = 2,
    BAD_SHAPE = 3,
    BAD_LENGTH = 4,
    BAD_THREADS = 5,
    BAD_TARGET = 6,
};

constexpr uint64_t MOST = uint64_t{1} << 31;  // of rows, columns and tokens: products of two stay below 2^64

#ifdef EDGELLM_X86_64
// What the processor has and the system saves, asked of it directly: not every compiler's runtime knows.
bool runs_here(const Target& target) {
    if (&target == &BASE_TARGET) return true;
    unsigned a, b, c, d, saved, high;
    const unsigned first = bit_OSXSAVE | bit_FMA | bit_F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & first) != first) return false;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool avx512 = &target == &AVX512_TARGET;
    const unsigned bits = avx512 ? bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL : bit_AVX2;
    const unsigned registers = avx512 ? 0xe6 : 0x06;  // XMM and YMM; opmask and both halves of ZMM
    return (b & bits) == bits && (saved & registers) == registers;
}
#else
bool runs_here(const Target& target) { return &target == &BASE_TARGET; }
#endif

const Target* const TARGETS[] = {
#ifdef EDGELLM_X86_64
    &AVX512_TARGET, &AVX2_TARGET,
#endif
    &BASE_TARGET,
};

const Target* best_target() {
    for (const Target* target : TARGETS)
        if (runs_here(*target)) return target;
    return &BASE_TARGET;
}

const Target* chosen = nullptr;  // set when the library is loaded
__attribute__((constructor)) void choose() { chosen = best_target(); }

int check(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in, uint64_t* row_bytes) {
    if (encoding < INT4 || encoding > F16) return BAD_ENCODING;
    if (out == 0 || in == 0 || out >= MOST || in >= MOST) return BAD_SHAPE;
    const bool blocks = encoding == INT4 || encoding == INT8;
    if (blocks && in % GROUP != 0) return BAD_SHAPE;
    *row_bytes = blocks ? in / GROUP * group_bytes(encoding) : in * 2;
    if (weight_bytes / *row_bytes != out || weight_bytes % *row_bytes != 0) return BAD_LENGTH;
    return weights == nullptr ? BAD_POINTER : OK;
}

// Calls work(start, end) for runs of rows that together are [0, rows).
template <class Work>
void share(uint64_t rows, int threads, const Work& work) {
    constexpr uint64_t LEAST = 16;  // rows that are worth a thread
    const uint64_t most = (rows + LEAST - 1) / LEAST;
    const int parts = static_cast<uint64_t>(threads) < most ? threads : static_cast<int>(most);
    if (parts <= 1) return work(0, rows);
    struct Job {
        const Work& work;
        uint64_t rows, run;
        int parts;
    } job = {work, rows, ((rows + parts - 1) / parts + 3) / 4 * 4, parts};
    const auto one_thread = [](void* data) {
        const Job& job = *static_cast<const Job*>(data);
        for (int part = omp_get_thread_num(); part < job.parts; part += omp_get_num_threads()) {
            const uint64_t start = job.run * part, end = start + job.run < job.rows ? start + job.run : job.rows;
            if (start < end) job.work(start, end);
        }
    };
    GOMP_parallel(one_thread, &job, parts, 0);
}

}  // namespace

// The version of this interface; native.py refuses a library with another one.
EXPORT int edgellm_abi() { return 1; }

// The name of the instruction set in use.
EXPORT const char* edgellm_target() { return chosen->name; }

// Uses another instruction set from now on (for tests); a null name picks the best again. Not while others compute.
EXPORT int edgellm_use_target(const char* name) {
    if (name == nullptr) return chosen = best_target(), OK;
    for (const Target* target : TARGETS)
        if (strcmp(target->name, name) == 0 && runs_here(*target)) return chosen = target, OK;
    return BAD_TARGET;
}

// y[tokens, out] = x[tokens, in] times the transpose of weights[out, in]; x and y are dense float32.
EXPORT int edgellm_linear(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in,
                          const float* x, uint64_t tokens, float* y, int threads) {
    uint64_t row_bytes = 0;
    if (const int status = check(weights, weight_bytes, encoding, out, in, &row_bytes)) return status;
    if (tokens >= MOST) return BAD_SHAPE;
    if (threads < 1) return BAD_THREADS;
    if (tokens == 0) return OK;
    if (x == nullptr || y == nullptr) return BAD_POINTER;
    const Linear job = {static_cast<const uint8_t*>(weights), row_bytes, in, out, x, tokens, y};
    const Target* target = chosen;
    share(out, threads, [&](uint64_t start, uint64_t end) { target->linear(encoding, job, start, end); });
    return OK;
}

// Writes rows [row_start, row_end) as float32 to `into`, which holds `into_elements` of them: their number times in.
EXPORT int edgellm_dequantize(const void* weights, uint64_t weight_bytes, int encoding, uint64_t out, uint64_t in,
                              uint64_t row_start, uint64_t row_end, float* into, uint64_t into_elements, int threads) {
    uint64_t row_bytes = 0;
    if (const int status = check(weights, weight_bytes, encoding, out, in, &row_bytes)) return status;
    if (row_start > row_end || row_end > out) return BAD_SHAPE;
    if (into_elements != (row_end - row_start) * in) return BAD_LENGTH;
    if (threads < 1) return BAD_THREADS;
    if (row_start == row_end) return OK;
    if (into == nullptr) return BAD_POINTER;
    const uint8_t* rows = static_cast<const uint8_t*>(weights) + row_start * row_bytes;
    const Target* target = chosen;
    share(row_end - row_start, threads, [&](uint64_t start, uint64_t end) {
        for (uint64_t row = start; row < end; row++)
            target->dequantize(encoding, rows + row * row_bytes, in, into + row * in);
    });
    return OK;
}

// Reads `bytes` (a multiple of 64) and writes the sum of their 64-bit words to `total`: how fast memory is at best.
EXPORT int edgellm_read(const void* data, uint64_t bytes, uint64_t* total) {
    if (bytes % 64 != 0) return BAD_LENGTH;
    if (data == nullptr || total == nullptr) return BAD_POINTER;
    using Words = uint64_t __attribute__((vector_size(64), aligned(8)));
    const uint8_t* p = static_cast<const uint8_t*>(data);
    Words a = {}, b = {}, v;
    uint64_t at = 0;
    for (; at + 128 <= bytes; at += 128) {
        __builtin_prefetch(p + at + 1024);
        __builtin_prefetch(p + at + 1088);
        memcpy(&v, p + at, 64);
        a += v;
        memcpy(&v, p + at + 64, 64);
        b += v;
    }
    if (at < bytes) {
        memcpy(&v, p + at, 64);
        a += v;
    }
    a += b;
    *total = 0;
    for (int i = 0; i < 8; i++) *total += a[i];
    return OK;
}
