"""Rollouts of a reasoner on candidate lists: prompts, sampled answers, and what each is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import Answered, Answering, Writer, answer_batch
from gr2.models.reasoner import Reasoner
from gr2.prompts.answer import AnswerError
from gr2.prompts.render import PromptConfig, Slate, render
from gr2.training.loop.capacity import refuse_long_prompts
from gr2.training.policy.monitors import Outcome
from gr2.training.policy.rewards import Reward, best_of, overlong
from gr2.training.policy.rollouts import Group, Rollout

__all__ = ["ListRollouts", "Worth"]


@dataclass(frozen=True)
class Worth:
    """What an answer earns: `reward` times its place's weight, less the penalty for an explanation that is too long.

    `weights` (K,) are those of the target's places in the incoming order, None for 1 (see `balance_weights`).
    """

    reward: Reward
    weights: NDArray[np.float64] | None = None
    overlong_tokens: int = 0
    overlong_penalty: float = 0.0

    def __call__(self, ranking: Sequence[int] | None, grades: Sequence[int], *, explained: int, longest: int) -> float:
        """The reward of a ranking, None where the answer was refused, after an explanation of so many tokens.

        `grades` (K,) are those of the candidates in incoming order.
        """
        weight = 1.0 if self.weights is None else float(self.weights[best_of(grades)])
        penalty = self.overlong_penalty * overlong(explained, longest, self.overlong_tokens)
        return weight * self.reward(ranking, grades) + penalty


class ListRollouts:
    """A `Draw`: task n is slate n, whose candidates have the grades `grades[n]` (K,) in incoming order.

    With `shuffle` a group's prompt lists the candidates in an order drawn by the seed. `asking` says how many samples a
    group has, and how many answers are generated at once. Raises ConfigError if prompts that the budget allows are
    longer than the model can read.
    """

    def __init__(
        self,
        reasoner: Reasoner,
        slates: Sequence[Slate],
        grades: Sequence[Sequence[int]],
        prompt: PromptConfig,
        asking: Answering,
        worth: Worth,
        *,
        shuffle: bool = False,
        writer: Writer | None = None,
    ) -> None:
        self._reasoner, self._grammar = reasoner, AnswerGrammar(reasoner)
        self._writer = writer
        self._explaining = {id(allowed) for allowed in (*self._grammar.allowed, *(writer.sets if writer else ()))}
        self._slates, self._grades = slates, [tuple(each) for each in grades]
        self._prompt, self._asking, self._worth, self._shuffle = prompt, asking, worth, shuffle
        answer = self._grammar.length(max(len(slate.candidates) for slate in slates), asking.limit)
        refuse_long_prompts(reasoner.model, budget=prompt.budget, answer=answer)

    def __call__(self, tasks: Sequence[int], seed: int) -> list[Group]:
        """A group for each task; it depends on the arguments and the weights alone."""
        generator = np.random.default_rng(seed)
        orders = [self._order(task, generator) for task in tasks]
        prompts = [self._tokens(task, order) for task, order in zip(tasks, orders, strict=True)]
        step = max(1, self._asking.batch // self._asking.samples)
        # Prompts of like length together, since the others are padded.
        rows = sorted(range(len(tasks)), key=lambda row: (-len(prompts[row]), row))
        groups: dict[int, Group] = {}
        for first in range(0, len(rows), step):
            batch = rows[first : first + step]
            found = answer_batch(
                self._reasoner,
                self._grammar,
                [prompts[row] for row in batch],
                [self._slates[tasks[row]] for row in batch],
                self._asking,
                seed=int(generator.integers(2**31)),
                writer=self._writer,
            )
            for place, row in enumerate(batch):
                own = found[place * self._asking.samples : (place + 1) * self._asking.samples]
                groups[row] = [self._rollout(tasks[row], prompts[row], orders[row], each) for each in own]
        return [groups[row] for row in range(len(tasks))]

    def _order(self, task: int, generator: np.random.Generator) -> tuple[int, ...]:
        width = len(self._slates[task].candidates)
        return tuple(generator.permutation(width).tolist() if self._shuffle else range(width))

    def _tokens(self, task: int, order: Sequence[int]) -> list[int]:
        encode = self._reasoner.encode_chat
        prompt = render(self._slates[task], self._prompt, lambda messages: len(encode(messages)), order=order)
        return encode(prompt.messages)

    def _rollout(self, task: int, prompt: list[int], order: tuple[int, ...], found: Answered) -> Rollout:
        grades = self._grades[task]
        ranking = None if isinstance(found.answer, AnswerError) else tuple(found.ranking.tolist())
        allowed: Sequence[NDArray[np.int64] | None] = found.allowed or [None] * len(found.tokens)
        # A free answer has its ranking among the free tokens.
        explained = sum(id(each) in self._explaining for each in found.allowed)
        if not found.allowed:
            explained = max(0, len(found.tokens) - self._grammar.length(len(order), 0))
        earned = self._worth(ranking, grades, explained=explained, longest=self._asking.limit)
        return Rollout(prompt, found.tokens, allowed, earned, Outcome(ranking, order, grades, earned))
