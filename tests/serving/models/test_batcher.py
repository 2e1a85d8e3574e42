"""The batcher under threads: sizes and delays, errors of one item, cancellation, overload and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gr2.errors import ConfigError, Gr2Error, OverloadError
from gr2.serving.models.batcher import Batcher, BatchLimits

PATIENCE = 20.0  # seconds, far above what any of it takes


class Doubler:
    """Doubles what it is given; records its batches; waits while `held`; fails on a negative number."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.free.wait(PATIENCE)
        if min(items) < 0:
            raise ValueError(f"{min(items)} is negative")
        return [2 * item for item in items]


@contextmanager
def batching(run: Doubler, *, size: int = 4, delay: float = 0.0, queue: int = 64) -> Iterator[Batcher[int, int]]:
    batcher = Batcher(run, BatchLimits(size, delay, queue))
    try:
        yield batcher
    finally:
        run.free.set()
        batcher.close()


@contextmanager
def held_up(run: Doubler, batcher: Batcher[int, int]) -> Iterator[None]:
    """What is submitted inside waits behind a first batch, which runs until the end of the block."""
    run.free.clear()
    first = batcher.submit(1000)
    assert run.entered.wait(PATIENCE)
    yield
    run.free.set()
    assert first.result(PATIENCE) == 2000


def test_every_caller_gets_its_own_result() -> None:
    run = Doubler()
    with batching(run, size=8, delay=200.0, queue=2000) as batcher, ThreadPoolExecutor(32) as pool:
        results = list(pool.map(lambda item: batcher.submit(item).result(PATIENCE), range(2000)))
    assert results == [2 * item for item in range(2000)]
    assert sorted(item for batch in run.batches for item in batch) == list(range(2000))
    assert max(map(len, run.batches)) <= 8


def test_waiting_items_go_in_full_batches_in_order() -> None:
    run = Doubler()
    with batching(run, size=4) as batcher:
        with held_up(run, batcher):
            futures = [batcher.submit(item) for item in range(10)]
        assert [future.result(PATIENCE) for future in futures] == [2 * item for item in range(10)]
    assert run.batches == [[1000], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_full_batch_does_not_wait_for_the_delay() -> None:
    run = Doubler()
    with batching(run, size=2, delay=1e6) as batcher:
        start = time.monotonic()
        futures = [batcher.submit(item) for item in (1, 2)]
        assert [future.result(PATIENCE) for future in futures] == [2, 4]
        assert time.monotonic() - start < 0.9
    assert run.batches == [[1, 2]]


def test_lone_item_waits_for_the_delay_and_no_longer() -> None:
    run = Doubler()
    with batching(run, size=2, delay=50_000.0) as batcher:
        start = time.monotonic()
        assert batcher.submit(1).result(PATIENCE) == 2
        assert 0.05 <= time.monotonic() - start < PATIENCE


@pytest.mark.parametrize("bad", [{3}, {0, 7}, set(range(8))])
def test_error_stays_with_the_items_that_cause_it(bad: set[int]) -> None:
    run = Doubler()
    with batching(run, size=8) as batcher:
        with held_up(run, batcher):
            futures = [batcher.submit(-item - 1 if item in bad else item) for item in range(8)]
        for item, future in enumerate(futures):
            if item in bad:
                with pytest.raises(ValueError, match=f"^{-item - 1} is negative$"):
                    future.result(PATIENCE)
            else:
                assert future.result(PATIENCE) == 2 * item
        assert batcher.submit(5).result(PATIENCE) == 10


def test_error_that_is_given_for_an_item_runs_nothing_again() -> None:
    batches: list[list[int]] = []

    def double(items: list[int]) -> list[int | Exception]:
        batches.append(items)
        return [2 * item if item >= 0 else ValueError(f"{item} is negative") for item in items]

    batcher: Batcher[int, int] = Batcher(double, BatchLimits(8, 1e6, 64))
    items = [0, -1, 2, 3, 4, -5, 6, 7]
    futures = [batcher.submit(item) for item in items]
    for item, future in zip(items, futures, strict=True):
        if item < 0:
            with pytest.raises(ValueError, match=f"^{item} is negative$"):
                future.result(PATIENCE)
        else:
            assert future.result(PATIENCE) == 2 * item
    batcher.close()
    assert len(batches) == 1


def test_error_of_wanted_is_that_items_own() -> None:
    def broken() -> bool:
        raise RuntimeError("the call is gone")

    run = Doubler()
    with batching(run) as batcher:
        with held_up(run, batcher):
            before, bad, after = batcher.submit(1), batcher.submit(2, broken), batcher.submit(3, lambda: True)
        with pytest.raises(RuntimeError, match="the call is gone"):
            bad.result(PATIENCE)
        assert (before.result(PATIENCE), after.result(PATIENCE)) == (2, 6)
        assert batcher.submit(4).result(PATIENCE) == 8
    assert run.batches == [[1000], [1, 3], [4]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_ends_leaves_nobody_waiting() -> None:
    entered, free = threading.Event(), threading.Event()

    def leave(_: list[int]) -> list[int]:
        entered.set()
        assert free.wait(PATIENCE)
        raise SystemExit

    batcher: Batcher[int, int] = Batcher(leave, BatchLimits(1, 0.0, 64))
    futures = [batcher.submit(1)]
    assert entered.wait(PATIENCE)
    futures += [batcher.submit(item) for item in range(3)]
    free.set()
    for future in futures:
        with pytest.raises(Gr2Error, match="the thread that runs batches ended: SystemExit"):
            future.result(PATIENCE)
    with pytest.raises(Gr2Error, match="closed"):
        batcher.submit(5)
    batcher.close()


def test_results_of_another_number_are_an_error_not_a_hang() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: items[1:], BatchLimits(2, 0.0, 4))
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(1).result(PATIENCE)
    batcher.close()


def test_cancelled_and_unwanted_items_are_never_run() -> None:
    run = Doubler()
    gone = threading.Event()
    with batching(run) as batcher:
        with held_up(run, batcher):
            cancelled, unwanted = batcher.submit(1), batcher.submit(2, lambda: not gone.is_set())
            kept = batcher.submit(3, lambda: True)
            assert cancelled.cancel()
            gone.set()
        assert kept.result(PATIENCE) == 6
        with pytest.raises(CancelledError):
            unwanted.result(PATIENCE)
    assert run.batches == [[1000], [3]]


def test_batch_of_nothing_wanted_is_not_run() -> None:
    run = Doubler()
    with batching(run) as batcher:
        with held_up(run, batcher):
            assert batcher.submit(1).cancel()
        assert batcher.submit(2).result(PATIENCE) == 4
    assert run.batches == [[1000], [2]]


def test_item_beyond_the_queue_is_refused_at_once() -> None:
    run = Doubler()
    with batching(run, size=2, queue=3) as batcher:
        with held_up(run, batcher):
            futures = [batcher.submit(item) for item in range(3)]
            with pytest.raises(OverloadError, match="3 requests wait for a batch already"):
                batcher.submit(3)
        assert [future.result(PATIENCE) for future in futures] == [0, 2, 4]
        assert batcher.submit(4).result(PATIENCE) == 8


def test_close_answers_what_was_submitted_and_refuses_the_rest() -> None:
    run = Doubler()
    batcher = Batcher(run, BatchLimits(2, 1e6, 64))
    with held_up(run, batcher):
        futures = [batcher.submit(item) for item in range(5)]
        closing = threading.Thread(target=batcher.close)
        closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8]
    with pytest.raises(Gr2Error, match="closed"):
        batcher.submit(1)


@pytest.mark.parametrize("values", [(0, 1.0, 4), (5000, 1.0, 5000), (4, -1.0, 4), (4, 2e6, 4), (4, 1.0, 3)])
def test_limits_out_of_range_are_refused(values: tuple[int, float, int]) -> None:
    with pytest.raises(ConfigError, match=r"a batch takes 1\.\.4096 requests"):
        BatchLimits(*values)
