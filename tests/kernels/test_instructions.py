"""What boards' kernels execute for 32 weights and one token, as zig compiles them, stays within bounds.

The bounds are what `python -m benchmarks.instructions` counts, and 3 %. Whoever makes a kernel better lowers its bound.
"""

import pytest

from benchmarks.instructions import SOURCE, count

pytestmark = pytest.mark.kernels

BOUNDS = {  # of decode, of prefill; int4s of dotprod in prefill: 55 % of what 0.1 executed, 7.70
    ("neon", "int4s"): (10.5, 9.0), ("neon", "int4"): (10.9, 8.8), ("neon", "int8"): (10.7, 10.1),
    ("dotprod", "int4s"): (7.4, 4.23), ("dotprod", "int4"): (8.0, 4.6), ("dotprod", "int8"): (6.0, 4.1),
    ("neon", "q4_k"): (13.6, 9.86), ("neon", "q6_k"): (22.2, 11.4), ("neon", "mxfp4"): (13.7, 15.1),
    ("dotprod", "q4_k"): (10.7, 5.17), ("dotprod", "q6_k"): (18.5, 6.8), ("dotprod", "mxfp4"): (11.0, 4.73),
}  # fmt: skip


@pytest.mark.parametrize("aarch64", ["zig"], indirect=True)
@pytest.mark.parametrize("target, encoding", BOUNDS)
def test_no_kernel_executes_more_instructions_than_it_did(aarch64, target, encoding):
    program = aarch64.program(SOURCE)
    decode, prefill = (count(program, target, encoding, tokens).instructions for tokens in (1, 16))
    most_decode, most_prefill = BOUNDS[target, encoding]
    assert decode <= most_decode and prefill <= most_prefill
    # A product of 32 weights takes two instructions of dotprod and four of neon at least: it was counted at all.
    assert min(decode, prefill) > (2 if target == "dotprod" else 4)
