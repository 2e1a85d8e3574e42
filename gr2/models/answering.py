"""Answers of a reasoner: an explanation of its own, then a ranking that holds each candidate once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from gr2.decoding import CandidateTrie
from gr2.decoding.tokens import TokenDecoder
from gr2.models.answer_grammar import CLOSED, ESCAPED, FIRST, FORBIDDEN, AnswerGrammar
from gr2.models.constrained import RankingProcessor, Row
from gr2.models.reasoner import Reasoner
from gr2.progress import track
from gr2.prompts.answer import Answer, AnswerError, parse_answer
from gr2.prompts.render import Prompt, Slate

__all__ = ["AnswerProcessor", "Answered", "Answering", "answers", "answers_by_batch"]


@dataclass(frozen=True)
class Answering:
    """How a reasoner is asked.

    Attributes:
        constrained: allow only what an answer may hold, which makes every answer valid.
        reasoning: an explanation before the ranking.
        max_reasoning: tokens of an explanation; of a free answer, what it may be longer than without one.
        batch: answers that are generated at once.
        temperature: of sampling; 0 takes the likeliest token.
        samples: answers for each prompt.
        seed: of sampling.
    """

    constrained: bool = True
    reasoning: bool = True
    max_reasoning: int = 200
    batch: int = 32
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_reasoning", "batch", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.samples > 1 and not self.temperature:
            raise ValueError(f"{self.samples} samples need a temperature above 0: without one they are all the same")

    @property
    def limit(self) -> int:
        """The most tokens of an explanation, 0 without one."""
        return self.max_reasoning if self.reasoning else 0


@dataclass(frozen=True)
class Answered:
    """What a reasoner answered.

    Attributes:
        text: without the end of the turn.
        tokens: with it, if it came.
        answer: as parsed, or why it was refused.
        ranking: (K,) int32 candidate positions, best first; the incoming order where the answer was refused.
        allowed: the set that each token was chosen from, if the answer was constrained. The sets of an explanation's
            tokens are the grammar's arrays `allowed` themselves.
    """

    text: str
    tokens: tuple[int, ...]
    answer: Answer | AnswerError
    ranking: NDArray[np.int32]
    allowed: list[NDArray[np.int64]] = field(default_factory=list)


class AnswerRow(Row):
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
        self._masks: Tensor | None = None

    def _row(self, stream: TokenDecoder) -> Row:
        return AnswerRow(stream, self.grammar, self.max_reasoning)

    def _leave(self, row: Row, number: int, scores: Tensor, result: Tensor) -> None:
        if not (isinstance(row, AnswerRow) and row.explains):
            super()._leave(row, number, scores, result)
            return
        if self._masks is None:
            forbidden = torch.from_numpy(self.grammar.moves == FORBIDDEN)
            self._masks = torch.zeros(forbidden.shape).masked_fill(forbidden, -torch.inf).to(scores)
        torch.add(scores[number], self._masks[row.state], out=result[number])


def answers(
    reasoner: Reasoner,
    prompts: Sequence[Prompt],
    slates: Sequence[Slate],
    *,
    constrained: bool = True,
    reasoning: bool = True,
    max_reasoning: int = 200,
    batch: int = 32,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    grammar: AnswerGrammar | None = None,
) -> list[Answered]:
    """The answers to all prompts, those of one prompt side by side; `slates` are what the prompts were made of.

    The options are those of Answering; `grammar` is the reasoner's, which is made here if it is not given.
    """
    asking = Answering(constrained, reasoning, max_reasoning, batch, temperature, samples, seed)
    found: dict[int, Answered] = {}
    for rows, answered in answers_by_batch(reasoner, prompts, slates, asking, grammar=grammar):
        found.update(zip(rows, answered, strict=True))
    return [found[row] for row in range(len(found))]


def answers_by_batch(
    reasoner: Reasoner,
    prompts: Sequence[Prompt],
    slates: Sequence[Slate],
    asking: Answering,
    *,
    start: int = 0,
    grammar: AnswerGrammar | None = None,
) -> Iterator[tuple[list[int], list[Answered]]]:
    """Batch by batch from batch `start`, rows and their answers: sample s of prompt p is row p * samples + s.

    Batches are of prompts of like length. They, and what is drawn in them, depend on the arguments alone, so that a
    loop may go on where another ended.
    """
    grammar = grammar or AnswerGrammar(reasoner)
    encoded = [reasoner.encode_chat(prompt.messages) for prompt in prompts]
    order = sorted(range(len(encoded)), key=lambda row: (-len(encoded[row]), row))
    step = max(1, asking.batch // asking.samples)
    batches = [order[first : first + step] for first in range(0, len(order), step)]
    done = sum(map(len, batches[:start])) * asking.samples
    began, tokens = time.monotonic(), 0
    with track(len(prompts) * asking.samples, "answers", unit="answers", start=done) as bar:
        for number, batch in enumerate(batches[start:], start):
            found = answer_batch(
                reasoner,
                grammar,
                [encoded[row] for row in batch],
                [slates[row] for row in batch],
                asking,
                seed=asking.seed + number,
            )
            yield [row * asking.samples + sample for row in batch for sample in range(asking.samples)], found
            tokens += sum(len(answered.tokens) for answered in found)
            bar.advance(len(found), **{"tokens/s": tokens / (time.monotonic() - began)})


def answer_batch(
    reasoner: Reasoner,
    grammar: AnswerGrammar,
    prompts: Sequence[Sequence[int]],
    slates: Sequence[Slate],
    asking: Answering,
    *,
    seed: int,
) -> list[Answered]:
    """The answers of one call of `generate` to prompts given as tokens, those of one prompt side by side."""
    codes = [[item.codes for item in slate.candidates] for slate in slates]
    if not all(codes):
        raise ValueError("a slate has no candidates: there is nothing to rank")
    level_size = reasoner.sids.level_size
    tries = [
        CandidateTrie(np.array(each, dtype=np.uint16), np.ones(len(each), dtype=np.bool_), level_size) for each in codes
    ]
    processor = AnswerProcessor(tries, grammar, max_reasoning=asking.limit) if asking.constrained else None
    most = grammar.length(max(map(len, codes)), asking.limit)
    sequences = _generate(reasoner, prompts, processor, asking, most=most, seed=seed)
    rankings = None if processor is None else processor.rankings(sequences)
    result = []
    for row, tokens in enumerate(sequences[:, max(map(len, prompts)) :].tolist()):
        candidates = codes[row // asking.samples]
        text = grammar.text(tokens)
        answer = _parsed(text, candidates, level_size, asking)
        order = range(len(candidates)) if isinstance(answer, AnswerError) else answer.ranking
        ranking = np.array(order, dtype=np.int32) if rankings is None else rankings[row]
        allowed = [] if processor is None else processor.allowed[row]
        result.append(Answered(text, grammar.turn(tokens), answer, ranking, allowed))
    return result


def _parsed(
    text: str, candidates: Sequence[tuple[int, ...]], level_size: int, asking: Answering
) -> Answer | AnswerError:
    try:
        return parse_answer(text, candidates, level_size=level_size, reasoning=asking.reasoning)
    except AnswerError as error:
        return error


def _generate(
    reasoner: Reasoner,
    prompts: Sequence[Sequence[int]],
    processor: AnswerProcessor | None,
    asking: Answering,
    *,
    most: int,
    seed: int,
) -> Tensor:
    """(B, T) prompts, padded on the left, and what follows them in up to `most` tokens."""
    model, eos = reasoner.model, reasoner.vocabulary.eos
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), eos)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention[row, width - len(prompt) :] = 1
    # A checkpoint's own defaults would narrow what is sampled from.
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=most,
        do_sample=asking.temperature > 0,
        temperature=asking.temperature or 1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        num_return_sequences=asking.samples,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            sequences: Tensor = model.generate(  # type: ignore[operator]
                ids.to(model.device),
                attention_mask=attention.to(model.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([] if processor is None else [processor]),
            )
    finally:
        model.train(training)
    return sequences.cpu()
