"""The code table finds every item and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr2.export.lookup import build_code_table


@settings(max_examples=60, deadline=None)
@given(items=st.integers(0, 60), levels=st.integers(1, 8), size=st.integers(1, 300), seed=st.integers(0, 99))
def test_table_equals_a_dictionary(items: int, levels: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes, asked = rng.integers(0, size, (items, levels)), rng.integers(0, size, (40, levels))
    rows: dict[tuple[int, ...], int] = {}
    for row, path in enumerate(codes.tolist()):
        rows.setdefault(tuple(path), row)
    table = build_code_table(codes)
    both = np.concatenate([codes, asked])
    assert table.find(both, items).tolist() == [rows.get(tuple(path), items) for path in both.tolist()]


def test_a_large_table_is_built_and_is_the_same_each_time() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 4))
    first, second = build_code_table(codes), build_code_table(codes)
    np.testing.assert_array_equal(first.codes, second.codes)
    _, expected = np.unique(codes, axis=0, return_inverse=True)
    assert len(np.unique(first.find(codes, -1))) == expected.max() + 1
