"""Rollouts of a compressor on histories: contexts, and what a judge makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.models.compressing import Compressor, Written
from gr2.prompts.context import Passage, newest
from gr2.prompts.verdict import Verdict
from gr2.training.compression.judge import Case, Judge
from gr2.training.compression.reward import REFUSED, context_reward, trails_off
from gr2.training.policy.rollouts import Group, Rollout

__all__ = ["ContextOutcome", "ContextRollouts", "ContextWorth", "context_monitor"]


@dataclass(frozen=True)
class ContextWorth:
    """The weight `alpha` of shortness in the reward, and `penalty`, by which trailing off is multiplied."""

    alpha: float
    penalty: float

    def __call__(self, written: Written, passage: Passage, verdict: Verdict) -> float:
        """The reward of a context that was not refused."""
        lines = written.lines or ()
        trailing = trails_off(lines, passage.whole)
        return context_reward(
            verdict, written.cost, passage.tokens, alpha=self.alpha, penalty=self.penalty, trailing=trailing
        )


@dataclass(frozen=True)
class ContextOutcome:
    """One sampled context: its tokens in the prompt and the history's, its lines and the history's, its verdict.

    `newest` says that it is what keeping the newest events would give; `refused` that it was over its budget, or empty.
    """

    cost: int
    original: int
    lines: int
    events: int
    newest: bool
    refused: bool
    verdict: Verdict | None
    reward: float


class ContextRollouts:
    """A `Draw`: task n is passage n, of which `judge` knows the slate."""

    def __init__(self, compressor: Compressor, passages: Sequence[Passage], judge: Judge, worth: ContextWorth) -> None:
        self._compressor, self._passages, self._judge, self._worth = compressor, passages, judge, worth

    def __call__(self, tasks: Sequence[int], seed: int) -> list[Group]:
        """A group for each task. It depends on the arguments, the weights and the judge alone.

        A context without a verdict is paid what the others of its group are on average, so that it teaches nothing.
        """
        samples = self._compressor.settings.samples
        written: dict[int, list[Written]] = {}
        for places, found in self._compressor.write([self._passages[task] for task in tasks], seed=seed):
            for number, place in enumerate(places):
                written[place] = found[number * samples : (number + 1) * samples]
        cases = [
            Case(task, each.lines)
            for place, task in enumerate(tasks)
            for each in written[place]
            if each.lines is not None
        ]
        verdicts = iter(self._judge.verdicts(cases) if cases else [])
        judged = [
            [None if each.lines is None else next(verdicts) for each in written[place]] for place in range(len(tasks))
        ]
        return [self._group(self._passages[task], written[place], judged[place]) for place, task in enumerate(tasks)]

    def _group(self, passage: Passage, written: Sequence[Written], verdicts: Sequence[Verdict | None]) -> Group:
        rewards = [self._reward(passage, *pair) for pair in zip(written, verdicts, strict=True)]
        known = [reward for reward in rewards if reward is not None]
        mean = float(np.mean(known)) if known else REFUSED
        prompt = self._compressor.prompt(passage)
        return [
            self._rollout(passage, prompt, each, verdict, mean if reward is None else reward)
            for each, verdict, reward in zip(written, verdicts, rewards, strict=True)
        ]

    def _reward(self, passage: Passage, written: Written, verdict: Verdict | None) -> float | None:
        if written.lines is None:
            return REFUSED
        return None if verdict is None else self._worth(written, passage, verdict)

    def _rollout(
        self, passage: Passage, prompt: list[int], written: Written, verdict: Verdict | None, reward: float
    ) -> Rollout:
        lines = written.lines or ()
        simple = passage.lines(newest(passage, passage.budget(self._compressor.settings.share)))
        outcome = ContextOutcome(
            cost=written.cost,
            original=passage.tokens,
            lines=len(lines),
            events=len(passage.items),
            newest=lines == simple,
            refused=written.lines is None,
            verdict=verdict,
            reward=reward,
        )
        allowed: Sequence[NDArray[np.int64] | None] = written.allowed or [None] * len(written.tokens)
        return Rollout(prompt, written.tokens, allowed, reward, outcome)


def context_monitor(outcomes: Sequence[ContextOutcome]) -> dict[str, float]:
    """Figures of a step's contexts, of which there must be one, by name.

    - `reward`, and of those with a verdict `judged/solvable`, `judged/preservation`, `judged/quality`;
    - `share`: tokens of the contexts as a share of the histories', `events`: lines as a share of the histories' events;
    - `copies/newest`: share that is what keeping the newest events gives: a policy that has learnt no more;
    - `valid`: share not refused; `unjudged`: of these, the share without a verdict.
    """
    valid = [each for each in outcomes if not each.refused]
    verdicts = [each.verdict for each in valid if each.verdict is not None]
    figures: dict[str, Any] = {
        "reward": np.mean([each.reward for each in outcomes]),
        "share": sum(each.cost for each in outcomes) / max(1, sum(each.original for each in outcomes)),
        "events": sum(each.lines for each in outcomes) / max(1, sum(each.events for each in outcomes)),
        "copies/newest": np.mean([each.newest for each in outcomes]),
        "valid": len(valid) / len(outcomes),
        "unjudged": 1 - len(verdicts) / len(valid) if valid else 0.0,
    }
    for name in ("solvable", "preservation", "quality") if verdicts else ():
        figures[f"judged/{name}"] = np.mean([getattr(verdict, name) for verdict in verdicts])
    return {name: float(value) for name, value in figures.items()}
