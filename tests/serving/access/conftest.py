"""A server whose calls are taken directly, and what tests wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gr2.serving.server import Server


@pytest.fixture
def direct_server(make_bundle: Callable[..., Path]) -> Iterator[Server]:
    """One thread, and four calls may wait."""
    server = Server(make_bundle(), port=0, threads=1, queue=4)
    assert server._direct is not None
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def await_idle() -> Callable[[Server], None]:
    """Waits until no call of a server is at work."""

    def wait(server: Server) -> None:
        deadline = time.monotonic() + 30
        while not (server._idle and not server._server._state.rpc_states) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert server._idle
        assert not server._server._state.rpc_states

    return wait


@pytest.fixture
def codes_after() -> Callable[[Server, int], dict[str, int]]:
    """The statuses that a server has counted, once they are so many."""

    def wait(server: Server, count: int) -> dict[str, int]:
        deadline = time.monotonic() + 30
        while sum(server._observer.codes.values()) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return server._observer.codes

    return wait
