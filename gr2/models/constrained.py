"""Rankings by any causal language model of `transformers`: generation that can only emit each candidate once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gr2.decoding import CandidateTrie
from gr2.decoding.tokens import CodeVocabulary, TokenDecoder

__all__ = ["RankingProcessor", "constrained_log_probs", "copy_sets", "pad_allowed"]


class Row(ABC):
    """One sequence: the allowed set of every token so far, and in `queue` the tokens that must come next.

    Each has its set there: what was forced has no other, what a decoder itself chose does.
    """

    def __init__(self) -> None:
        self.ended = False
        self.allowed: list[NDArray[np.int64]] = []
        self.queue: deque[tuple[int, NDArray[np.int64]]] = deque()

    @abstractmethod
    def take(self, token: int) -> None:
        """Go on by the token that was emitted; whatever follows `eos` is padding. Raises ValueError."""

    def drain(self) -> list[int]:
        """Go on by all tokens that must come next, and return them."""
        tokens = []
        while self.queue and not self.ended:
            tokens.append(self.queue[0][0])
            self.take(tokens[-1])
        return tokens

    def go_on(self, token: int) -> list[int]:
        """Go on by a token that was chosen, and return it and all that must follow. Raises ValueError."""
        self.take(token)
        return [token, *self.drain()]


class RankingRow(Row):
    """A sequence that its decoder ranks in."""

    def __init__(self, stream: TokenDecoder) -> None:
        super().__init__()
        self.stream = stream
        self.refill()

    def refill(self, chosen: NDArray[np.int64] | None = None) -> None:
        """Queue the decoder's tokens; `chosen` is the set that the first was chosen from."""
        tokens = self.stream.next()
        sets = [np.array([token]) for token in tokens]
        if chosen is not None:
            sets[0] = chosen
        self.queue.extend(zip(tokens, sets, strict=True))

    def decide(self, logits: NDArray[np.float32], number: int) -> None:
        """Choose by a model's `logits` (N,) over tokens, and queue the choice, or `eos` if there is none."""
        allowed = self.stream.allowed
        code = self.stream.decoder.push(self.stream.logits(logits), row=number)
        self.refill(allowed if code >= 0 else None)

    def stop(self) -> None:
        """Allow nothing but `eos`."""
        self.stream.decoder.stop()
        self.refill()

    def take(self, token: int) -> None:
        """Go on by the token that was emitted; whatever follows `eos` is padding. Raises ValueError."""
        if self.ended:
            return
        if not self.queue:
            allowed = self.stream.allowed
            self.stream.accept(token)
            self.allowed.append(allowed)
            self.refill()
            self.queue.popleft()
            return
        if token != self.queue[0][0]:
            raise ValueError(f"token {token} is not allowed; expected {self.queue[0][0]}")
        self.allowed.append(self.queue.popleft()[1])
        self.ended = not self.queue and self.stream.decoder.done


class RankingProcessor:
    """A `LogitsProcessor` for `model.generate`: each row emits its request's candidates, each once, and then `eos`.

    Row r belongs to request r // (rows / requests), as with `num_return_sequences`. A processor serves one call of
    `generate`, without beams. By `choose`, the next code is chosen by

    - "model": `generate`'s own rule, greedy or sampling, among the allowed tokens. With `top_k`, `top_p` or the like it
      samples from less than `allowed` says: turn them off (`top_k=0`) where log-probabilities matter;
    - "greedy", "sample": CandidateDecoder under the same name, with `temperature` and, for row r, `seed + r`; nothing
      else is left to `generate`.

    A row whose allowed tokens are all masked ends with `eos`; its ranking is completed by scores.
    """

    def __init__(
        self,
        tries: Sequence[CandidateTrie],
        vocabulary: CodeVocabulary,
        *,
        choose: Literal["model", "greedy", "sample"] = "model",
        seed: int = 0,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> None:
        if choose not in ("model", "greedy", "sample"):
            raise ValueError(f"choose must be 'model', 'greedy' or 'sample', got {choose!r}")
        self.tries, self.vocabulary, self.choose = list(tries), vocabulary, choose
        self._seed, self._temperature, self._top_n = seed, temperature, top_n
        self.rows: list[RankingRow] = []
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The `scores` (B, N) of the next tokens, -inf where they are not allowed, after `input_ids` (B, T).

        Raises ValueError on NaN and +inf, naming row and column, on tokens that were not allowed, and on rows that are
        not those of the call before, longer by one token.
        """
        self._advance(input_ids)
        return self.choices(scores)

    def choices(self, scores: Tensor) -> Tensor:
        """The `scores` (B, N) of each row's next token, -inf where it is not allowed. Raises ValueError as a call does.

        A row that is all masked is thereby stopped.
        """
        bad = torch.isnan(scores) | (scores == torch.inf)
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(f"logits row {row} column {column} is {scores[row, column].item()}")
        result = torch.full_like(scores, -torch.inf)
        undecided = [number for number, row in enumerate(self.rows) if not row.queue and not row.ended]
        if self.choose == "model":
            self._leave(undecided, scores, result)
        else:
            for number in undecided:
                self.rows[number].decide(scores[number].detach().float().cpu().numpy(), number)
        # What must come next comes, whatever other processors say.
        eos = self.vocabulary.eos
        forced = [
            (number, eos if row.ended else row.queue[0][0])
            for number, row in enumerate(self.rows)
            if row.ended or row.queue
        ]
        if forced:
            result[tuple(torch.tensor(forced, device=scores.device).T)] = 0.0
        return result

    @property
    def allowed(self) -> list[list[NDArray[np.int64]]]:
        """For each row, the set allowed to each of its tokens that the processor has seen, `eos` at most the last."""
        return [row.allowed for row in self.rows]

    def rankings(
        self, sequences: Tensor, scores: Sequence[NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.int32]]:
        """The ranking (K,) of each row, from what `generate` returned.

        Candidates that were not emitted follow by the row's `scores` (K,), as in CandidateDecoder.ranking, whose errors
        it raises.
        """
        if self._seen is None or not torch.equal(sequences, self._seen):
            self._advance(sequences)
        tails = [None] * len(self.rows) if scores is None else scores
        return [row.stream.decoder.ranking(tail) for row, tail in zip(self.rows, tails, strict=True)]

    def _advance(self, ids: Tensor) -> None:
        """Take in the tokens since the call before."""
        if self._seen is None:
            self.start(len(ids))
        elif ids.shape[1] != self._seen.shape[1] + 1 or not torch.equal(ids[:, :-1], self._seen):
            raise ValueError("a processor serves one call of generate, without beams; make a new one for each")
        else:
            for number, (row, token) in enumerate(zip(self.rows, ids[:, -1].tolist(), strict=True)):
                try:
                    row.take(token)
                except ValueError as error:
                    raise ValueError(f"row {number}: {error}") from error
        self._seen = ids

    def start(self, count: int) -> None:
        """Make `count` rows, as the first call does. Raises ValueError if they do not fit the requests."""
        if not self.tries or count % len(self.tries):
            raise ValueError(f"rows must be a multiple of the {len(self.tries)} requests, got {count}")
        mode: Literal["greedy", "sample"] = "sample" if self.choose == "sample" else "greedy"
        for number in range(count):
            trie = self.tries[number * len(self.tries) // count]
            stream = TokenDecoder(
                trie,
                self.vocabulary,
                mode=mode,
                seed=self._seed + number,
                temperature=self._temperature,
                top_n=self._top_n,
            )
            self.rows.append(self._row(stream))

    def _row(self, stream: TokenDecoder) -> RankingRow:
        return RankingRow(stream)

    def _leave(self, numbers: Sequence[int], scores: Tensor, result: Tensor) -> None:
        """Let `generate` choose among the allowed tokens of these rows; a row whose tokens are all masked stops."""
        if not numbers:
            return
        values = copy_sets(numbers, [self.rows[number].stream.allowed for number in numbers], scores, result)
        for number, masked in zip(numbers, (values == -torch.inf).all(1).tolist(), strict=True):
            if masked:
                self.rows[number].stop()


def copy_sets(numbers: Sequence[int], sets: Sequence[NDArray[np.int64]], scores: Tensor, result: Tensor) -> Tensor:
    """Copy the `scores` (B, N) of the tokens in each row's set to `result` (B, N); return them, (n, M), padded.

    `numbers` (n,) are the rows. The padding repeats a set's first token.
    """
    # All rows at once: on a GPU each call costs more than the work.
    index = np.repeat([each[:1] for each in sets], max(map(len, sets)), axis=1)
    for row, each in zip(index, sets, strict=True):
        row[: len(each)] = each
    place = torch.tensor(numbers, device=scores.device)[:, None], torch.from_numpy(index).to(scores.device)
    values = scores[place]
    result[place] = values
    return values


def pad_allowed(allowed: Sequence[Sequence[NDArray[np.int64]]], width: int) -> tuple[Tensor, Tensor]:
    """The recorded sets as one array: tokens (B, width, M) int64, padded with 0, and their numbers (B, width) int64.

    Columns past a row's sets have none.
    """
    counts = torch.zeros(len(allowed), width, dtype=torch.int64)
    most = max((len(tokens) for row in allowed for tokens in row), default=1)
    index = torch.zeros(len(allowed), width, most, dtype=torch.int64)
    for number, row in enumerate(allowed):
        for column, tokens in enumerate(row):
            counts[number, column] = len(tokens)
            index[number, column, : len(tokens)] = torch.from_numpy(tokens)
    return index, counts


def constrained_log_probs(
    logits: Tensor, tokens: Tensor, index: Tensor, counts: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """(B, T) log-probabilities of `tokens` (B, T) under the policy that generated them, differentiable.

    They are log softmax(logits / temperature)[token] over the allowed set alone, `logits` (B, T, N) being those that
    predict the tokens, `index` (B, T, M) and `counts` (B, T) the sets from `pad_allowed`. Columns without a set are 0.
    """
    inside = torch.arange(index.shape[-1], device=index.device) < counts[..., None]
    scaled = logits.gather(-1, index) / temperature
    chosen = logits.gather(-1, tokens[..., None]).squeeze(-1) / temperature
    # A row of -inf alone would give NaN gradients.
    present = counts > 0
    total = scaled.masked_fill(~inside & present[..., None], -torch.inf).logsumexp(-1)
    return torch.where(present, chosen - total, 0.0)
