"""Which tokens an answer may go on with: an explanation, then each candidate once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.decoding import CandidateTrie
from gr2.decoding.tokens import TokenDecoder
from gr2.models.answer_grammar import CLOSED, ESCAPED, FIRST, FORBIDDEN, AnswerGrammar
from gr2.models.constrained import RankingProcessor, RankingRow

__all__ = ["AnswerProcessor", "AnswerRow"]


class AnswerRow(RankingRow):
    """A sequence that opens, explains itself in up to `limit` tokens, and then ranks; 0 is no explanation."""

    def __init__(self, stream: TokenDecoder, grammar: AnswerGrammar, limit: int) -> None:
        super().__init__(stream)
        self.grammar, self.left = grammar, limit
        self.state = FIRST if limit else CLOSED
        self._ranking, self.queue = self.queue, deque()
        self._force(grammar.opening if limit else grammar.ranking_opening)
        if not limit:
            self.queue.extend(self._ranking)

    @property
    def explains(self) -> bool:
        """Whether the next token is the explanation's."""
        return self.state < CLOSED and not self.queue

    def take(self, token: int) -> None:
        """Go on by the token that was emitted. Raises ValueError."""
        if not self.explains:
            super().take(token)
            # A ranking of one candidate leaves its decoder nothing to decide, so that it is done from the start.
            self.ended = self.ended and self.state == CLOSED
            return
        move = int(self.grammar.moves[self.state, token])
        if move == FORBIDDEN:
            raise ValueError(f"token {token} is not allowed in an explanation")
        self.allowed.append(self.grammar.allowed[self.state])
        self.left -= 1
        if self.left <= 0 and move != ESCAPED:
            move = max(move, CLOSED)
        if move >= CLOSED:
            self._force(self.grammar.bridge[move - CLOSED])
            self.queue.extend(self._ranking)
        self.state = min(move, CLOSED)

    def write(self, tokens: Sequence[int], sets: Sequence[NDArray[np.int64]]) -> list[int]:
        """Go on by an explanation that was chosen elsewhere, each token from its set, and return what must follow too.

        One that does not end is ended. Raises ValueError.
        """
        for token, chosen in zip(tokens, sets, strict=True):
            if self.explains:
                self.take(token)
                self.allowed[-1] = chosen
        if self.state < CLOSED:
            self.state = CLOSED
            self._force(self.grammar.bridge[0])
            self.queue.extend(self._ranking)
        return [*tokens, *self.drain()]

    def _force(self, tokens: Sequence[int]) -> None:
        self.queue.extend((token, np.array([token])) for token in tokens)


class AnswerProcessor(RankingProcessor):
    """A `LogitsProcessor` for `model.generate`: each row emits an explanation, its request's ranking, and `eos`.

    Rows belong to requests as in RankingProcessor. `max_reasoning` is the most tokens of an explanation, which is then
    closed; 0 is the ranking alone. `generate` chooses, greedily or sampling, among the allowed tokens: turn `top_k` and
    `top_p` off where log-probabilities matter.
    """

    def __init__(self, tries: Sequence[CandidateTrie], grammar: AnswerGrammar, *, max_reasoning: int) -> None:
        super().__init__(tries, grammar.vocabulary)
        self.grammar, self.max_reasoning = grammar, max_reasoning
        self.rows: list[AnswerRow] = []  # type: ignore[assignment]
        self._masks: Tensor | None = None

    def _row(self, stream: TokenDecoder) -> AnswerRow:
        return AnswerRow(stream, self.grammar, self.max_reasoning)

    def _leave(self, numbers: Sequence[int], scores: Tensor, result: Tensor) -> None:
        explaining = [number for number in numbers if self.rows[number].explains]
        super()._leave([number for number in numbers if not self.rows[number].explains], scores, result)
        if not explaining:
            return
        if self._masks is None:
            forbidden = torch.from_numpy(self.grammar.moves == FORBIDDEN)
            self._masks = torch.zeros(forbidden.shape).masked_fill(forbidden, -torch.inf).to(scores)
        states = torch.tensor([self.rows[number].state for number in explaining], device=scores.device)
        place = torch.tensor(explaining, device=scores.device)
        result[place] = scores[place] + self._masks[states]
