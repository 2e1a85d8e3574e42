"""Rankings as tokens of a language model: which token stands for which code, and what stands around an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gr2.decoding import CandidateDecoder, CandidateTrie

__all__ = ["CodeVocabulary", "TokenDecoder"]


@dataclass(frozen=True)
class CodeVocabulary:
    """`tokens` (L, V) int64 are the token IDs of each level's codes, no two equal in a level; `eos` ends a ranking.

    An item is `begin`, its codes, `end`; `separator` stands between items, `close` after the last. Raises
    TypeError on a wrong dtype and ValueError on token IDs that are negative or not unique in their level.
    """

    tokens: NDArray[np.int64]
    eos: int
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    close: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, np.ndarray) or self.tokens.dtype != np.int64:
            found = getattr(self.tokens, "dtype", type(self.tokens).__name__)
            raise TypeError(f"tokens must be int64 (L, V), got {found}")
        if self.tokens.ndim != 2 or self.tokens.size == 0:
            raise ValueError(f"tokens must be int64 (L, V), got shape {self.tokens.shape}")
        for level, row in enumerate(self.tokens):
            values, counts = np.unique(row, return_counts=True)
            if counts.max() > 1:
                raise ValueError(f"tokens of level {level}: token {values[counts.argmax()]} stands for several codes")
        smallest = min(int(self.tokens.min()), self.eos, *self.begin, *self.end, *self.separator, *self.close)
        if smallest < 0:
            raise ValueError(f"token IDs must not be negative, got {smallest}")

    @property
    def levels(self) -> int:
        """Codes an item has, L."""
        return len(self.tokens)

    def length(self, items: int) -> int:
        """Tokens of a ranking of so many items, with `eos`: what `max_new_tokens` must be at least."""
        item = len(self.begin) + self.levels + len(self.end)
        around = (items - 1) * len(self.separator) + len(self.close) if items else 0
        return items * item + around + 1


class TokenDecoder:
    """A CandidateDecoder, `decoder`, whose codes are tokens. Arguments and errors are those of CandidateDecoder.

    Raises ValueError also if the trie's codes are not those of the vocabulary.
    """

    def __init__(
        self,
        trie: CandidateTrie,
        vocabulary: CodeVocabulary,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seed: int = 0,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> None:
        if (trie.levels, trie.level_size) != vocabulary.tokens.shape:
            shape = (trie.levels, trie.level_size)
            raise ValueError(f"the vocabulary has (L, V) = {vocabulary.tokens.shape}, the trie {shape}")
        self.decoder = CandidateDecoder(trie, mode=mode, seed=seed, temperature=temperature, top_n=top_n)
        self.vocabulary = vocabulary
        self._spelled = 0
        self._begun = self._ended = False
        self._allowed = np.zeros(0, dtype=np.uint16)

    @property
    def level(self) -> int:
        """The level of the coming decision."""
        return self._spelled % self.vocabulary.levels

    @property
    def allowed(self) -> NDArray[np.int64]:
        """(m,) the tokens that the coming decision may choose; none if no decision is due."""
        tokens: NDArray[np.int64] = self.vocabulary.tokens[self.level, self._allowed]
        return tokens

    def next(self) -> list[int]:
        """The tokens since the last call, which the context must take in before the coming decision.

        They are the code chosen, forced codes, what stands around items, and at last `eos`; `close` only if the last
        item is whole.
        """
        vocabulary, decoder = self.vocabulary, self.decoder
        self._allowed = decoder.next()[1]
        fresh = decoder.codes[self._spelled :].tolist()
        done, tokens = decoder.done, list[int]()
        if not self._begun and (fresh or not done):
            tokens += vocabulary.begin
        self._begun = True
        for number, code in enumerate(fresh, 1):
            tokens.append(int(vocabulary.tokens[self.level, code]))
            self._spelled += 1
            if self.level == 0:
                tokens += vocabulary.end
                last = done and number == len(fresh)
                tokens += vocabulary.close if last else (*vocabulary.separator, *vocabulary.begin)
        if done and not self._ended:
            tokens.append(vocabulary.eos)
            self._ended = True
        return tokens

    def logits(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """(V,) the logits of the coming decision's codes in a model's `row` (N,) over tokens."""
        values: NDArray[np.float32] = row[self.vocabulary.tokens[self.level]]
        return values

    def accept(self, token: int) -> None:
        """Take a choice made elsewhere. Raises ValueError if it is not allowed."""
        place = np.flatnonzero(self.allowed == token)
        if not len(place):
            raise ValueError(f"token {token} is not allowed at level {self.level}")
        self.decoder.accept(int(self._allowed[place[0]]))
