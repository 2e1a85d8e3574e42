"""Lists of another ranker in the stage `prerank`, and their dense features on the whole way to the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact
from gr2.bundle import Bundle
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.imported_lists import SPLITS
from gr2.errors import DataError, RequestError
from gr2.manifest import CARD
from gr2.pipeline import execute, load_plan
from gr2.serving.engine import Engine
from gr2.training import prerank
from gr2.training.prerank import PrerankConfig

CONFIG = PrerankConfig(
    dim=8, layers=1, heads=1, max_history=6, batch=32, epochs=1, patience=1, folds=2, list_size=5, threads=1
)
SLATE = 10


@pytest.fixture(scope="module")
def prepared(tiny_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    out = tmp_path_factory.mktemp("prepared")
    execute(load_plan(tiny_shop, overrides=[f"run.out={out}"], only=["prepare"]))
    return {"prepare": Artifact.load(out / "prepare")}


@pytest.fixture(scope="module")
def dataset(prepared: dict[str, Artifact]) -> Dataset:
    return Dataset.load(prepared["prepare"].path)


def write_lists(dataset: Dataset, split: str, folder: Path, *, features: int = 0, targets: bool = True) -> Path:
    """Random slates with the target anywhere; the last feature is 1 for it and 0 for the others."""
    rng = np.random.default_rng(SPLITS.index(split))  # type: ignore[arg-type]
    ids = dataset.catalog.ids
    rows: list[dict[str, Any]] = []
    for user, length in enumerate(dataset.lengths.tolist()):
        positions = {"train": range(length - 2), "val": [length - 2], "test": [length - 1]}[split]
        for position in positions:
            target = int(dataset.events(user)[position])
            others = [item for item in rng.permutation(len(ids)).tolist() if item != target]
            slate = rng.permutation([target, *others[: SLATE - 1]] if targets else others[:SLATE])
            row = {"user_id": dataset.user_ids[user], "candidates": [ids[item] for item in slate]}
            if split == "train":
                row["position"] = position
            if features:
                noise = rng.normal(size=(SLATE, features))
                noise[:, -1] = slate == target
                row["features"] = noise.tolist()
            rows.append(row)
    path = folder / f"{split}_lists.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def lists_of(artifact: Artifact) -> dict[str, CandidateLists]:
    return {split: CandidateLists.load(artifact.file(f"{split}.parquet")) for split in SPLITS}


def test_imported_test_lists_take_the_place_of_ours(
    prepared: dict[str, Artifact], dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "lists.parquet"
    ids, users = dataset.catalog.ids, dataset.user_ids
    columns = {"ranker": ["x", "x"], "user_id": [users[4], users[2]], "candidates": [ids[:8], [ids[3]]]}
    pq.write_table(pa.table(columns), path)
    config = replace(CONFIG, test_lists=str(path), test_ranker="x")
    assert prerank.sources(config) == {"file:test_lists": path}
    artifact = prerank.run(config, prepared, tmp_path / "prerank", 7)
    lists = lists_of(artifact)
    assert lists["test"].user.tolist() == [2, 4]
    assert lists["test"].candidates.tolist() == [[3, -1, -1, -1, -1], [0, 1, 2, 3, 4]]
    assert len(lists["val"]) == dataset.users
    assert artifact.metrics["lists"]["test"]["lists"] == 2
    assert artifact.metrics["imported"] == ["test"]
    assert artifact.metrics["models"] == 1 + CONFIG.folds
    assert "file:test_lists" in artifact.parents


def test_no_folds_are_trained_for_imported_training_lists(
    prepared: dict[str, Artifact], dataset: Dataset, tmp_path: Path
) -> None:
    path = write_lists(dataset, "train", tmp_path, targets=False)
    artifact = prerank.run(replace(CONFIG, train_lists=str(path)), prepared, tmp_path / "prerank", 7)
    metrics = artifact.metrics
    assert (metrics["models"], metrics["imported"]) == (1, ["train"])
    assert "folds" not in metrics
    # Lists without their target are kept, and counted.
    assert metrics["lists"]["train"]["lists"] == metrics["lists"]["train"]["without_target"] == sum(dataset.lengths - 2)
    assert len(lists_of(artifact)["test"]) == dataset.users


def test_nothing_is_trained_if_all_lists_are_imported(
    prepared: dict[str, Artifact], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(prerank, "fit", refuse)
    files = {f"{split}_lists": str(write_lists(dataset, split, tmp_path)) for split in SPLITS}
    config = replace(CONFIG, list_size=SLATE, **files)  # type: ignore[arg-type]
    artifact = prerank.run(config, prepared, tmp_path / "prerank", 7)
    assert artifact.metrics["models"] == 0
    assert artifact.metrics["imported"] == list(SPLITS)
    assert not (artifact.path / "preranker.safetensors").exists()
    assert set(artifact.parents) == {"prepare", *(f"file:{name}" for name in files)}
    for lists in lists_of(artifact).values():
        assert lists.feature_width == 0
        assert (lists.label() >= 0).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"test": 2}, r"train none \(gr2's own lists\), val none \(gr2's own lists\), test_lists 2"),
        ({"train": 2, "val": 0, "test": 2}, "got train_lists 2, val_lists none, test_lists 2"),
        ({"train": 2, "val": 2, "test": 3}, "got train_lists 2, val_lists 2, test_lists 3"),
    ],
)
def test_features_that_a_split_lacks_are_refused(
    prepared: dict[str, Artifact], dataset: Dataset, tmp_path: Path, widths: dict[str, int], message: str
) -> None:
    files = {
        f"{split}_lists": str(write_lists(dataset, split, tmp_path, features=width)) for split, width in widths.items()
    }
    with pytest.raises(DataError, match=message):
        prerank.run(replace(CONFIG, **files), prepared, tmp_path / "prerank", 7)  # type: ignore[arg-type]


def test_features_of_imported_lists_are_learned_and_served(tiny_shop: Path, dataset: Dataset, tmp_path: Path) -> None:
    """From the three files to the engine: the student finds the target by a feature, and by nothing else."""
    overrides = [f"run.out={tmp_path / 'run'}", f"evaluate.slate={SLATE}"]
    files = {split: write_lists(dataset, split, tmp_path, features=3) for split in SPLITS}
    overrides += [f"prerank.{split}_lists={path}" for split, path in files.items()]
    outcomes = {outcome.stage: outcome for outcome in execute(load_plan(tiny_shop, overrides=overrides))}
    assert outcomes["prerank"].artifact is not None
    assert outcomes["prerank"].artifact.metrics["models"] == 0
    assert outcomes["evaluate"].artifact is not None
    figures = outcomes["evaluate"].artifact.metrics["all"]
    assert figures["incoming"]["R@1"] < 0.3
    assert figures["student"]["R@1"] > 0.95

    bundle = Bundle.load(tmp_path / "run" / "export")
    assert "| lists come from | another ranker (train, val, test) |" in (bundle.path / CARD).read_text()
    assert bundle.manifest.features.width == 3
    assert bundle.manifest.features.names == ("feature_0", "feature_1", "feature_2")
    engine = Engine(bundle)
    slate = dataset.catalog.ids[:4]
    features = np.zeros((4, 3))
    for chosen in range(4):
        told = features.copy()
        told[chosen, 2] = 1.0
        assert engine.rerank([], slate, features=told).items[0].index == chosen
    with pytest.raises(RequestError, match=r"feature width is 3: expected 12 values \(3 a candidate\)"):
        engine.rerank([], slate, features=np.zeros((4, 2)))
