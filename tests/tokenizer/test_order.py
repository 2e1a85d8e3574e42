"""The order in which items are processed."""

from __future__ import annotations

import numpy as np

from gr2.tokenizer.order import content_order

CONTENTS = [b"soap", b"comb", b"brush", b"towel", b"cream"]


def test_order_follows_the_content_alone() -> None:
    order = content_order(CONTENTS, [1, 2, 3, 4, 5], seed=0)
    renamed = content_order(CONTENTS, ["x", "w", "v", "u", "t"], seed=0)
    np.testing.assert_array_equal(order, renamed)
    shuffled = [3, 0, 4, 1, 2]
    moved = content_order([CONTENTS[row] for row in shuffled], shuffled, seed=0)
    assert [CONTENTS[row] for row in order] == [CONTENTS[shuffled[row]] for row in moved]


def test_seed_changes_the_order() -> None:
    orders = {tuple(content_order(CONTENTS, range(5), seed=seed).tolist()) for seed in range(10)}
    assert len(orders) > 5


def test_equal_contents_are_ordered_by_hashed_id() -> None:
    ids = list(range(50))
    order = content_order([b"same"] * 50, ids, seed=0).tolist()
    reverse = content_order([b"same"] * 50, ids[::-1], seed=0).tolist()
    assert [ids[row] for row in order] == [ids[::-1][row] for row in reverse]
    assert order != sorted(order)
