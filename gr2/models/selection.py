"""Contexts that a model chooses: some of a history's events, newest first, each as its ID or as its whole line."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gr2.models.constrained import RankingProcessor, Row, copy_sets
from gr2.models.reasoner import Reasoner
from gr2.prompts.context import Passage, Pick
from gr2.prompts.semantic_id import BEGIN, END

__all__ = ["Option", "SelectionProcessor", "SelectionRow", "selection_options", "selection_tokens"]


@dataclass(frozen=True)
class Option:
    """A line that may be kept: its tokens, with the line break, and what it costs in the prompt."""

    pick: Pick
    tokens: tuple[int, ...]
    cost: int


def selection_options(reasoner: Reasoner, passage: Passage) -> list[Option]:
    """All lines of a passage, newest first, the ID alone before the whole line. No one's tokens begin another's."""
    options = []
    for event in reversed(range(len(passage.items))):
        for whole, lines, costs in (
            (False, passage.brief, passage.brief_cost),
            (True, passage.whole, passage.whole_cost),
        ):
            if whole and passage.whole[event] == passage.brief[event]:
                continue
            # Between two tokens of semantic IDs, as it will stand.
            tokens = reasoner.encode(END + lines[event] + "\n" + BEGIN)[1:-1]
            options.append(Option(Pick(event, whole), tuple(tokens), costs[event]))
    return options


def selection_tokens(options: Sequence[Option], picks: Sequence[Pick], eos: int) -> list[int]:
    """The tokens by which a model chooses `picks`."""
    chosen = {option.pick: option.tokens for option in options}
    return [*(token for pick in sorted(picks, reverse=True) for token in chosen[pick]), eos]


class SelectionRow(Row):
    """A sequence that names events within a budget of the prompt's tokens, each older than the one before.

    `picks` are those named so far. At least one is named where one fits; `eos` may follow any.
    """

    def __init__(self, options: Sequence[Option], budget: int, eos: int) -> None:
        super().__init__()
        self.options, self.budget, self.eos = options, budget, eos
        self._left = budget
        self.picks: list[Pick] = []
        self._open = self._fitting(options)
        self._depth = 0
        self._settle()

    @property
    def choices(self) -> NDArray[np.int64]:
        """(M,) the tokens that may come next."""
        tokens = {option.tokens[self._depth] for option in self._open}
        if not self._depth and (self.picks or not self._open):
            tokens.add(self.eos)
        return np.array(sorted(tokens), dtype=np.int64)

    def take(self, token: int) -> None:
        """Go on by the token that was emitted; whatever follows `eos` is padding. Raises ValueError."""
        if self.ended:
            return
        allowed = self.choices
        if token not in allowed:
            raise ValueError(f"token {token} is not allowed; expected one of {allowed.tolist()}")
        self.allowed.append(allowed)
        if token == self.eos and not self._depth:
            self.ended = True
            self.queue.clear()
            return
        self._open = [option for option in self._open if option.tokens[self._depth] == token]
        self._depth += 1
        self._close()
        self._settle()

    def _close(self) -> None:
        """At the end of a line, go on among older events that still fit."""
        # Of events with equal lines, the newest is meant: it comes first.
        done = next((option for option in self._open if len(option.tokens) == self._depth), None)
        if done is None:
            return
        self.picks.append(done.pick)
        self._left -= done.cost
        self._open = self._fitting([each for each in self.options if each.pick.event < done.pick.event])
        self._depth = 0

    def _fitting(self, options: Sequence[Option]) -> list[Option]:
        return [option for option in options if option.cost <= self._left]

    def _settle(self) -> None:
        """Queue the token that must come next, if there is but one."""
        allowed = self.choices
        self.queue = deque([(int(allowed[0]), allowed)] if len(allowed) == 1 else [])


class SelectionProcessor(RankingProcessor):
    """A `LogitsProcessor` for `model.generate`, and for `process_answers`: each row chooses a context, and ends.

    Row r belongs to passage r // (rows / passages), whose `options` and `budgets` these are.
    """

    def __init__(self, reasoner: Reasoner, options: Sequence[Sequence[Option]], budgets: Sequence[int]) -> None:
        super().__init__((), reasoner.vocabulary)
        self._options, self._budgets = options, budgets
        self.rows: list[SelectionRow] = []  # type: ignore[assignment]

    def start(self, count: int) -> None:
        """Make `count` rows. Raises ValueError if they do not fit the passages."""
        passages = len(self._options)
        if not passages or count % passages:
            raise ValueError(f"rows must be a multiple of the {passages} passages, got {count}")
        for number in range(count):
            passage = number * passages // count
            self.rows.append(SelectionRow(self._options[passage], self._budgets[passage], self.vocabulary.eos))

    def rankings(self, sequences: Tensor, scores: object = None) -> list[NDArray[np.int32]]:  # noqa: ARG002
        """Take in what `generate` returned; a context ranks nothing."""
        self._advance(sequences)
        return []

    def _leave(self, numbers: Sequence[int], scores: Tensor, result: Tensor) -> None:
        if numbers:
            copy_sets(numbers, [self.rows[number].choices for number in numbers], scores, result)
