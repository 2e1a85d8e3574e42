from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.errors import DataError


@pytest.fixture
def dataset() -> Dataset:
    none = [None] * 4
    return Dataset(
        catalog=Catalog([7, 3, 9, 1], ["a", "b", "c", None], none, [["x"], [], [], []], none, none),
        user_ids=["ann", "bob"],
        offsets=np.array([0, 3, 7], np.int64),
        items=np.array([0, 1, 2, 3, 2, 1, 0], np.int32),
        timestamps=np.array([1, 2, 3, np.nan, np.nan, np.nan, np.nan]),
        tied=np.array([False, True]),
    )


def test_events_history_and_split(dataset: Dataset) -> None:
    assert dataset.users == 2
    assert dataset.lengths.tolist() == [3, 4]
    assert dataset.events(1).tolist() == [3, 2, 1, 0]
    assert dataset.history(1, 2).tolist() == [3, 2]
    assert dataset.train_length(1) == 2


@pytest.mark.parametrize("user_ids", [["ann", "bob"], [12, -4]])
def test_load_returns_what_save_wrote(dataset: Dataset, tmp_path: Path, user_ids: list[int | str]) -> None:
    saved = Dataset(dataset.catalog, user_ids, dataset.offsets, dataset.items, dataset.timestamps, dataset.tied)
    saved.save(tmp_path)
    loaded = Dataset.load(tmp_path)
    assert loaded.catalog == saved.catalog
    assert loaded.user_ids == user_ids
    for name in ("offsets", "items", "timestamps", "tied"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name), strict=True)


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("offsets", np.array([0, 3], np.int64), "3 entries expected, found 2"),
        ("offsets", np.array([0, 2, 7], np.int64), "runs of three or more"),
        ("items", np.array([0, 1, 2, 3, 2, 1, 4], np.int32), r"outside 0\.\.3"),
        ("items", np.zeros(7, np.int64), "expected int32"),
        ("tied", np.zeros(3, np.bool_), "2 entries expected, found 3"),
        ("timestamps", np.array([None]), "not an array written by gr2"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    dataset: Dataset, tmp_path: Path, name: str, array: np.ndarray, complaint: str
) -> None:
    dataset.save(tmp_path)
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=rf"{name}\.npy.*{complaint}"):
        Dataset.load(tmp_path)


def test_missing_and_truncated_files_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save(tmp_path)
    (tmp_path / "items.npy").write_bytes((tmp_path / "items.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"items\.npy"):
        Dataset.load(tmp_path)
    (tmp_path / "users.parquet").unlink()
    with pytest.raises(DataError, match=r"users\.parquet"):
        Dataset.load(tmp_path)
