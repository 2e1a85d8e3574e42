"""Encoder and scorer: the answers of the whole graph, with a history that is encoded once and never mistaken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from gr2.bundle import Bundle, write_bundle
from gr2.errors import BundleError
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.split_model import SplitModel

SIZES = {"items": 300, "levels": 4, "level_size": 16, "dim": 16, "layers": 2, "max_history": 8, "width": 1}


@pytest.fixture(scope="module", params=["item", "code"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("split") / "bundle"
    return Bundle.load(write_random_bundle(folder, batched=False, encoding=request.param, **SIZES))  # type: ignore[arg-type]


def whole(bundle: Bundle) -> Engine:
    """An engine that serves the whole graph."""
    engine = Engine(bundle)
    engine._model = HostModel(bundle)
    return engine


def scores(engine: Engine, history: list[int], candidates: list[int]) -> list[float]:
    return [item.score for item in sorted(engine.rerank(history, candidates).items, key=lambda item: item.index)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("events", "count"), [(0, 1), (1, 1), (3, 20), (8, 300), (40, 7)])
def test_answers_are_those_of_the_whole_graph(bundle: Bundle, events: int, count: int, native: bool) -> None:
    drawn = np.random.default_rng(events).permutation(300).tolist()
    history, candidates = drawn[:events], drawn[-count:]
    expected, engine = scores(whole(bundle), history, candidates), Engine(bundle)
    if not native:
        engine._model = SplitModel(bundle, cache_bytes=1 << 20)
    for _ in range(2):
        np.testing.assert_allclose(scores(engine, history, candidates), expected, atol=2e-5)


def test_a_history_is_encoded_once_for_all_its_slates(bundle: Bundle) -> None:
    engine = Engine(bundle)
    assert engine.cache is not None
    before = engine.cache.counts()
    for first in range(10, 60, 10):
        engine.rerank([1, 2, 3], list(range(first, first + 10)))
    counts = engine.cache.counts()
    assert counts["misses"] - before["misses"] == 1
    assert counts["hits"] - before["hits"] == 4


def test_the_key_is_what_the_model_sees_of_the_history(bundle: Bundle) -> None:
    engine = Engine(bundle)
    assert engine.cache is not None
    engine.rerank(list(range(20)), [100, 101])
    hits = engine.cache.counts()["hits"]
    engine.rerank([*range(50, 60), 10**6, *range(12, 20)], [100, 101])
    assert engine.cache.counts()["hits"] == hits + 1
    for other in ([*range(12, 19)], [*range(12, 18), 19, 18], [*range(11, 19)]):
        engine.rerank(other, [100, 101])
    assert engine.cache.counts()["hits"] == hits + 1


def test_without_room_nothing_is_kept_and_nothing_changes(bundle: Bundle) -> None:
    full, empty = Engine(bundle), Engine(bundle, cache_bytes=0)
    assert empty.cache is not None
    for _ in range(2):
        assert scores(empty, [1, 2], [5, 6, 7]) == scores(full, [1, 2], [5, 6, 7])
    assert empty.cache.counts()["entries"] == 0
    assert empty.cache.counts()["hits"] == 0


def test_each_bundle_has_its_own_histories(bundle: Bundle, tmp_path: Path) -> None:
    other = Bundle.load(write_random_bundle(tmp_path / "other", batched=False, seed=5, **SIZES))  # type: ignore[arg-type]
    first, second = Engine(bundle), Engine(other)
    scores(first, [1, 2], [5, 6, 7])
    np.testing.assert_allclose(scores(second, [1, 2], [5, 6, 7]), scores(whole(other), [1, 2], [5, 6, 7]), atol=2e-5)


def test_threads_that_share_a_small_cache_get_the_right_answers(
    bundle: Bundle, in_threads: Callable[..., None]
) -> None:
    engine = Engine(bundle, cache_bytes=8_000)
    assert engine.cache is not None
    histories = [[user, user + 1, user + 2] for user in range(12)]
    expected = [scores(engine, history, [200, 201, 202]) for history in histories]
    wrong: list[int] = []

    def ask(seed: int) -> None:
        asked = np.random.default_rng(seed).integers(0, 12, 60).tolist()
        wrong.extend(user for user in asked if scores(engine, histories[user], [200, 201, 202]) != expected[user])

    in_threads(4, ask)
    counts = engine.cache.counts()
    assert not wrong
    assert counts["evicted"] > 0
    assert counts["bytes"] <= 8_000
    assert counts["hits"] > 0


def test_closing_forgets_the_histories(bundle: Bundle) -> None:
    engine = Engine(bundle)
    assert engine.cache is not None
    engine.rerank([1], [2, 3])
    engine.close()
    assert engine.cache.counts()["entries"] == 0


def test_a_damaged_memory_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (folder / "memory.bin").write_bytes(b"not a memory" * 100)
    changed = write_bundle(
        tmp_path / "changed",
        graph=bundle.graph,
        others={name: folder / name for name in ("encoder.onnx", "scorer.onnx", "memory.bin")},
        codebook=bundle.path / "codebook.bin",
        catalog=bundle.catalog(),
        model=bundle.manifest.model,
        features=bundle.manifest.features,
    )
    with pytest.raises(BundleError, match=r"memory\.bin: .*not a memory file"):
        Engine(changed)


def rename_input(model: onnx.ModelProto, old: str, new: str) -> None:
    for value in model.graph.input:
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new if name == old else name


@pytest.mark.parametrize(("role", "old", "new"), [("encoder", "history", "events"), ("scorer", "features", "traits")])
def test_a_graph_with_another_contract_is_refused(
    bundle: Bundle, tmp_path: Path, role: str, old: str, new: str
) -> None:
    others = {"memory.bin": bundle.path / "memory.bin"}
    for name in ("encoder", "scorer"):
        model = onnx.load(str(bundle.path / f"{name}.onnx"))
        if name == role:
            rename_input(model, old, new)
        others[f"{name}.onnx"] = tmp_path / f"{name}.onnx"
        onnx.save(model, others[f"{name}.onnx"])
    manifest = bundle.manifest
    changed = write_bundle(
        tmp_path / "bundle",
        graph=bundle.graph,
        others=others,
        codebook=bundle.path / "codebook.bin",
        catalog=bundle.catalog(),
        model=manifest.model,
        features=manifest.features,
    )
    with pytest.raises(BundleError, match=rf"\.onnx: .*{new}"):
        Engine(changed)
