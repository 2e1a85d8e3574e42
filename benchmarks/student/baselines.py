"""What else ranks the student's lists: without training, and LambdaMART on all that the student's prior sees.

Every ranking is the ranks (R,) of the targets; equal scores keep the incoming order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.student.lists import Lists
from gr2.data.candidates import PADDING, CandidateLists
from gr2.features import SCORE_FEATURES
from gr2.metrics import metric_values, rank_of_target
from gr2.models.memory import MEMORY

if TYPE_CHECKING:
    import lightgbm

__all__ = ["TREES", "fitted_trees", "ranks_by", "simple_ranks"]

COLUMNS = (*SCORE_FEATURES, *MEMORY)
# Popularity, and co-purchases with the last item over popularity's root, as they are among the student's features.
SIMPLE = {"popularity": "popularity", "most recent co-purchase": "copurchase_last_weighted"}
ROUNDS, PATIENCE = 1000, 50
# Of these the validation lists choose one.
TREES: tuple[dict[str, Any], ...] = (
    {"num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 50, "lambda_l2": 5},
    {"num_leaves": 7, "learning_rate": 0.03, "min_data_in_leaf": 100, "lambda_l2": 10},
    {"num_leaves": 7, "learning_rate": 0.05, "min_data_in_leaf": 100, "lambda_l2": 5, "lambdarank_norm": False},
)


def ranks_by(lists: CandidateLists, scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """(R,) the targets' ranks by scores (R, K)."""
    return rank_of_target(np.where(lists.candidates != PADDING, scores, -np.inf), lists.label())


def simple_ranks(lists: Lists, test: str) -> dict[str, NDArray[np.int64]]:
    """The incoming order, and orders by one column."""
    held, seen = lists.tests[test], lists.seen[test]
    orders = {name: ranks_by(held, seen[:, :, COLUMNS.index(column)]) for name, column in SIMPLE.items()}
    return {"incoming": held.label() + 1, **orders}


def fitted_trees(lists: Lists, seed: int) -> dict[str, NDArray[np.int64]]:
    """LambdaMART's ranks of each test part: stopped, and its settings chosen, by the validation lists' N@5.

    Raises ImportError without the extra `bench`.
    """
    found = [_fit(lists, settings, seed) for settings in TREES]
    best = max(found, key=lambda model: _n5(lists, model))
    return {test: ranks_by(held, _scores(best, held, lists.seen[test])) for test, held in lists.tests.items()}


def _fit(lists: Lists, settings: dict[str, Any], seed: int) -> lightgbm.Booster:
    import lightgbm

    sets = []
    for part in ("train", "val"):
        held = lists.parts[part]
        valid = held.candidates != PADDING
        sets.append(
            lightgbm.Dataset(
                lists.seen[part][valid],
                held.gains()[valid],
                group=valid.sum(1),
                reference=sets[0] if sets else None,
                feature_name=list(COLUMNS),
            )
        )
    options = {
        "objective": "lambdarank", "metric": "ndcg", "eval_at": [5], "feature_fraction": 0.7, "bagging_fraction": 0.7,
        "bagging_freq": 1, "verbose": -1, "num_threads": 1, "deterministic": True, "seed": seed,
    }  # fmt: skip
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(options | settings, sets[0], ROUNDS, valid_sets=[sets[1]], callbacks=[stop])


def _scores(model: lightgbm.Booster, lists: CandidateLists, seen: NDArray[np.float32]) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = np.asarray(model.predict(seen.reshape(-1, seen.shape[2]))).reshape(seen.shape[:2])
    return np.where(lists.candidates != PADDING, scores, -np.inf)


def _n5(lists: Lists, model: lightgbm.Booster) -> float:
    ranks = ranks_by(lists.val, _scores(model, lists.val, lists.seen["val"]))
    return float(metric_values(ranks)["N@5"].mean())
