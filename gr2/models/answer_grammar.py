"""How an answer is written in a tokenizer's tokens: its fixed text, and what an explanation may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gr2.models.reasoner import Reasoner
from gr2.prompts.answer import ANSWER_BRIDGE, ANSWER_CLOSING, ANSWER_OPENING, ANSWER_SEPARATOR, RANKING_OPENING
from gr2.prompts.semantic_id import BEGIN, END

__all__ = ["CLOSED", "ESCAPED", "FIRST", "FORBIDDEN", "INSIDE", "AnswerGrammar"]

# Where an explanation is: at its first token, somewhere inside, after a backslash, or at its end. CLOSED + n is an end
# with n characters of the bridge to the ranking written already.
FORBIDDEN, FIRST, INSIDE, ESCAPED, CLOSED = -1, 0, 1, 2, 3
# The escapes of JSON but \u, which a canonical answer needs for control characters only.
ESCAPES = '"\\/bfnrt'


class AnswerGrammar:
    """The tokens of an answer's fixed text, and a table of what each token does to an explanation.

    Attributes:
        vocabulary: that of the ranking, with what stands between the IDs and after the last.
        opening: the tokens up to the explanation.
        ranking_opening: the tokens up to the ranking of an answer without an explanation.
        bridge: entry n has the tokens from the explanation to the ranking without the first n characters.
        moves: (3, N) int16: where an explanation is after each of N tokens, from FIRST, INSIDE and ESCAPED.
        allowed: for each of these, the tokens (m,) int64 that are not FORBIDDEN.

    Written out, an explanation is a JSON string that is not blank, and holds no special token. Raises ValueError if
    the tokenizer cannot write the fixed text.
    """

    def __init__(self, reasoner: Reasoner) -> None:
        self._reasoner = reasoner
        self.vocabulary = replace(
            reasoner.vocabulary,
            separator=self._encode(ANSWER_SEPARATOR, END, BEGIN),
            close=self._encode(ANSWER_CLOSING, END),
        )
        self.opening = self._encode(ANSWER_OPENING)
        self.ranking_opening = self._encode(RANKING_OPENING, after=BEGIN)
        self.bridge = [self._encode(ANSWER_BRIDGE[given:], after=BEGIN) for given in range(len(ANSWER_BRIDGE) + 1)]
        self.moves = self._table()
        self.allowed = [np.flatnonzero(row != FORBIDDEN) for row in self.moves]

    def length(self, items: int, max_reasoning: int) -> int:
        """The most tokens of an answer about so many candidates, with the end of the turn.

        An explanation of `max_reasoning` tokens may take one more to end an escape; 0 is no explanation.
        """
        before = len(self.ranking_opening)
        if max_reasoning:
            before = len(self.opening) + max_reasoning + 1 + max(map(len, self.bridge))
        return before + self.vocabulary.length(items)

    def turn(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The tokens up to the end of the turn, if it came, and without the padding behind it."""
        eos = self.vocabulary.eos
        return tuple(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without the end of the turn."""
        return self._decode([token for token in self.turn(tokens) if token != self.vocabulary.eos])

    def _encode(self, text: str, before: str = "", after: str = "") -> tuple[int, ...]:
        """The tokens of `text` as it is written between two tokens of semantic IDs."""
        ids = self._reasoner.encode(before + text + after)
        inner = tuple(ids[bool(before) : len(ids) - bool(after)])
        if self._decode(inner) != text:
            raise ValueError(f"the tokenizer cannot write {text!r}: it makes it {self._decode(inner)!r}")
        return inner

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._reasoner.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _table(self) -> NDArray[np.int16]:
        tokenizer = self._reasoner.tokenizer
        rows = int(self._reasoner.model.get_input_embeddings().weight.size(0))  # type: ignore[operator]
        moves = np.full((3, rows), FORBIDDEN, dtype=np.int16)
        special = {*tokenizer.all_special_ids, self.vocabulary.eos}
        # After another token, a token's text has the space that some tokenizers drop at the start of a text.
        anchor = self._reasoner.vocabulary.end[0]
        length = len(self._decode([anchor]))
        for token in range(min(len(tokenizer), rows)):
            text = "" if token in special else self._decode([anchor, token])[length:]
            moves[:, token] = [_move(text, state) for state in (FIRST, INSIDE, ESCAPED)]
        return moves


def _move(text: str, state: int) -> int:
    """Where an explanation is after `text`."""
    # A first token that is no more than space, or the start of an escape, could end up a blank explanation.
    if not text or (state == FIRST and (not text.strip() or '"' in text or "\\" in text)):
        return FORBIDDEN
    escaped = state == ESCAPED
    for place, letter in enumerate(text):
        if escaped:
            if letter not in ESCAPES:
                return FORBIDDEN
            escaped = False
        elif letter == '"':
            return CLOSED + len(text) - place if ANSWER_BRIDGE.startswith(text[place:]) else FORBIDDEN
        elif letter < " ":
            return FORBIDDEN
        else:
            escaped = letter == "\\"
    # One token more must do to end an escape.
    return FORBIDDEN if escaped and state == ESCAPED else ESCAPED if escaped else INSIDE
