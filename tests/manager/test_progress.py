"""How far boards are with loading a plan."""

from edgellm.manager.progress import Progress
from edgellm.wire.section_status import SectionLoading


def loading(read: int, total: int, age_s: float | None = 1.0, epoch: int = 2, model: str = "m") -> SectionLoading:
    return SectionLoading(epoch, model, 0, 3, read, total, age_s)


def test_bytes_of_all_boards_count_and_one_that_is_done_stays_done():
    progress = Progress("m")
    assert (progress.read_bytes, progress.total_bytes, progress.left_s) == (0, 0, None)
    progress.heard({"b0": loading(10, 100), "b1": loading(50, 200, 2.0), "b2": None})
    assert (progress.read_bytes, progress.total_bytes, progress.left_s) == (60, 300, 9.0)
    progress.heard({"b0": None, "b1": loading(100, 200, 4.0)})
    assert (progress.read_bytes, progress.total_bytes, progress.left_s) == (200, 300, 4.0)
    progress.heard({})
    assert progress.read_bytes == 200


def test_what_is_of_another_model_or_of_an_earlier_plan_does_not_count():
    progress = Progress("m")
    progress.heard({"b0": loading(10, 100, model="other"), "b1": loading(0, 50, None)})
    assert (progress.read_bytes, progress.total_bytes, progress.left_s) == (0, 50, None)
    progress.heard({"b1": loading(20, 30, epoch=3)})
    progress.heard({"b1": loading(50, 50, epoch=2)})
    assert progress.total_bytes == 30


def test_it_is_told_in_the_unit_that_fits():
    progress = Progress("m")
    progress.heard({"b0": loading(1_250_000, 90_000_000)})
    assert str(progress) == "1.2 of 90.0 MB"
    progress.heard({"b0": loading(1_250_000_000, 3_400_000_000)})
    assert str(progress) == "1.2 of 3.4 GB"
