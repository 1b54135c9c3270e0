// abi.h for C++: its names in namespace edgellm, its functions the only ones that the library exports.
#pragma once
#include <stdint.h>

namespace edgellm {

#pragma GCC visibility push(default)
extern "C" {
#include "abi.h"
}
#pragma GCC visibility pop

}  // namespace edgellm
