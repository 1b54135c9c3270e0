// Which instruction sets this processor has, asked of it when the library is loaded.
#include <string.h>

#include "gemm.h"

#ifdef EDGELLM_X86_64
#include <cpuid.h>
#endif
#ifdef __aarch64__
#include <sys/auxv.h>
#endif

namespace edgellm {
namespace {

#ifdef EDGELLM_X86_64
// What the processor has and the system saves, asked of it directly: not every compiler's runtime knows.
bool has(bool avx512vnni) {
    unsigned a, b, c, d, saved, high;
    const unsigned first = bit_OSXSAVE | bit_FMA | bit_F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & first) != first) return false;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const unsigned bits = avx512vnni ? bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL : bit_AVX2;
    const unsigned registers = avx512vnni ? 0xe6 : 0x06;  // XMM and YMM; opmask and both halves of ZMM
    return (b & bits) == bits && (saved & registers) == registers && (!avx512vnni || (c & bit_AVX512VNNI));
}
#endif

bool runs_here(const Target& target) {
#ifdef EDGELLM_X86_64
    if (&target == &AVX512VNNI_TARGET) return has(true);
    if (&target == &AVX2_TARGET) return has(false);
#endif
#ifdef __aarch64__
    constexpr unsigned long dotprod = 1ul << 20;  // HWCAP_ASIMDDP
    if (&target == &DOTPROD_TARGET) return getauxval(AT_HWCAP) & dotprod;
#endif
    return target.name != nullptr;
}

const Target* const TARGETS[] = {  // the best first
#ifdef EDGELLM_X86_64
    &AVX512VNNI_TARGET, &AVX2_TARGET,
#endif
#ifdef __aarch64__
    &DOTPROD_TARGET, &NEON_TARGET,
#endif
    &SCALAR_TARGET,
};

const Target* chosen = &SCALAR_TARGET;

__attribute__((constructor)) void choose() { use_target(nullptr); }

}  // namespace

const Target& target() { return *chosen; }

bool use_target(const char* name) {
    for (const Target* target : TARGETS)
        if ((name == nullptr || strcmp(target->name, name) == 0) && runs_here(*target)) return chosen = target, true;
    return false;
}

}  // namespace edgellm
