"""Answers of a reasoner: an explanation of its own, then a ranking that holds each candidate once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.config import refuse_below
from gr2.decoding import CandidateTrie
from gr2.models.answer_decoding import Written, generate_answers, process_answers
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answer_processor import AnswerProcessor
from gr2.models.reading import takes_gaps
from gr2.models.reasoner import Reasoner
from gr2.progress import track
from gr2.prompts.answer import Answer, AnswerError, parse_answer
from gr2.prompts.render import Prompt, Slate

__all__ = ["AnswerProcessor", "Answered", "Answering", "Writer", "answers", "answers_by_batch"]


class Writer(Protocol):
    """Writes explanations: `samples` for each prompt, side by side, of at most `most` tokens."""

    @property
    def sets(self) -> Sequence[NDArray[np.int64]]:
        """The sets that tokens are chosen from."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, samples: int, temperature: float, most: int
    ) -> Sequence[Written]:
        """The explanations after these prompts, given as tokens up to where an explanation begins."""


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
        refuse_below(self, 1, "max_reasoning", "batch", "samples")
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
    writer: Writer | None = None,
) -> list[Answered]:
    """The answers to one batch of prompts given as tokens, those of one prompt side by side.

    A `writer` writes the explanations of constrained answers in the model's place. Raises ValueError where it cannot.
    """
    codes = [[item.codes for item in slate.candidates] for slate in slates]
    if not all(codes):
        raise ValueError("a slate has no candidates: there is nothing to rank")
    level_size = reasoner.sids.level_size
    tries = [
        CandidateTrie(np.array(each, dtype=np.uint16), np.ones(len(each), dtype=np.bool_), level_size) for each in codes
    ]
    processor = AnswerProcessor(tries, grammar, max_reasoning=asking.limit) if asking.constrained else None
    options: dict[str, Any] = {"samples": asking.samples, "temperature": asking.temperature, "seed": seed}
    if writer is not None:
        if processor is None or not asking.limit or not takes_gaps(reasoner.model):
            raise ValueError("a writer writes explanations of constrained answers, of models that attend to everything")
        opened = [[*prompt, *grammar.opening] for prompt in prompts]
        options["written"] = writer(opened, samples=asking.samples, temperature=asking.temperature, most=asking.limit)
    if processor is not None and takes_gaps(reasoner.model):
        sequences = process_answers(reasoner.model, prompts, processor, **options)
    else:
        most = grammar.length(max(map(len, codes)), asking.limit)
        eos = grammar.vocabulary.eos
        sequences = generate_answers(reasoner.model, prompts, processor, most=most, eos=eos, **options)
    result = []
    for row, tokens in enumerate(sequences):
        candidates = codes[row // asking.samples]
        text = grammar.text(tokens)
        answer = _parsed(text, candidates, level_size, asking)
        order = range(len(candidates)) if isinstance(answer, AnswerError) else answer.ranking
        ranking = np.array(order, dtype=np.int32)
        allowed: list[NDArray[np.int64]] = []
        if processor is not None:
            ranking, allowed = processor.rows[row].stream.decoder.ranking(), processor.rows[row].allowed
        result.append(Answered(text, grammar.turn(tokens), answer, ranking, allowed))
    return result


def _parsed(
    text: str, candidates: Sequence[tuple[int, ...]], level_size: int, asking: Answering
) -> Answer | AnswerError:
    try:
        return parse_answer(text, candidates, level_size=level_size, reasoning=asking.reasoning)
    except AnswerError as error:
        return error
