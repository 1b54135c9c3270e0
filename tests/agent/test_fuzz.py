"""A few thousand fuzzed frames, always the same ones; `python -m benchmarks.fuzz` sends a hundred thousand."""

import pytest

from tests.agent.fuzzing import fuzz
from tests.fakes import run

FRAMES = 2000


@pytest.mark.parametrize("tls", [False, True], ids=["loopback", "certificates"])
def test_fuzzed_frames_crash_nothing_and_answers_go_on(tmp_path, tls):
    out = run(fuzz(tmp_path, FRAMES, seed=14, tls=tls), 120)
    assert out.crashes == [] and out.answers > 0 and out.frames == FRAMES
    assert out.grown_bytes < 60 << 20
