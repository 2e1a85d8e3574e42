from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gr2.catalog import Catalog, ItemId, hashed_order
from gr2.errors import DataError


def catalog(ids: list[ItemId]) -> Catalog:
    n = len(ids)
    return Catalog(ids, ["t"] * n, [None] * n, [["a", "b"]] * n, [1.5] * n, [None] * n)


@pytest.mark.parametrize("ids", [["x", "y", "z"], [3, 1, 2], []])
def test_catalog_survives_the_file(tmp_path: Path, ids: list[ItemId]) -> None:
    catalog(ids).save(tmp_path / "items.parquet")
    loaded = Catalog.load(tmp_path / "items.parquet")
    assert loaded == catalog(ids)
    assert loaded.index == {item: i for i, item in enumerate(ids)}


def test_file_that_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a catalogue"):
        Catalog.load(tmp_path / "items.parquet")


def test_numbering_does_not_depend_on_input_order() -> None:
    ids: list[ItemId] = [f"item{i}" for i in range(500)]
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(500)]
    assert [ids[i] for i in hashed_order(ids, 7)] == [shuffled[i] for i in hashed_order(shuffled, 7)]


def test_numbering_is_uncorrelated_with_the_id() -> None:
    order = hashed_order(list(range(2000)), 0)
    assert abs(np.corrcoef(order, np.arange(2000))[0, 1]) < 0.08
    assert not np.array_equal(order, hashed_order(list(range(2000)), 1))


def test_keys_are_what_a_codebook_takes() -> None:
    assert catalog(["x", "y"]).keys() == ["x", "y"]
    numbers = catalog([7, 3]).keys()
    assert isinstance(numbers, np.ndarray)
    assert (numbers.dtype, numbers.tolist()) == (np.int64, [7, 3])


def test_take_selects_and_reorders() -> None:
    assert catalog(["x", "y", "z"]).take(np.array([2, 0])).ids == ["z", "x"]
