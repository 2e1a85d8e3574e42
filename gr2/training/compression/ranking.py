"""How a frozen reasoner ranks candidates from a history or from a context: two ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import Answering, answer_batch
from gr2.models.item_likelihood import item_likelihoods
from gr2.models.reasoner import Reasoner
from gr2.prompts.context import cited_codes
from gr2.prompts.render import PromptConfig, Slate, history_lines, render

__all__ = ["AnswerRanker", "LikelihoodRanker", "Ranker"]


class Ranker(Protocol):
    """Whoever ranks slates."""

    def rank(self, slates: Sequence[Slate]) -> list[tuple[int, ...]]:
        """The ranking of each slate: places of its candidates, best first."""


class AnswerRanker:
    """Asks the reasoner with a prompt and takes its likeliest answer, constrained to the candidates."""

    def __init__(self, reasoner: Reasoner, prompt: PromptConfig, asking: Answering) -> None:
        self._reasoner, self._grammar = reasoner, AnswerGrammar(reasoner)
        self._prompt, self._asking = prompt, asking

    def rank(self, slates: Sequence[Slate]) -> list[tuple[int, ...]]:
        """The ranking of each slate."""
        encode = self._reasoner.encode_chat
        prompts = [
            encode(render(slate, self._prompt, lambda messages: len(encode(messages))).messages) for slate in slates
        ]
        order = sorted(range(len(slates)), key=lambda row: (-len(prompts[row]), row))
        rankings: dict[int, tuple[int, ...]] = {}
        for first in range(0, len(order), self._asking.batch):
            rows = order[first : first + self._asking.batch]
            found = answer_batch(
                self._reasoner,
                self._grammar,
                [prompts[row] for row in rows],
                [slates[row] for row in rows],
                self._asking,
                seed=0,
            )
            rankings |= {row: tuple(each.ranking.tolist()) for row, each in zip(rows, found, strict=True)}
        return [rankings[row] for row in range(len(slates))]


class LikelihoodRanker:
    """Orders candidates by how likely the reasoner finds them after the items that the lines cite (`item_likelihoods`).

    Text is not read. Candidates that are equally likely keep their order.
    """

    def __init__(self, reasoner: Reasoner, prompt: PromptConfig) -> None:
        self._reasoner, self._prompt = reasoner, prompt

    def rank(self, slates: Sequence[Slate]) -> list[tuple[int, ...]]:
        """The ranking of each slate."""
        sids = self._reasoner.sids
        cited = [cited_codes(history_lines(slate, self._prompt), sids.levels, sids.level_size) for slate in slates]
        candidates = [[item.codes for item in slate.candidates] for slate in slates]
        scores = item_likelihoods(self._reasoner, cited, candidates)
        return [tuple(np.argsort(-each, kind="stable").tolist()) for each in scores]
