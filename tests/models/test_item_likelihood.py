from __future__ import annotations

import numpy as np
import pytest
import torch

from gr2.models.item_likelihood import item_likelihoods
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch

HISTORIES = [[(0, 1), (3, 2)], [], [(1, 1)]]
CANDIDATES = [[(0, 0), (3, 3), (2, 1)], [(1, 2)], [(0, 1), (1, 1)]]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["item"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


def brute_force(reasoner: Reasoner, history: list[tuple[int, int]], candidate: tuple[int, int]) -> float:
    """One token after the other, each sequence alone."""
    vocabulary = reasoner.vocabulary
    tokens = reasoner.item_tokens(np.array(history, dtype=np.int64).reshape(-1, 2)).reshape(-1).tolist()
    tokens.append(vocabulary.begin[0])
    total = 0.0
    for level, code in enumerate(candidate):
        with torch.no_grad():
            logits = reasoner.model(input_ids=torch.tensor([tokens])).logits[0, -1]
        token = int(vocabulary.tokens[level, code])
        total += float(logits.log_softmax(-1)[token])
        tokens.append(token)
    return total


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_likelihoods_are_those_of_one_token_after_the_other(reasoner: Reasoner, batch: int) -> None:
    found = item_likelihoods(reasoner, HISTORIES, CANDIDATES, batch=batch)
    for history, candidates, scores in zip(HISTORIES, CANDIDATES, found, strict=True):
        assert scores.dtype == np.float32
        expected = [brute_force(reasoner, history, each) for each in candidates]
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
