"""The bundle of a student with random weights: loadable, reproducible, and refused where its items have no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr2.bundle import Bundle
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.engine import Engine

SIZES = {"items": 60, "levels": 2, "level_size": 16, "dim": 8, "max_history": 5, "width": 1}


def test_equal_arguments_give_the_same_bundle(tmp_path: Path) -> None:
    first, again = (Bundle.load(write_random_bundle(tmp_path / name, **SIZES)) for name in ("first", "again"))
    assert first.version == again.version
    assert first.takes_batches
    other = Bundle.load(write_random_bundle(tmp_path / "other", **SIZES, seed=1, batched=False))
    assert other.version != first.version
    assert not other.takes_batches
    ranking = Engine(first).rerank([1, 2], [5, 59, 60])
    assert [item.item_id for item in ranking.items][2] == 60
    assert ranking.items[0].score != ranking.items[1].score


def test_more_items_than_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 levels of 8 codes are too few for 60 items"):
        write_random_bundle(tmp_path / "bundle", **(SIZES | {"levels": 1, "level_size": 8}))
