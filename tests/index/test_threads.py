"""Blocks run one by one or side by side, each with one thread of faiss and torch."""

import signal
from threading import get_ident, main_thread
from time import sleep

import faiss
import pytest
import torch

from patchlake.pipeline.index.threads import BlockThreads

counts = pytest.mark.parametrize("count", [1, 3])


def libraries() -> tuple[int, int]:
    return faiss.omp_get_max_threads(), torch.get_num_threads()


@pytest.fixture(autouse=True)
def two_threads():
    """Whatever the machine has."""
    before = libraries()
    faiss.omp_set_num_threads(2)
    torch.set_num_threads(2)
    yield
    faiss.omp_set_num_threads(before[0])
    torch.set_num_threads(before[1])


@counts
def test_results_are_in_the_order_of_the_blocks(count):
    assert BlockThreads(count).map(str, range(20)) == [str(number) for number in range(20)]


@counts
def test_a_block_has_one_thread_and_the_caller_as_many_as_before(count):
    assert BlockThreads(count).map(lambda _: libraries(), range(6)) == [(1, 1)] * 6
    assert libraries() == (2, 2)


@counts
def test_after_an_error_no_more_blocks_begin_and_none_goes_on(count):
    begun, ended = [], []

    def block(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise OSError(number)
        sleep(0.05)
        ended.append(number)

    with pytest.raises(OSError, match="0"):
        BlockThreads(count).map(block, range(100))
    assert sorted(begun) == [0, *sorted(ended)]
    assert len(begun) < 50


@counts
def test_an_error_is_raised_and_the_caller_has_as_many_threads_as_before(count):
    with pytest.raises(ZeroDivisionError):
        BlockThreads(count).map(lambda number: 1 / number, [1, 0, 2])
    assert libraries() == (2, 2)


def test_blocks_of_a_block_run_on_its_thread():
    inner = BlockThreads(3)

    def block(_number: int) -> tuple[int, set[int]]:
        return inner.count, {get_ident()} ^ set(inner.map(lambda _: get_ident(), range(4)))

    assert BlockThreads(2).map(block, range(4)) == [(1, set())] * 4
    assert inner.count == 3


def test_after_a_signal_no_more_blocks_begin():
    # Python does not raise it where the tests were started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun: list[int] = []

    def block(number: int) -> None:
        begun.append(number)
        if number == 0:
            # To the main thread, whose waiting it interrupts, and not only noted for later.
            signal.pthread_kill(main_thread().ident, signal.SIGINT)
        sleep(0.1)

    try:
        with pytest.raises(KeyboardInterrupt):
            BlockThreads(2).map(block, range(100))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) < 20
