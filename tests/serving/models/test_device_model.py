"""The model for batches through IO binding, on the CPU device: the code that a GPU runs, but for copy and kernel."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.bundle import Bundle
from gr2.client import Client
from gr2.errors import BundleError, ConfigError, Gr2Error, RequestError
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine
from gr2.serving.models.batcher import BatchLimits
from gr2.serving.models.device_model import PHASES, DeviceModel, Run
from gr2.serving.models.query import Query, UnrankableError
from gr2.serving.server import Server

pytest.importorskip("torch")
ITEMS = 400


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("student") / "bundle"
    return Bundle.load(
        write_random_bundle(folder, items=ITEMS, levels=3, level_size=16, dim=16, layers=2, max_history=10, width=2)
    )


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose weights are large enough for features to overflow."""
    folder = tmp_path_factory.mktemp("student") / "bundle"
    return Bundle.load(
        write_random_bundle(folder, items=ITEMS, levels=3, level_size=16, dim=16, max_history=10, width=2, spread=5.0)
    )


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Engine:
    return Engine(bundle)


@pytest.fixture(scope="module")
def batching(bundle: Bundle) -> Iterator[Engine]:
    """An engine whose model is the one for batches."""
    engine = Engine(bundle)
    engine._model = DeviceModel(bundle, "cpu", limits=BatchLimits(16, 500.0, 256))
    yield engine
    engine.close()


def make_request(seed: int) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    # IDs from ITEMS on are unknown.
    candidates = rng.choice(ITEMS + 20, size=count, replace=False).tolist()
    return {
        "history": rng.choice(ITEMS + 20, size=int(rng.integers(0, 15))).tolist(),
        "candidates": candidates,
        "scores": rng.normal(size=count).tolist(),
        "features": rng.normal(size=(count, 2)).tolist(),
    }


def test_thousand_requests_rank_as_one_by_one(plain: Engine, batching: Engine) -> None:
    requests = [make_request(seed) for seed in range(1000)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda request: batching.rerank(**request), requests))
    for request, ranking in zip(requests, found, strict=True):
        expected = plain.rerank(**request)
        ours = {item.index: item.score for item in ranking.items}
        theirs = {item.index: item.score for item in expected.items}
        assert ours == pytest.approx(theirs, abs=3e-5)
        assert ranking.unknown_history == expected.unknown_history
        for ours_item, theirs_item in zip(ranking.items, expected.items, strict=True):
            assert ours_item.status == theirs_item.status
            # Two candidates may only change places if their scores are equal but for rounding.
            assert ours_item.index == theirs_item.index or ours[ours_item.index] == pytest.approx(
                ours[theirs_item.index], abs=6e-5
            )


class Recorded(DeviceModel):
    """Remembers the sizes of its batches."""

    def run(self, queries: list[Query]) -> Run:
        self.sizes = [*getattr(self, "sizes", []), len(queries)]
        return super().run(queries)


def test_requests_of_many_threads_share_batches(bundle: Bundle) -> None:
    engine = Engine(bundle)
    engine._model = model = Recorded(bundle, "cpu", limits=BatchLimits(8, 1e6, 64))
    barrier = threading.Barrier(8)

    def ask(seed: int) -> int:
        barrier.wait()
        return len(engine.rerank(**make_request(seed)).items)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [len(make_request(seed)["candidates"]) for seed in range(8)]
    engine.close()
    assert model.sizes == [8]


def test_overflow_of_one_request_leaves_the_batch_alone(overflowing: Bundle) -> None:
    plain, engine = Engine(overflowing), Engine(overflowing)
    engine._model = model = Recorded(overflowing, "cpu", limits=BatchLimits(4, 1e6, 64))
    requests = [make_request(seed) for seed in range(4)]
    requests[2]["features"] = np.full((len(requests[2]["candidates"]), 2), 3e38).tolist()

    def ask(request: dict[str, list]) -> object:
        try:
            return [item.index for item in engine.rerank(**request).items]
        except RequestError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, requests))
    engine.close()
    # Nothing was run again.
    assert model.sizes == [4]
    assert answers[2] == "features: too large: the model's score is not finite"
    for place in (0, 1, 3):
        assert answers[place] == [item.index for item in plain.rerank(**requests[place]).items]


def test_batches_are_answered_over_the_wire(bundle: Bundle, plain: Engine) -> None:
    server = Server(bundle, port=0, threads=32)
    engine = server.engine
    engine._model = DeviceModel(bundle, "cpu", limits=BatchLimits(16, 500.0, 256))
    server.start()
    requests = [make_request(seed) for seed in range(200)]
    with Client(server.address) as client, ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda request: client.rerank(**request), requests))
    server.stop(5)
    for request, ranking in zip(requests, found, strict=True):
        ours = {item.index: item.score for item in ranking.items}
        expected = {item.index: item.score for item in plain.rerank(**request).items}
        assert ours == pytest.approx(expected, abs=3e-5)
    with pytest.raises(Gr2Error, match="closed"):
        engine.rerank([1], [2])


def test_unwanted_request_is_dropped(bundle: Bundle) -> None:
    engine = Engine(bundle)
    engine._model = DeviceModel(bundle, "cpu", limits=BatchLimits(4, 0.0, 64))
    slate = engine.rules.check(([1], []), ([2, 3], []))
    assert len(engine.rank(slate, 0, lambda: True).order) == 2
    with pytest.raises(CancelledError):
        engine.rank(slate, 0, lambda: False)
    engine.close()
    with pytest.raises(Gr2Error, match="closed"):
        engine.rank(slate, 0)


def test_batch_larger_than_memory_allows_is_split(bundle: Bundle) -> None:
    engine = Engine(bundle)
    queries = [engine._example(3, count) for count in (8, 1, 30, 8)]
    model = DeviceModel(bundle, "cpu", limits=BatchLimits())
    whole = model.run(queries)
    model.most_bytes = 1
    parts = model.run(queries)
    for (order, scores), (other, others), query in zip(whole.answers, parts.answers, queries, strict=True):
        assert order.tolist() == other.tolist()
        np.testing.assert_allclose(scores, others, atol=2e-5)
        assert len(order) == len(query.codes)
    assert len(whole.phases) == len(PHASES)
    assert min(whole.phases) >= 0
    assert sum(whole.phases) > 0
    model.close()


def test_value_that_is_not_finite_is_named_with_its_source(overflowing: Bundle) -> None:
    model = DeviceModel(overflowing, "cpu", limits=BatchLimits())
    query = Engine(overflowing)._example(3, 8)
    query.features[:] = 3e38
    with pytest.raises(UnrankableError) as caught:
        model.score(query)
    assert caught.value.in_prior
    model.close()


def test_closed_model_lets_its_session_go(bundle: Bundle) -> None:
    model = DeviceModel(bundle, "cpu", limits=BatchLimits())
    session = weakref.ref(model._session)
    assert len(model.score(Engine(bundle)._example(3, 8)).order) == 8
    model.close()
    assert session() is None


class OnCpu(DeviceModel):
    """The model for batches on the CPU device, wherever it is asked to be; notes what `run` gets."""

    def __init__(self, bundle: Bundle, _: str, **rest: Any) -> None:
        super().__init__(bundle, "cpu", **rest)
        self.ran: list[list[Query]] = []

    def run(self, queries: list[Query]) -> Run:
        self.ran.append(queries)
        if len(queries) == 13:
            raise MemoryError("13 are too many")
        return super().run(queries)


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that are asked for "cuda" take the model for batches, on the CPU device."""
    monkeypatch.setattr("gr2.serving.engine.choose_device", lambda wanted, _: wanted)
    monkeypatch.setattr("gr2.serving.engine.DeviceModel", OnCpu)


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "gr2-batches"]


@pytest.mark.usefixtures("as_gpu")
def test_first_request_meets_no_size_that_was_not_run(bundle: Bundle) -> None:
    engine = Engine(bundle, device="cuda", batches=BatchLimits(16, 500.0, 256))
    assert isinstance(engine._model, OnCpu)
    sizes = [(len(queries), len(queries[0].codes)) for queries in engine._model.ran]
    assert sizes == [(1, count) for count in (1, 8, 32, 64, 128, 256, 512, 1024)] + [(16, 100)]
    engine.close()


@pytest.mark.usefixtures("as_gpu")
def test_no_client_is_answered_before_every_size_was_run(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    warming, may_end = threading.Event(), threading.Event()

    def run(model: OnCpu, queries: list[Query]) -> Run:
        if len(queries) == 16:
            warming.set()
            assert may_end.wait(30)
        return original(model, queries)

    original = OnCpu.run
    monkeypatch.setattr(OnCpu, "run", run)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with ThreadPoolExecutor(1) as pool, Client(f"127.0.0.1:{port}") as client:
        starting = pool.submit(Server, bundle, port=port, device="cuda", batch=16)
        assert warming.wait(30)
        with pytest.raises(Gr2Error):
            client.wait_ready(timeout=0.3)
        may_end.set()
        server = starting.result()
        server.start()
        client.wait_ready(timeout=30)
        model = server.engine._model
        assert isinstance(model, OnCpu)
        warmed = len(model.ran)
        client.rerank([1], [2, 3], scores=[1.0, 0.0])
        # The first request is one run, of a size that was run before.
        assert [len(queries) for queries in model.ran[warmed:]] == [1]
        server.stop(5)


@pytest.mark.usefixtures("as_gpu")
def test_batch_that_the_gpu_cannot_run_is_found_out_before_it_serves(bundle: Bundle) -> None:
    before = batch_threads()
    with pytest.raises(ConfigError, match="device cuda: a batch of 13 requests failed: 13 are too many"):
        Engine(bundle, device="cuda", batches=BatchLimits(13, 500.0, 256))
    assert batch_threads() == before


@pytest.mark.usefixtures("as_gpu")
def test_engine_that_does_not_start_leaves_no_thread(tmp_path: Path) -> None:
    broken = write_random_bundle(tmp_path / "bundle", items=50, level_size=16, dim=8, max_history=10, spread=1e30)
    before = batch_threads()
    with pytest.raises(BundleError, match="warm-up with 0 history items and 1 candidates failed"):
        Engine(broken, device="cuda")
    assert batch_threads() == before


@pytest.mark.usefixtures("as_gpu")
def test_server_that_does_not_start_leaves_no_thread(bundle: Bundle) -> None:
    before = batch_threads()
    with pytest.raises(ConfigError, match="threads must be in"):
        Server(bundle, port=0, threads=0, device="cuda")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Gr2Error, match="cannot listen on"):
            Server(bundle, port=taken.getsockname()[1], device="cuda")
    assert batch_threads() == before


def test_bundle_without_the_graph_is_refused(tmp_path: Path) -> None:
    folder = write_random_bundle(tmp_path / "bundle", items=50, level_size=16, dim=8, batched=False)
    with pytest.raises(BundleError, match=r"holds no batch\.onnx"):
        DeviceModel(Bundle.load(folder), "cpu", limits=BatchLimits())
