from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.data.candidates import CandidateLists
from gr2.errors import DataError

INF = np.inf


def lists(features: bool = False) -> CandidateLists:
    return CandidateLists(
        np.array([0, 0, 1], dtype=np.int32),
        np.array([1, 2, 3], dtype=np.int32),
        np.array([4, 9, 6], dtype=np.int32),
        np.array([[4, 2, 7], [1, -1, -1], [5, 6, -1]], dtype=np.int32),
        np.array([[3, 2, 2], [0.5, -INF, -INF], [1, -1, -INF]], dtype=np.float32),
        np.arange(18, dtype=np.float32).reshape(3, 3, 2) if features else None,
    )


def assert_same(left: CandidateLists, right: CandidateLists) -> None:
    for name in ("user", "position", "target", "candidates", "scores"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), strict=True)


def test_label_is_the_targets_column() -> None:
    np.testing.assert_array_equal(lists().label(), [0, -1, 1])
    kept = lists().with_target()
    assert kept.user.tolist() == [0, 1]
    assert kept.target.tolist() == [4, 6]


def test_top_keeps_the_first_columns() -> None:
    top = lists(features=True).top(2)
    assert top.width == 2
    assert top.features is not None
    assert top.features.shape == (3, 2, 2)
    assert lists().top(99).width == 3


def test_saved_lists_come_back(tmp_path: Path) -> None:
    lists(features=True).save(tmp_path / "lists.parquet")
    loaded = CandidateLists.load(tmp_path / "lists.parquet")
    assert_same(loaded, lists())
    padded = lists().candidates == -1
    assert loaded.features is not None
    np.testing.assert_array_equal(loaded.features[~padded], lists(features=True).features[~padded])  # type: ignore[index]


def test_feature_width_is_zero_without_features() -> None:
    assert lists(features=True).feature_width == 2
    assert lists().feature_width == 0


def test_features_that_are_not_finite_are_refused() -> None:
    features = np.zeros((3, 3, 2), dtype=np.float32)
    features[1, 0, 1] = np.nan
    with pytest.raises(ValueError, match="list 1 holds a feature that is not finite"):
        replace(lists(), features=features)


def test_no_lists_can_be_saved(tmp_path: Path) -> None:
    lists().take(np.array([], dtype=np.int64)).save(tmp_path / "lists.parquet")
    assert len(CandidateLists.load(tmp_path / "lists.parquet")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": np.zeros((3, 3))}, r"candidates must be int32 \(3, 3\), got float64"),
        ({"user": np.zeros(2, dtype=np.int32)}, r"position must be int32 \(2,\)"),
        (
            {"candidates": np.array([[4, 4, 7], [1, -1, -1], [5, 6, -1]], dtype=np.int32)},
            "list 0 holds a candidate twice",
        ),
        (
            {"candidates": np.array([[4, 2, 7], [-1, 1, -1], [5, 6, -1]], dtype=np.int32)},
            "list 1 holds a candidate after",
        ),
        (
            {"scores": np.array([[3, 2, 2], [1, -INF, -INF], [1, 2, -INF]], dtype=np.float32)},
            "list 2 holds a score above",
        ),
        (
            {"scores": np.array([[3, 2, np.nan], [1, -INF, -INF], [1, 1, -INF]], dtype=np.float32)},
            "list 0 .* not finite",
        ),
        ({"scores": np.array([[3, 2, 2], [1, 0, -INF], [1, 1, -INF]], dtype=np.float32)}, "list 1 holds padding whose"),
    ],
)
def test_lists_that_break_the_contract_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(lists(), **change)


@pytest.mark.parametrize("content", [b"", b"not parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lists.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"lists\.parquet: not candidate lists"):
        CandidateLists.load(path)
