from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gr2.features import SCORE_FEATURES, candidate_features, score_ranks

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@given(SCORES)
def test_rank_is_the_number_of_better_candidates(values: list[int]) -> None:
    expected = [sum(other > value for other in values) for value in values]
    assert score_ranks(np.array(values, np.float32)).tolist() == expected


@given(SCORES, st.randoms())
def test_features_of_a_candidate_do_not_depend_on_its_position(values: list[int], random: object) -> None:
    scores = np.array(values, np.float32)
    order = np.array(sorted(range(len(values)), key=lambda _: random.random()))  # type: ignore[attr-defined]
    dense = np.arange(2 * len(values), dtype=np.float32).reshape(-1, 2)
    straight = candidate_features(len(values), scores=scores, dense=dense)
    assert np.array_equal(candidate_features(len(values), scores=scores[order], dense=dense[order]), straight[order])


def test_without_scores_the_score_columns_are_zero() -> None:
    features = candidate_features(4, scores=None, dense=np.ones((4, 2), np.float32))
    assert features.shape == (4, len(SCORE_FEATURES) + 2)
    assert features.dtype == np.float32
    assert not features[:, : len(SCORE_FEATURES)].any()


def test_empty_slate_has_no_rows() -> None:
    assert candidate_features(0, scores=None, dense=None).shape == (0, len(SCORE_FEATURES))
