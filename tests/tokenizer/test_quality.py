"""Quality figures of semantic IDs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gr2.tokenizer.assign import Assignment
from gr2.tokenizer.quality import category_agreement, code_metrics, uniqueness

CODES = np.array([[0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0]], dtype=np.uint16)


def test_collisions_are_counted() -> None:
    repeated = CODES[[0, 0, 0, 1, 2]]
    assert uniqueness(repeated) == {"unique": 0.6, "collisions": 2, "largest_group": 3}
    assert uniqueness(CODES) == {"unique": 1.0, "collisions": 0, "largest_group": 1}


def test_agreement_counts_pairs_of_equal_leaf_category() -> None:
    categories = [["Body", "Soap"], ["Body", "Soap"], ["Hair", "Soap"], ["Body", "Soap"]]
    agreement = category_agreement(CODES, categories)
    assert agreement == {"all_pairs": 3 / 6, "prefix_1": 1 / 3, "prefix_2": 1.0}


def test_items_without_a_category_are_left_out_of_agreement() -> None:
    assert category_agreement(CODES, [["A"], [], ["A"], []]) == {"all_pairs": 1.0, "prefix_1": 1.0}
    assert category_agreement(CODES, [["A"], [], [], []]) is None


def test_metrics_of_known_codes() -> None:
    vectors = np.ones((4, 2), dtype=np.float32)
    errors = np.array([[1.0, 0.5, 0.25]] * 4, dtype=np.float32)
    nearest = CODES.copy()
    nearest[1] = nearest[0]
    metrics = code_metrics(Assignment(CODES, errors, nearest, 0), vectors, [[]] * 4, level_size=4)
    assert metrics["nearest_unique"] == 0.75
    assert metrics["reassigned"] == 0.25
    assert metrics["largest_prefix"] == 2
    assert metrics["category_agreement"] is None
    assert [level["codes_used"] for level in metrics["levels"]] == [2, 2, 3]
    assert [level["prefixes"] for level in metrics["levels"]] == [2, 3, 4]
    assert [level["reconstruction_error"] for level in metrics["levels"]] == [0.5, 0.25, 0.125]
    assert metrics["levels"][0]["entropy_bits"] == pytest.approx(0.811, abs=1e-3)
    assert json.loads(json.dumps(metrics)) == metrics
