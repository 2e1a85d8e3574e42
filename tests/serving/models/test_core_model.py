"""The weights served: the answers of the graphs, in Python and in C++ the same to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gr2.bundle import Bundle, write_bundle
from gr2.errors import BundleError
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine
from gr2.serving.models.core_model import CoreModel
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.native_model import NativeModel

SIZES = {"items": 300, "levels": 4, "level_size": 16, "dim": 16, "layers": 2, "max_history": 8, "width": 1}


@pytest.fixture(scope="module", params=[("fp32", "item"), ("int8", "item"), ("fp32", "code"), ("int8", "code")])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    arithmetic, encoding = request.param
    made = {"arithmetic": arithmetic, "encoding": encoding, "batched": False}
    return Bundle.load(write_random_bundle(tmp_path_factory.mktemp("core") / "bundle", **made, **SIZES))  # type: ignore[arg-type]


def scores(engine: Engine, history: list[int], candidates: list[int]) -> list[float]:
    return [item.score for item in sorted(engine.rerank(history, candidates).items, key=lambda item: item.index)]


@pytest.mark.parametrize(("events", "count"), [(0, 1), (1, 1), (3, 20), (8, 290), (40, 7)])
def test_python_and_the_core_give_the_same_bits(bundle: Bundle, events: int, count: int) -> None:
    drawn = np.random.default_rng(events).permutation(300).tolist()
    history, candidates = drawn[:events], [*drawn[-count:], 10**6]
    native, python, whole = Engine(bundle, native=True), Engine(bundle), Engine(bundle)
    whole._model = HostModel(bundle)
    assert isinstance(native._model, NativeModel)
    assert isinstance(python._model, CoreModel)
    for _ in range(2):
        found = scores(native, history, candidates)
        assert found == scores(python, history, candidates)
        far = 2e-5 if bundle.manifest.graphs.default == "fp32" else 0.1
        np.testing.assert_allclose(found, scores(whole, history, candidates), atol=far)


def test_a_history_is_encoded_once_for_all_its_slates(bundle: Bundle) -> None:
    for native in (True, False):
        engine = Engine(bundle, native=native)
        assert engine.cache is not None
        before = engine.cache.counts()
        for first in range(10, 60, 10):
            engine.rerank([1, 2, 3], list(range(first, first + 10)))
        counts = engine.cache.counts()
        assert (counts["misses"] - before["misses"], counts["hits"] - before["hits"]) == (1, 4)
        engine.close()
        assert engine.cache.counts()["entries"] == 0


@pytest.mark.parametrize("other", [{"levels": 3}, {"max_history": 7}, {"width": 2}])
def test_weights_of_another_model_are_refused(bundle: Bundle, tmp_path: Path, other: dict[str, int]) -> None:
    foreign = write_random_bundle(tmp_path / "other", batched=False, **{**SIZES, **other})  # type: ignore[arg-type]
    changed = with_weights(bundle, foreign / "weights.bin", tmp_path)
    with pytest.raises(BundleError, match=r"weights\.bin: not the model's weights"):
        Engine(changed)


def test_damaged_weights_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"no weights" * 100)
    with pytest.raises(BundleError, match=r"weights\.bin: .*not a weights file"):
        Engine(with_weights(bundle, tmp_path / "weights.bin", tmp_path))


def with_weights(bundle: Bundle, weights: Path, folder: Path) -> Bundle:
    """The bundle with other weights, and hashes that say so."""
    files = Path(shutil.copytree(bundle.path, folder / "files"))
    shutil.copyfile(weights, files / "weights.bin")
    names = [name for name in (*bundle.manifest.graphs.files, "memory.bin") if name != "model.onnx"]
    return write_bundle(
        folder / "changed",
        graph=files / "model.onnx",
        others={name: files / name for name in names},
        graphs=bundle.manifest.graphs,
        codebook=files / "codebook.bin",
        catalog=bundle.catalog(),
        model=bundle.manifest.model,
        features=bundle.manifest.features,
    )
