"""A whole request, in process and over gRPC: the default student with random weights and 50 history items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from gr2.bundle import FeatureSpec, ModelSpec, write_bundle
from gr2.catalog import Catalog
from gr2.client import Client
from gr2.decoding import CandidateTrie, write_codebook
from gr2.features import candidate_features
from gr2.serving.engine import Engine
from gr2.serving.ranking import Ranking
from gr2.serving.server import Server

ITEMS = 20_000
SIZES = pytest.mark.parametrize("count", [10, 100])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 20,000 items, 4 levels of 256 codes."""
    torch = pytest.importorskip("torch")
    from gr2.export.onnx import OPSET, export_graph
    from gr2.models.student import Student, StudentConfig

    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    config = StudentConfig()
    export_graph(Student(config).eval(), folder / "graph.onnx")
    ids = 1000 + 7 * np.arange(ITEMS, dtype=np.int64)
    shape = (ITEMS, config.levels)
    codes = np.random.default_rng(0).integers(0, config.level_size, shape).astype(np.uint16)
    write_codebook(folder / "codes.bin", ids, codes, config.level_size)
    blank: list[Any] = [None] * ITEMS
    written = write_bundle(
        folder / "bundle",
        graph=folder / "graph.onnx",
        codebook=folder / "codes.bin",
        catalog=Catalog(ids.tolist(), blank, blank, [[] for _ in blank], blank, blank),
        model=ModelSpec(config.levels, config.level_size, config.max_history, config.dim, config.layers, OPSET),
        features=FeatureSpec(),
    )
    return written.path


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


def request(count: int) -> dict[str, Any]:
    """A request with scores; every item is known."""
    rng = np.random.default_rng(count)
    ids = 1000 + 7 * rng.choice(ITEMS, size=50 + count, replace=False)
    return {"history": ids[:50].tolist(), "candidates": ids[50:].tolist(), "scores": np.linspace(1, 0, count).tolist()}


def assert_answer(ranking: Ranking, engine: Engine, count: int) -> None:
    """The order is complete, best first, and that of the scores of each candidate alone."""
    arguments = request(count)
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
    arguments = request(count)
    assert_answer(engine.rerank(**arguments), engine, count)
    benchmark.group = f"request, {count} candidates"
    benchmark(engine.rerank, **arguments)


@SIZES
def test_over_grpc(benchmark: Any, engine: Engine, client: Client, count: int) -> None:
    arguments = {**request(count), "timeout": 60}
    ranking = client.rerank(**arguments)
    assert ranking.items == engine.rerank(**request(count)).items
    benchmark.group = f"request, {count} candidates"
    benchmark(client.rerank, **arguments)


@SIZES
def test_model_alone(benchmark: Any, engine: Engine, count: int) -> None:
    arguments, codebook = request(count), engine.bundle.codebook()
    history, _ = codebook.lookup(np.array(arguments["history"], dtype=np.int64))
    trie = CandidateTrie(*codebook.lookup(np.array(arguments["candidates"], dtype=np.int64)), codebook.level_size)
    feed = {
        "history": history.astype(np.int64),
        **{f"nodes_{depth}": trie.nodes(depth) for depth in range(1, codebook.levels)},
        "mask": trie.mask(),
        "features": candidate_features(count, scores=np.float32(arguments["scores"]), dense=None),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(engine.bundle.graph), options, providers=["CPUExecutionProvider"])
    order, _ = trie.score(*session.run(["logits", "prior"], feed))
    assert order.tolist() == [item.index for item in engine.rerank(**arguments).items]
    benchmark.group = f"request, {count} candidates"
    benchmark(session.run, ["logits", "prior"], feed)
