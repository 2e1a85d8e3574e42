"""An engine that is closed when it was replaced and its last user has left, and not before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gr2.serving.bundles.handle import Handle
from gr2.serving.bundles.versions import Version
from gr2.serving.engine import Engine

MakeBundle = Callable[..., Path]


class Counting(Engine):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.fixture
def engine(make_bundle: MakeBundle) -> Counting:
    return Counting(make_bundle())


@pytest.fixture
def handle(engine: Counting, make_bundle: MakeBundle) -> Handle:
    return Handle(engine, Version("1", make_bundle(), ()))


def test_unused_engine_is_closed_at_once_and_once(handle: Handle, engine: Counting) -> None:
    assert handle.retire(0)
    assert handle.retire(0)
    assert engine.closed == 1


def test_used_engine_is_closed_after_its_last_user(handle: Handle, engine: Counting) -> None:
    assert handle.acquire()
    assert handle.acquire()
    assert not handle.retire(0)
    handle.release()
    assert not handle.retire(0.01)
    assert engine.closed == 0
    handle.release()
    assert handle.retire(0)
    assert engine.closed == 1


def test_retired_engine_takes_no_more_users(handle: Handle) -> None:
    handle.retire(0)
    assert not handle.acquire()


def test_block_that_raises_is_left(handle: Handle) -> None:
    assert handle.acquire()
    with pytest.raises(KeyError), handle:
        raise KeyError
    assert handle.retire(0)


def test_engine_is_never_closed_under_one_of_many_users(handle: Handle, engine: Counting) -> None:
    start = threading.Barrier(5)

    def use() -> int:
        start.wait()
        uses = 0
        while handle.acquire():
            with handle:
                assert engine.closed == 0
                uses += 1
        return uses

    with ThreadPoolExecutor(4) as pool:
        using = [pool.submit(use) for _ in range(4)]
        start.wait()
        time.sleep(0.05)
        assert handle.retire(20)
        assert sum(each.result() for each in using) > 0
    assert engine.closed == 1
