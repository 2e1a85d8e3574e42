"""Verifiable rewards of a re-ranked slate, and what each of them pays for copying.

With K candidates, rank_in and rank_out (from 1) of the target, A_fmt = 1 if the answer parses, else 0:

    promotion     (rank_in - rank_out) / K
    unconditional promotion + alpha A_fmt: an echo of the incoming order is paid alpha, whatever the history says
    conditional   promotion + alpha A_fmt if promotion > 0 or the target was first and stays first (GR2)
    identity gate alpha A_fmt for the incoming order, unless it is perfect; else NDCG + alpha A_fmt (technical report,
                  Eq. 7); one swap escapes it, and is paid the NDCG that the incoming order is denied
    default       promotion, and -1 for an answer that does not parse
    auc, ndcg     share of the pairs of a positive and a negative that are in the right order, gain in NDCG over the
                  incoming order; -1 for an answer that does not parse (technical report, for several positives)

The last three look at every positive of a slate and at its grade. A target is one of them: the first of the best grade.

A bonus that depends on the outcome is a prize for gambling: swapping the last two candidates promotes the target as
often as it demotes it, costs nothing on average, and wins the conditional bonus half of the times. The one format
reward that no ordering can collect is a constant, and a constant that copying is not to earn is a penalty on what does
not parse. So the default pays nothing for the incoming order and, by the rearrangement inequality, at most nothing on
average for any order that does not look at the history, as long as the pre-ranker's target is not more frequent at a
lower rank than at a higher one. Where it is, `balance_weights` make every such order earn exactly nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FORMAT_BONUS",
    "GRADED",
    "INVALID",
    "REWARDS",
    "Reward",
    "RewardName",
    "auc",
    "balance_weights",
    "best_of",
    "conditional",
    "default",
    "identity_gate",
    "ndcg",
    "ndcg_gain",
    "one_positive",
    "overlong",
    "promotion",
    "rank_of",
    "reward",
    "unconditional",
]

Ranking = Sequence[int]
RewardName = Literal["default", "conditional", "unconditional", "identity_gate", "auc", "ndcg"]
# What of these looks at all positives.
GRADED: tuple[RewardName, ...] = ("identity_gate", "auc", "ndcg")
FORMAT_BONUS = 0.2  # alpha of arXiv 2607.01170
INVALID = -1.0


def rank_of(ranking: Ranking, target: int) -> int:
    """The rank, from 1, of candidate `target` (its place in the incoming order, from 0) in a permutation of 0..K-1."""
    return list(ranking).index(target) + 1


def promotion(ranking: Ranking, target: int) -> float:
    """(rank_in - rank_out) / K, from -(K - 1) / K to (K - 1) / K: how far the target rose (GR2)."""
    return (target + 1 - rank_of(ranking, target)) / len(ranking)


def default(ranking: Ranking | None, target: int) -> float:
    """`promotion`, and INVALID for an answer that does not parse (None)."""
    return INVALID if ranking is None else promotion(ranking, target)


def unconditional(ranking: Ranking | None, target: int, *, alpha: float = FORMAT_BONUS) -> float:
    """`promotion` + alpha, and 0 for an answer that does not parse: the reward that copying games."""
    return 0.0 if ranking is None else promotion(ranking, target) + alpha


def conditional(ranking: Ranking | None, target: int, *, alpha: float = FORMAT_BONUS) -> float:
    """`promotion`, + alpha if it is positive or the target was first and stays first (GR2); INVALID for None."""
    if ranking is None:
        return INVALID
    gain = promotion(ranking, target)
    stays_first = target == 0 and gain == 0
    return gain + alpha if gain > 0 or stays_first else gain


def identity_gate(ranking: Ranking | None, gains: Sequence[int], *, alpha: float = FORMAT_BONUS) -> float:
    """Alpha for the incoming order unless it is perfect, else `ndcg` + alpha (Eq. 7); 0 for None.

    `gains` (K,) are the grades of the candidates in incoming order.
    """
    if ranking is None:
        return 0.0
    copied = list(ranking) == list(range(len(ranking)))
    perfect = all(before >= after for before, after in itertools.pairwise(gains))
    return alpha if copied and not perfect else ndcg(ranking, gains) + alpha


def auc(ranking: Ranking, gains: Sequence[int]) -> float:
    """Share of (positive, negative) pairs that `ranking` has in the right order; a grade above 0 is positive.

    Raises ValueError on a slate without a positive or without a negative, which has no pair.
    """
    positive = np.array([gains[candidate] > 0 for candidate in ranking])
    pairs = int(positive.sum() * (~positive).sum())
    if not pairs:
        raise ValueError("a slate without a positive or without a negative has no pair to order")
    behind = np.cumsum(~positive[::-1])[::-1]  # negatives from here on
    return float(behind[positive].sum() / pairs)


def ndcg(ranking: Ranking, gains: Sequence[int]) -> float:
    """NDCG of the whole slate with gains 2^g - 1, g of 0 none, 1 click, 2 click and conversion (technical report).

    Raises ValueError on a slate without a positive.
    """
    worth = np.exp2(np.asarray(gains, dtype=np.float64)) - 1
    best = _discounted(np.sort(worth)[::-1])
    if best == 0:
        raise ValueError("a slate without a positive has no ideal order")
    return _discounted(worth[list(ranking)]) / best


def ndcg_gain(ranking: Ranking, gains: Sequence[int]) -> float:
    """NDCG of `ranking` minus that of the incoming order: `promotion` for several positives."""
    return ndcg(ranking, gains) - ndcg(range(len(ranking)), gains)


def overlong(length: int, longest: int, cache: int) -> float:
    """DAPO's soft penalty, from 0 to -1: it grows over the last `cache` tokens that an explanation may have.

    Where it may have no more than these it grows from the first token on; where there is none, `longest` being 0,
    nothing is too long.
    """
    room = min(cache, longest)
    return -min(1.0, max(0.0, (length - longest + room) / room)) if room else 0.0


def balance_weights(targets: NDArray[np.integer], width: int) -> NDArray[np.float64]:
    """(K,) weight of each incoming place, 1 / (K share of it among `targets` (R,)), 0 where no target stands.

    Under rewards times these weights each place counts alike, so that an order that ignores the history gains as much
    at one place as it loses at others. They take the incoming order's information from the policy, too: use them only
    where the order is withheld from it. Raises ValueError on a target that is not in 0..K-1, and if there are none.
    """
    if not len(targets) or targets.min() < 0 or targets.max() >= width:
        raise ValueError(f"targets must be places 0 to {width - 1}, and at least one")
    counts = np.bincount(targets, minlength=width)
    present = int((counts > 0).sum())
    return np.where(counts > 0, len(targets) / (present * np.maximum(counts, 1)), 0.0)


def _discounted(worth: NDArray[np.float64]) -> float:
    return float((worth / np.log2(np.arange(2, len(worth) + 2))).sum())


def one_positive(target: int, width: int) -> tuple[int, ...]:
    """(K,) the grades of a slate whose one positive is candidate `target`."""
    return tuple(int(place == target) for place in range(width))


def best_of(grades: Sequence[int]) -> int:
    """The target of a slate: its first candidate of the best grade."""
    return list(grades).index(max(grades))


# Of a ranking, None where the answer does not parse, and the grades (K,) of the candidates in incoming order.
Reward = Callable[[Ranking | None, Sequence[int]], float]


def reward(name: RewardName, alpha: float = FORMAT_BONUS) -> Reward:
    """The reward of that name, with `alpha` where it pays for format.

    Those that are not GRADED look at the target alone (see `best_of`).
    """
    graded: dict[str, Reward] = {
        "identity_gate": partial(identity_gate, alpha=alpha),
        "auc": lambda ranking, grades: INVALID if ranking is None else auc(ranking, grades),
        "ndcg": lambda ranking, grades: INVALID if ranking is None else ndcg_gain(ranking, grades),
    }
    if name in graded:
        return graded[name]
    single: dict[str, Callable[[Ranking | None, int], float]] = {
        "default": default,
        "conditional": partial(conditional, alpha=alpha),
        "unconditional": partial(unconditional, alpha=alpha),
    }
    paid = single[name]
    return lambda ranking, grades: paid(ranking, best_of(grades))


REWARDS: dict[RewardName, Reward] = {name: reward(name) for name in get_args(RewardName)}
