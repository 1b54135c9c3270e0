// x86-64-v3.
#include "ops.h"

#include "lanes.h"

#include "ops_impl.h"

#include "ops_attention.h"

namespace edgellm {

const Ops AVX2_OPS = {add_and_norm, add_to, head, store_key, store_value, attend, silu_gated, gelu};

}  // namespace edgellm
