"""Which requests a server lets in, which wait and which it refuses, and what it counts, by the core."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2._core import Admission, Call
from gr2.client import Client
from gr2.errors import Gr2Error, OverloadError
from gr2.serving.models.outcomes import Outcome
from gr2.serving.observing.histogram import bucket
from gr2.serving.observing.phases import COUNTED, read_phases
from gr2.serving.ranking import CandidateStatus
from gr2.serving.server import Server
from gr2.v1 import reranker_pb2 as pb

MakeBundle = Callable[..., Path]
KNOWN = [1000 + 7 * item for item in range(300)]
LIMIT = 30.0


@pytest.fixture(params=[True, False], ids=["core", "python"])
def server(make_bundle: MakeBundle, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(make_bundle(), port=0, threads=1, queue=1, native=request.param)
    server.start()
    yield server
    server.stop(5)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as client:
        client.wait_ready()
        yield client


@pytest.fixture
def worker(server: Server) -> Iterator[Callable[[], None]]:
    """The server's only worker, taken; the call gives it back."""
    call, core = Call(), server._admission.core
    assert core.enter(call) is None
    left: list[bool] = []

    def leave() -> None:
        if not left:
            left.append(True)
            core.leave(call, done=False)

    yield leave
    leave()


def outcomes(server: Server) -> dict[str, int]:
    counts = server._admission.core.stats()["outcomes"]
    return {Outcome(number).name: count for number, count in enumerate(counts) if count}


def await_waiting(server: Server, count: int) -> None:
    end = time.monotonic() + LIMIT
    while sum(server._admission.core.stats()["waiting"]) != count:
        assert time.monotonic() < end
        time.sleep(0.002)


def slow_down(server: Server, seconds: float, size: int) -> None:
    """Make the admission believe that requests of this size to the default bundle take so long."""
    call = Call()
    assert server._admission.core.enter(call, size=size, times=server.engine.times) is None
    time.sleep(seconds)
    server._admission.core.leave(call, done=True)


def test_a_full_server_returns_the_incoming_order_to_those_who_ask(
    server: Server, client: Client, worker: Callable[[], None]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.rerank, KNOWN[:3], KNOWN[3:9], timeout=LIMIT)
        await_waiting(server, 1)
        ranking = client.rerank([], KNOWN[:5], top_n=3, request_id="r", fallback=True, timeout=LIMIT)
        with pytest.raises(OverloadError, match="2 requests are at work or wait already"):
            client.rerank([], KNOWN[:5], timeout=LIMIT)
        worker()
        assert not waiting.result().fallback
    assert (ranking.fallback, ranking.request_id, ranking.bundle_version) == (True, "r", server.engine.version)
    assert [(item.index, item.item_id, item.score) for item in ranking.items] == [
        (index, KNOWN[index], 0.0) for index in range(3)
    ]
    assert {item.status for item in ranking.items} == {CandidateStatus.NOT_RANKED}
    assert outcomes(server) == {"ANSWERED": 1, "FALLBACK": 1, "FULL": 1}


def test_a_request_without_enough_time_is_refused_at_once(server: Server, client: Client) -> None:
    slow_down(server, 0.5, size=5)
    begin = time.monotonic()
    with pytest.raises(OverloadError, match="within its deadline"):
        client.rerank([], KNOWN[:5], timeout=0.4)
    assert client.rerank([], KNOWN[:5], timeout=0.4, fallback=True).fallback
    assert time.monotonic() - begin < 0.3
    assert len(client.rerank([], KNOWN[:5], timeout=LIMIT).items) == 5
    assert outcomes(server) == {"ANSWERED": 1, "FALLBACK": 1, "LATE": 1}


@pytest.mark.parametrize("native", [True, False], ids=["core", "python"])
def test_a_slow_bundle_says_nothing_of_another(make_bundle: MakeBundle, tmp_path: Path, *, native: bool) -> None:
    for name in ("fast", "slow"):
        shutil.copytree(make_bundle(), tmp_path / name / "1")
    server = Server(tmp_path, port=0, threads=1, queue=1, default="slow", native=native)
    server.start()
    with Client(server.address) as client:
        client.wait_ready()
        slow_down(server, 1.0, size=5)
        with pytest.raises(OverloadError, match="within its deadline"):
            client.rerank([], KNOWN[:5], timeout=0.9)
        assert len(client.rerank([], KNOWN[:5], timeout=0.9, bundle="fast").items) == 5
    server.stop(5)


def test_an_urgent_request_takes_the_place_of_another(
    server: Server, client: Client, worker: Callable[[], None]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        low = pool.submit(client.rerank, [], KNOWN[:3], timeout=LIMIT, urgent=False)
        await_waiting(server, 1)
        high = pool.submit(client.rerank, [], KNOWN[:4], timeout=LIMIT)
        assert isinstance(low.exception(LIMIT), OverloadError)
        with pytest.raises(OverloadError):
            client.rerank([], KNOWN[:3], timeout=LIMIT, urgent=False)
        worker()
        assert len(high.result().items) == 4


def test_expired_and_cancelled_requests_are_never_ranked(
    server: Server, client: Client, worker: Callable[[], None]
) -> None:
    with pytest.raises(Gr2Error, match=r"no answer within 0\.1 s"):
        client.rerank([], KNOWN[:3], timeout=0.1)
    call = client._rerank.future(pb.RerankRequest(candidates=pb.ItemIds(ints=KNOWN[:3])), timeout=LIMIT)
    await_waiting(server, 1)
    call.cancel()
    await_waiting(server, 0)
    worker()
    assert len(client.rerank([], KNOWN[:3], timeout=LIMIT).items) == 3
    found = outcomes(server)
    assert found["ANSWERED"] == 1
    assert sum(found.values()) == 3
    assert set(found) <= {"ANSWERED", "EXPIRED", "CANCELLED"}


def test_the_wait_is_in_the_reply(server: Server, client: Client, worker: Callable[[], None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.rerank, [], KNOWN[:3], timeout=LIMIT)
        await_waiting(server, 1)
        time.sleep(0.05)
        worker()
        timings = waiting.result().timings
    assert 50e6 <= timings.queue_ns <= timings.total_ns


@given(st.lists(st.integers(0, 2**62), min_size=len(COUNTED), max_size=len(COUNTED)))
def test_durations_are_counted_in_the_buckets_of_the_metrics(timings: list[int]) -> None:
    core = Admission(1, 0)
    core.count(Outcome.ANSWERED, timings)
    for name, histogram in read_phases(core).items():
        duration = timings[COUNTED.index(name)]
        assert histogram.sum_ns == duration
        assert [place for place, count in enumerate(histogram.counts) if count] == [bucket(duration)]


def test_unknown_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="no outcome 99"):
        Admission(1, 0).count(99)


def test_a_call_works_once_and_leaves_once() -> None:
    core, call = Admission(1, 0), Call()
    with pytest.raises(ValueError, match="not at work"):
        core.leave(call, done=True)
    assert core.enter(call) is None
    with pytest.raises(ValueError, match="has asked already"):
        core.enter(call)
    core.leave(call, done=True)
    with pytest.raises(ValueError, match="not at work"):
        core.leave(call, done=True)


def test_an_admission_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Admission(0, 1)
