"""Which cores an agent computes on: boards as /sys describes them, timings as boards might have them."""

import pytest

from edgellm.agent.cores import Choice, candidates, choose, format_list, parse_list, read_cores, settled
from edgellm.errors import UsageError

ORANGE_PI_5 = {n: 530 if n < 4 else 1024 for n in range(8)}  # RK3588: 4 A55, 4 A76
ORANGE_PI_4 = {n: 485 if n < 4 else 1024 for n in range(6)}  # RK3399: 4 A53, 2 A72
TWO_ALIKE = {0: 1024, 1: 1024}


def machine(root, capacities: dict, name: str = "cpu_capacity", siblings: dict | None = None):
    for n, value in capacities.items():
        folder = root / f"sys/devices/system/cpu/cpu{n}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "topology").mkdir()
        (folder / name).write_text(f"{value}\n")
        if siblings:
            (folder / "topology/thread_siblings_list").write_text(f"{siblings[n]}\n")
    return root


def cores(root, capacities: dict, allowed=None, **kwargs):
    return read_cores(allowed or capacities, root=machine(root, capacities, **kwargs))


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_fast_cores_of_a_board_come_first(tmp_path, name):
    found = cores(tmp_path, ORANGE_PI_5, name=name)
    assert [c.number for c in found] == [4, 5, 6, 7, 0, 1, 2, 3]


def test_an_orange_pi_5_tries_all_its_cores_its_big_ones_and_one(tmp_path):
    found = candidates(cores(tmp_path, ORANGE_PI_5))
    assert found == [(4, 5, 6, 7, 0, 1, 2, 3), (4, 5, 6, 7), (4,)]


def test_an_orange_pi_4_tries_half_too(tmp_path):
    found = candidates(cores(tmp_path, ORANGE_PI_4))
    assert found == [(4, 5, 0, 1, 2, 3), (4, 5, 0), (4, 5), (4,)]


def test_clusters_of_almost_the_same_speed_are_of_one_kind(tmp_path):
    # RK3588 again: its two pairs of A76 may reach 2304 and 2256 MHz.
    frequencies = {0: 1800, 1: 1800, 2: 1800, 3: 1800, 4: 2256, 5: 2256, 6: 2304, 7: 2304}
    found = candidates(cores(tmp_path, frequencies, name="cpufreq/cpuinfo_max_freq"))
    assert (4, 5, 6, 7) in found and (6, 7) not in found


def test_three_kinds_are_added_one_by_one(tmp_path):
    found = candidates(cores(tmp_path, {0: 300, 1: 300, 2: 700, 3: 700, 4: 1024}))
    assert {(4, 2, 3, 0, 1), (4, 2, 3), (4, 2), (4,)} == set(found)


def test_equal_cores_try_all_half_and_one(tmp_path):
    assert candidates(cores(tmp_path, dict.fromkeys(range(4), 1024))) == [(0, 1, 2, 3), (0, 1), (0,)]
    assert candidates(cores(tmp_path / "b", TWO_ALIKE)) == [(0, 1), (0,)]


def test_with_smt_one_thread_a_core_is_tried(tmp_path):
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    assert (0, 1) in candidates(cores(tmp_path, dict.fromkeys(range(4), 1024), siblings=siblings))
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    assert (0, 2) in candidates(cores(tmp_path / "b", dict.fromkeys(range(4), 1024), siblings=siblings))


def test_only_cores_that_the_process_may_use_count(tmp_path):
    found = candidates(cores(tmp_path, ORANGE_PI_5, allowed=(0, 1, 6)))
    assert found == [(6, 0, 1), (6,)]


@pytest.mark.parametrize("content", [None, "", "fast", "-1", "0"])
def test_cores_of_which_nothing_is_known_are_equal(tmp_path, content):
    if content is not None:
        machine(tmp_path, {0: 1024, 1: content})
    assert [c.speed for c in read_cores((0, 1), root=tmp_path)] == [1.0, 1.0]


# Timings

BIG, ALL, ONE = (4, 5, 6, 7), (4, 5, 6, 7, 0, 1, 2, 3), (4,)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({ALL: 0.012, BIG: 0.006, ONE: 0.014}, BIG),  # little cores make all wait
        ({ALL: 0.005, BIG: 0.006, ONE: 0.014}, ALL),
        ({ALL: 0.00595, BIG: 0.006, ONE: 0.014}, BIG),  # hardly a gain
        ({ALL: 0.0060, BIG: 0.0061, ONE: 0.0060}, ONE),  # bound by memory that one core can saturate
        ({ONE: 0.1}, ONE),
    ],
)
def test_the_fastest_set_is_chosen_and_of_equals_the_smallest(seconds, best):
    assert choose(seconds) == best


# What the owner says

SETTLED = [
    # threads, cores, pin → threads, cores, pinned; None: to be measured
    (None, None, True, None),
    (None, (4, 6), True, (2, (4, 6), True)),
    (2, (6, 4), True, (2, (6, 4), True)),
    (None, (4, 6), False, (2, (4, 6), False)),
    (4, None, True, (4, (4, 5, 6, 7), True)),
    (8, None, True, (8, (4, 5, 6, 7, 0, 1, 2, 3), True)),
    (16, None, True, (16, (), False)),
    (4, None, False, (4, (4, 5, 6, 7), False)),
    (None, None, False, (4, (4, 5, 6, 7), False)),  # torch shares work out evenly: slow cores would hold up fast ones
]


@pytest.mark.parametrize(("threads", "wanted", "pin", "expected"), SETTLED)
def test_what_the_owner_says_needs_no_measuring(tmp_path, threads, wanted, pin, expected):
    found = settled(cores(tmp_path, ORANGE_PI_5), threads, wanted, pin)
    assert (found and (found.threads, found.cores, found.pinned)) == expected


def test_threads_alone_are_not_pinned_where_cores_are_equal_and_some_stay_free(tmp_path):
    alike = cores(tmp_path, dict.fromkeys(range(4), 1024))
    assert settled(alike, 2, None, True) == Choice(2, (), "as told", False)  # several agents may be told the same
    assert settled(alike, 4, None, True).cores == (0, 1, 2, 3)


def test_a_machine_with_one_core_measures_nothing(tmp_path):
    assert settled(cores(tmp_path, TWO_ALIKE, allowed=(1,)), None, None, True).cores == (1,)


@pytest.mark.parametrize(
    ("threads", "wanted", "said"),
    [(None, (4, 9), "core 9 doesn't exist or is not available. Choose from 0-7"), (3, (4, 5), "3 threads on 2 cores")],
)
def test_cores_that_cannot_be_used_are_refused(tmp_path, threads, wanted, said):
    with pytest.raises(UsageError, match=said):
        settled(cores(tmp_path, ORANGE_PI_5), threads, wanted, True)


# Lists


LISTS = [("4-7", (4, 5, 6, 7)), ("0,2", (0, 2)), ("6-7, 0", (6, 7, 0)), ("3", (3,))]


@pytest.mark.parametrize(("text", "numbers"), LISTS)
def test_lists_of_cores(text, numbers):
    assert parse_list(text) == numbers
    assert parse_list(format_list(numbers)) == numbers


@pytest.mark.parametrize("text", ["", "a", "7-4", "-1", "1-", "1,,2", "0-99999", "0x1", "1,1", "2-4,3", "٣"])
def test_what_is_no_list_of_cores_is_refused(text):
    with pytest.raises(UsageError, match="not a list of cores|names a core twice"):
        parse_list(text)


def test_a_choice_reads_well():
    assert str(Choice(4, BIG, "measured")) == "4 threads on cores 4-7 (measured)"
    assert str(Choice(1, (), "as told", False)) == "1 thread (as told)"
