"""A server with a small bundle, and a channel to a test file's server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from gr2.serving.server import Server


@pytest.fixture(scope="module")
def server(make_bundle: Callable[..., Path]) -> Iterator[Server]:
    """Serves 300 items with integer IDs and no features; a file that needs another has a fixture of its own."""
    server = Server(make_bundle(), port=0)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A channel to `server`, whichever the test file has."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel
