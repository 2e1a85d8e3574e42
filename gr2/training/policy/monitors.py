"""What gives a policy away that games its reward: figures of a step's answers, and the end of a run that copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.errors import Gr2Error
from gr2.training.policy.rewards import best_of, ndcg_gain, rank_of
from gr2.training.reasoner.reranking import kendall_tau

__all__ = ["NEAR", "CopyGuard", "Outcome", "monitor"]

# Kendall's tau of a near copy: of ten candidates, at most two pairs of neighbours have changed places.
NEAR = 0.9
# Sums of the same gains differ by less.
SAME = 1e-9


@dataclass(frozen=True)
class Outcome:
    """One sampled answer: its ranking and the order in which the prompt showed the candidates.

    Both are permutations of the candidates' places in the incoming order, in which `grades` (K,) are theirs. `ranking`
    is None where the answer was refused.
    """

    ranking: tuple[int, ...] | None
    shown: tuple[int, ...]
    grades: tuple[int, ...]
    reward: float

    @property
    def target(self) -> int:
        """The place of the best positive in the incoming order."""
        return best_of(self.grades)

    @property
    def improves(self) -> bool:
        """Whether the ranking is worth more than the incoming order: with one positive, whether that rose."""
        return self.ranking is not None and ndcg_gain(self.ranking, self.grades) > SAME


def monitor(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Figures of a step's answers, of which there must be one, by name.

    - `reward`, and `reward/from_r`: its mean over the lists whose target came in at rank r;
    - `valid`: share of answers that were not refused;
    - of those: `copies/identical`, `copies/near` and `copies/tau`: shares equal to the incoming order or within NEAR of
      it, and the mean of Kendall's tau to it; `echoes/near` and `echoes/tau` are the same for the order that was shown;
    - `first/from_r`: share whose first candidate came in at rank r, and `target/at_r`: whose target went out at rank r;
    - `format_only`: of the answers with a positive reward, the share that is no better than the incoming order, which
      is what a format earns. With one target, it did not rise there.
    """
    width = max(len(each.shown) for each in outcomes)
    rewards = np.array([each.reward for each in outcomes])
    incoming = np.array([each.target + 1 for each in outcomes])
    figures = {
        "reward": float(rewards.mean()),
        "valid": float(np.mean([each.ranking is not None for each in outcomes])),
    }
    for rank in range(1, width + 1):
        if (incoming == rank).any():
            figures[f"reward/from_{rank}"] = float(rewards[incoming == rank].mean())
    paid = [not each.improves for each in outcomes if each.reward > 0]
    figures["format_only"] = float(np.mean(paid)) if paid else 0.0
    ranked = [(each.ranking, each) for each in outcomes if each.ranking is not None]
    if not ranked:
        return figures
    copies = np.array([kendall_tau(ranking) for ranking, _ in ranked])
    echoes = np.array([kendall_tau(_places(ranking, each.shown)) for ranking, each in ranked])
    figures |= {
        "copies/identical": float((copies == 1.0).mean()),
        "copies/near": float((copies >= NEAR).mean()),
        "copies/tau": float(copies.mean()),
        "echoes/near": float((echoes >= NEAR).mean()),
        "echoes/tau": float(echoes.mean()),
    }
    first = _shares([ranking[0] + 1 for ranking, _ in ranked], width)
    target = _shares([rank_of(ranking, each.target) for ranking, each in ranked], width)
    for rank in range(1, width + 1):
        figures[f"first/from_{rank}"], figures[f"target/at_{rank}"] = first[rank - 1], target[rank - 1]
    return figures


@dataclass(frozen=True)
class CopyGuard:
    """Ends a run in which, for `patience` steps, the share of near copies was above `limit` on average.

    A limit of 1 ends nothing. The order that was shown counts like the incoming one.
    """

    limit: float
    patience: int

    def check(self, figures: Mapping[str, float], history: Sequence[Mapping[str, float]] = ()) -> None:
        """Look at a step's figures and those of the steps before. Raises Gr2Error if it has collapsed to copying."""
        steps = [*(each for each in history if "valid" in each), figures][-self.patience :]
        share = float(np.mean([_copied(each) for each in steps]))
        if len(steps) < self.patience or share <= self.limit:
            return
        earned = float(np.mean([each["reward"] for each in steps]))
        raise Gr2Error(
            f"the policy copies: over the last {len(steps)} steps {share:.1%} of its answers were the order it "
            f"was given or nearly so, at a mean reward of {earned:+.4f}. A reward that pays for "
            "format whatever becomes of the target does this. Take reward = 'default', shuffle = true (there is no "
            f"order to copy then), or a start that copies less; copy_limit = 1 goes on (it is {self.limit:g})"
        )


def _copied(figures: Mapping[str, float]) -> float:
    """Near copies as a share of all answers: the figures are shares of those that were not refused."""
    return figures["valid"] * max(figures.get("copies/near", 0.0), figures.get("echoes/near", 0.0))


def _places(ranking: Sequence[int], shown: Sequence[int]) -> list[int]:
    place = {candidate: number for number, candidate in enumerate(shown)}
    return [place[candidate] for candidate in ranking]


def _shares(ranks: Sequence[int], width: int) -> list[float]:
    counts: NDArray[np.int64] = np.bincount(ranks, minlength=width + 1)[1:]
    shares: list[float] = (counts / len(ranks)).tolist()
    return shares
