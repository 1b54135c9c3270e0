// What every processor of the architecture can do: NEON on aarch64, plain floats elsewhere.
#include "ops.h"

#include "lanes.h"

#include "ops_impl.h"

#include "ops_attention.h"

#include "ops_latent.h"

#include "ops_experts.h"

#include "ops_recurrent.h"

namespace edgellm {

const Ops BASE_OPS =
#include "ops_table.h"

}  // namespace edgellm
