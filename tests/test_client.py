"""The client against a real server: the engine's answers, and errors a person can read."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.client import Client, service_config
from gr2.errors import Gr2Error, OverloadError, RequestError
from gr2.serving.ranking import CandidateStatus
from gr2.serving.server import Server

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle) -> Iterator[Server]:
    server = Server(make_bundle(width=2), port=0)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        client.wait_ready()
        yield client


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_ranking_equals_the_engines(server: Server, client: Client) -> None:
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {
        "scores": rng.normal(size=32),
        "features": rng.normal(size=(32, 2)),
        "top_n": 31,
        "request_id": "abc",
    }
    candidates = [*KNOWN[:30], 1, 2]
    ranking = client.rerank([*KNOWN[:5], 7], candidates, timeout=10, **arguments)
    expected = server.engine.rerank([*KNOWN[:5], 7], candidates, **arguments)
    assert ranking.items == expected.items
    assert ranking.items[-1].status is CandidateStatus.UNKNOWN_ITEM
    assert (ranking.unknown_history, ranking.request_id) == (1, "abc")
    assert ranking.bundle_version == server.engine.version
    assert ranking.timings.total_ns >= ranking.timings.model_ns > 0


def test_string_ids(make_bundle: MakeBundle) -> None:
    server = Server(make_bundle("string"), port=0)
    server.start()
    ids = ["artículo-0003", "nichts", "artículo-0001"]
    with Client(server.address) as client:
        assert client.rerank(ids, ids, timeout=10).items == server.engine.rerank(ids, ids).items
        with pytest.raises(RequestError, match="candidates: this catalogue's item IDs are strings, got ints"):
            client.rerank([], [1], timeout=10)
    server.stop(5)


def test_numpy_ids(client: Client) -> None:
    ids = np.array(KNOWN[:9], dtype=np.int32)
    assert client.rerank(ids, ids, timeout=10).items == client.rerank(KNOWN[:9], KNOWN[:9], timeout=10).items


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({"candidates": []}, "candidates", "at least one is needed, got none"),
        ({"candidates": [7, 7]}, "candidates", "must be distinct; 7 at positions 0, 1"),
        ({"history": ["a"]}, "history", "this catalogue's item IDs are int64, got strings"),
        ({"history": [1, "a"]}, "history", "fill ints or strings, not both; got 1 ints, 1 strings"),
        ({"scores": [1.0, 2.0]}, "scores", "none or one a candidate (1), got 2"),
        ({"scores": [float("nan")]}, "scores", "must be finite float32; number 0 is nan"),
        ({"request_id": "x" * 129}, "request_id", "at most 128 bytes, got 129"),
    ],
)
def test_servers_refusal_is_a_request_error(client: Client, arguments: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        client.rerank(**{"history": [], "candidates": [1007], "timeout": 10, **arguments})
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"candidates": [2**63]}, "candidates"),
        ({"candidates": [1.5]}, "candidates"),
        ({"history": ["\ud800"]}, "history"),
        ({"scores": ["x"]}, "scores"),
        ({"features": "x"}, "features"),
        ({"scores": [["1"]]}, "scores"),
        ({"scores": [[1.0]]}, "scores"),
        ({"scores": 1.0}, "scores"),
        ({"candidates": KNOWN[:3], "features": np.ones((2, 3))}, "features"),
        ({"features": np.ones((1, 2, 1))}, "features"),
        ({"candidates": "abc"}, "candidates"),
        ({"history": None}, "history"),
        ({"top_n": 2.5}, "top_n"),
        ({"top_n": None}, "top_n"),
        ({"request_id": None}, "request_id"),
        ({"top_n": -1}, "top_n"),
        ({"request_id": 5}, "request_id"),
    ],
)
def test_value_that_cannot_be_sent_is_a_request_error(client: Client, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        client.rerank(**{"history": [], "candidates": [1007], "timeout": 10, **arguments})
    assert caught.value.field == field


def test_oversized_request_is_a_request_error(client: Client) -> None:
    with pytest.raises(RequestError, match="larger than max"):
        client.rerank([], range(10**6), timeout=10)  # type: ignore[arg-type]


def test_closed_client_says_so(server: Server) -> None:
    client = Client(server.address)
    client.close()
    with pytest.raises(Gr2Error, match=f"{server.address}: .*closed"):
        client.rerank([], KNOWN[:3])
    with pytest.raises(Gr2Error, match=f"{server.address}: .*closed"):
        client.wait_ready(1)


def test_missed_deadline_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"127.0.0.1:{silent.getsockname()[1]}")
        with client, pytest.raises(Gr2Error, match=r"no answer within 0\.1 s"):
            client.rerank([], KNOWN, timeout=0.1)


def test_absent_server_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address) as client:
        with pytest.raises(OverloadError, match=f"{address}: cannot be reached"):
            client.rerank([], [1], timeout=5)
        with pytest.raises(Gr2Error, match=rf"{address}: no server ready after 0\.2 s"):
            client.wait_ready(0.2)


def test_wait_ready_waits_for_a_server_that_starts_later(make_bundle: MakeBundle) -> None:
    port = free_port()
    client = Client(f"127.0.0.1:{port}")
    done = threading.Event()

    def wait() -> None:
        client.wait_ready(30)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    server = Server(make_bundle(), port=port)
    assert not done.is_set()
    server.start()
    waiter.join(30)
    assert done.is_set()
    client.close()
    server.stop(5)


def test_wait_ready_does_not_take_a_stopping_server_for_ready(make_bundle: MakeBundle) -> None:
    server = Server(make_bundle(), port=0)
    with Client(server.address) as client:
        with pytest.raises(Gr2Error, match="no server ready"):
            client.wait_ready(0.2)
        server.start()
        client.wait_ready(30)
        start = time.monotonic()
        server.stop(5)
        assert time.monotonic() - start < 5
        with pytest.raises(Gr2Error, match="no server ready"):
            client.wait_ready(0.2)


def test_client_needs_only_grpc_protobuf_and_numpy() -> None:
    code = (
        "import sys\n"
        "for name in ('pyarrow', 'onnxruntime', 'gr2._core', 'grpc_health', 'grpc_reflection', 'typer', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "from gr2.client import Client\n"
        "Client('127.0.0.1:1').close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_published_service_config_is_what_guide_and_file_show() -> None:
    guide = Path(__file__).parents[1] / "docs" / "guide.md"
    assert service_config() in guide.read_text(encoding="utf-8")
    assert service_config() + "\n" == (guide.parents[1] / "deploy" / "service_config.json").read_text(encoding="utf-8")
