"""A whole request with 50 history items, in process and over gRPC, beside the model run alone.

The model is a small one unless $GR2_BUNDLE names the folder of an exported bundle: with it the figures are those of a
real model, without it they show what everything around the model costs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gr2.client import Client
from gr2.decoding import CandidateTrie, Codebook
from gr2.features import candidate_features
from gr2.serving.engine import Engine
from gr2.serving.ranking import Ranking
from gr2.serving.server import Server

SIZES = pytest.mark.parametrize("count", [10, 100])


@pytest.fixture(scope="module")
def bundle(make_bundle: Callable[..., Path]) -> Path:
    """The bundle in the folder $GR2_BUNDLE, or one with a small model for 20,000 items."""
    folder = os.environ.get("GR2_BUNDLE")
    return Path(folder) if folder else make_bundle(items=20_000, level_size=256, max_history=50)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    """The engine alone."""
    return Engine(bundle)


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    """A client of a server in this process."""
    server = Server(bundle, port=0)
    server.start()
    with Client(server.address) as client:
        client.wait_ready()
        yield client
    server.stop(5)


def request(engine: Engine, count: int) -> dict[str, Any]:
    """A request with scores; every item is known."""
    ids = engine.bundle.catalog().ids
    drawn = [ids[row] for row in np.random.default_rng(count).choice(len(ids), size=50 + count, replace=False)]
    return {"history": drawn[:50], "candidates": drawn[50:], "scores": np.linspace(1, 0, count).tolist()}


def assert_answer(ranking: Ranking, engine: Engine, arguments: dict[str, Any]) -> None:
    """The order is complete and best first, and scoring candidates together changes no score."""
    count = len(arguments["candidates"])
    scores = np.array([item.score for item in ranking.items])
    assert sorted(item.index for item in ranking.items) == list(range(count))
    assert (np.diff(scores) <= 0).all()
    bare = {**arguments, "scores": None}
    together = {item.item_id: item.score for item in engine.rerank(**bare).items}
    for item in arguments["candidates"][:5]:
        alone = engine.rerank(arguments["history"], [item]).items[0].score
        assert together[item] == pytest.approx(alone, abs=1e-4)


@SIZES
def test_in_process(benchmark: Any, engine: Engine, count: int) -> None:
    arguments = request(engine, count)
    assert_answer(engine.rerank(**arguments), engine, arguments)
    benchmark.group = f"request, {count} candidates"
    benchmark(engine.rerank, **arguments)


@SIZES
def test_over_grpc(benchmark: Any, engine: Engine, client: Client, count: int) -> None:
    arguments = request(engine, count)
    assert client.rerank(**arguments, timeout=60).items == engine.rerank(**arguments).items
    benchmark.group = f"request, {count} candidates"
    benchmark(client.rerank, **arguments, timeout=60)


@SIZES
def test_model_alone(benchmark: Any, engine: Engine, count: int) -> None:
    arguments, codebook = request(engine, count), engine.bundle.codebook()
    history, candidates = (_lookup(codebook, arguments[name]) for name in ("history", "candidates"))
    trie = CandidateTrie(candidates, np.ones(count, dtype=np.bool_), codebook.level_size)
    dense = np.zeros((count, engine.bundle.manifest.features.width), dtype=np.float32)
    feed = {
        "history": history[-engine.bundle.manifest.model.max_history :].astype(np.int64),
        **{f"nodes_{depth}": trie.nodes(depth) for depth in range(1, codebook.levels)},
        "mask": trie.mask(),
        "features": candidate_features(count, scores=np.float32(arguments["scores"]), dense=dense),
        "candidates": candidates.astype(np.int64),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(engine.bundle.graph), options, providers=["CPUExecutionProvider"])
    feed = {item.name: feed[item.name] for item in session.get_inputs()}
    order, _ = trie.score(*session.run(["logits", "prior"], feed))
    assert order.tolist() == [item.index for item in engine.rerank(**arguments).items]
    benchmark.group = f"request, {count} candidates"
    benchmark(session.run, ["logits", "prior"], feed)


def _lookup(codebook: Codebook, ids: list[Any]) -> Any:
    return codebook.lookup(ids if codebook.id_type == "string" else np.array(ids, dtype=np.int64))[0]
