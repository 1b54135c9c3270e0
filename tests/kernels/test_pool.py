"""The pool of threads: pinned, used by several callers, absent in a forked child."""

import os
import signal
import threading

import numpy as np
import pytest

from edgellm.kernels import library
from edgellm.kernels.abi import constants
from edgellm.model.generic.packed import pack
from tests.native_abi import call

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread():
    yield
    library.set_threads(1)


@pytest.fixture(scope="module")
def product():
    """A function that multiplies, and what it should give."""
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    data = pack(weight, "int8").numpy()
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)

    def run():
        out = np.empty((3, 256), np.float32)
        library.linear(x, data, "int8", (256, 64), out, integer=True)
        return out

    library.set_threads(1)
    return run, run()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(product, count):
    run, expected = product
    library.set_threads(count)
    assert library.library().edgellm_threads() == count
    for _ in range(50):
        assert np.array_equal(run(), expected)


def test_callers_at_once_each_get_their_result(product):
    run, expected = product
    library.set_threads(3)
    wrong = []

    def call():
        wrong.extend(1 for _ in range(200) if not np.array_equal(run(), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert wrong == [] and not any(caller.is_alive() for caller in callers)


def test_a_caller_stays_on_its_core_until_threads_are_free_again(product):
    run, allowed = product[0], os.sched_getaffinity(0)
    core, found = max(allowed), []

    def call():
        library.set_threads(1, [core])
        run()
        found.append(os.sched_getaffinity(0))
        library.set_threads(1)
        run()
        found.append(os.sched_getaffinity(0))

    caller = threading.Thread(target=call)
    caller.start()
    caller.join(60)
    assert found == [{core}, allowed]


def test_a_thread_that_was_never_put_on_a_core_stays_where_it_is(product):
    run, core, found = product[0], max(os.sched_getaffinity(0)), []

    def call():
        os.sched_setaffinity(0, {core})
        library.set_threads(2)
        run()
        found.append(os.sched_getaffinity(0))

    caller = threading.Thread(target=call)
    caller.start()
    caller.join(60)
    assert found == [{core}]


@pytest.mark.parametrize("count, cores", [(0, []), (-1, []), (65, []), (2, [0]), (1, [-1]), (1, [1 << 20])])
def test_threads_that_can_not_be_are_refused_and_nothing_changes(product, count, cores):
    library.set_threads(2)
    with pytest.raises(ValueError, match="can't compute with"):
        library.set_threads(count, cores)
    assert library.library().edgellm_threads() == 2
    assert call("edgellm_threads_set", 1, None, 3) == constants.BAD_THREADS


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_alone(product):
    run, expected = product
    library.set_threads(3)
    run()
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(run(), expected) and library.library().edgellm_threads() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_threads_change_has_working_ones(product):
    run, expected = product
    over = threading.Event()

    def change():
        while not over.is_set():
            library.set_threads(2)
            library.set_threads(1)

    changing = threading.Thread(target=change)
    changing.start()
    codes = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends it, should it wait for ever
            library.set_threads(2)
            os._exit(0 if np.array_equal(run(), expected) else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    over.set()
    changing.join(60)
    assert codes == [0] * 20
