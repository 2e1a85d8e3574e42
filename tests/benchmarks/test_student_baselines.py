"""What the student is compared with: the same lists for everyone, and trees that see every column of the student's."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.features import SCORE_FEATURES
from gr2.models.memory import MEMORY

COLUMNS = (*SCORE_FEATURES, *MEMORY)
WIDTH = 5


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/, which is not installed."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
        return importlib.import_module(name)

    return load


def dataset() -> Dataset:
    ids: list[int | str] = list(range(8))
    none: list[Any] = [None] * 8
    catalog = Catalog(ids, none, none, [[] for _ in ids], none, none)
    items = np.array([0, 1, 2, 3, 4, 5, 6, 7], dtype=np.int32)
    return Dataset(catalog, ["u", "v"], np.array([0, 4, 8]), items, np.full(8, np.nan), np.zeros(2, np.bool_))


def test_what_a_user_has_had_goes_behind_everything_else(module: Any) -> None:
    lists = CandidateLists(
        np.array([0, 1], dtype=np.int32),
        np.array([3, 3], dtype=np.int32),
        np.array([3, 7], dtype=np.int32),
        np.array([[2, 3, 0, 5, -1], [0, 6, 7, 1, 4]], dtype=np.int32),
        np.array([[9, 8, 7, 6, -np.inf], [5, 4, 3, 2, 1]], dtype=np.float32),
    )
    found = module("benchmarks.student.lists")._seen_last(dataset(), lists)
    assert found.candidates.tolist() == [[3, 5, 2, 0, -1], [0, 7, 1, 6, 4]]
    np.testing.assert_array_equal(found.scores, lists.scores)


def made(module: Any, telling: int) -> Any:
    """Lists of which one column alone tells the target, and the same for everyone who ranks them."""
    rng = np.random.default_rng(telling)
    parts, seen = {}, {}
    for part in ("train", "val", "test"):
        candidates = np.stack([rng.permutation(50)[:WIDTH] for _ in range(400)]).astype(np.int32)
        label = rng.integers(0, WIDTH, 400)
        parts[part] = CandidateLists(
            np.zeros(400, dtype=np.int32),
            np.zeros(400, dtype=np.int32),
            candidates[np.arange(400), label],
            candidates,
            np.tile(np.arange(WIDTH, 0, -1, dtype=np.float32), (400, 1)),
        )
        seen[part] = rng.normal(size=(400, WIDTH, len(COLUMNS))).astype(np.float32)
        seen[part][np.arange(400), label, telling] += 10
    lists = module("benchmarks.student.lists").Lists
    nothing: Any = None
    return lists(
        Path(), nothing, nothing, 0, parts["train"], parts["val"], {"test": parts["test"]}, seen, nothing
    )  # fmt: skip


@pytest.mark.parametrize("telling", [0, len(SCORE_FEATURES), len(COLUMNS) - 1])
def test_trees_see_every_column_of_the_student(module: Any, telling: int) -> None:
    pytest.importorskip("lightgbm")
    baselines = module("benchmarks.student.baselines")
    ranks = baselines.fitted_trees(made(module, telling), 0)["test"]
    assert (ranks == 1).mean() > 0.95


def test_simple_orders_are_those_of_their_columns(module: Any) -> None:
    baselines = module("benchmarks.student.baselines")
    for name, column in {"popularity": "popularity", "most recent co-purchase": "copurchase_last_weighted"}.items():
        lists = made(module, COLUMNS.index(column))
        found = baselines.simple_ranks(lists, "test")
        assert (found[name] == 1).mean() > 0.95
        np.testing.assert_array_equal(found["incoming"], lists.tests["test"].label() + 1)
