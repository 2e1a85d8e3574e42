"""A reasoner that shortens histories: contexts chosen among their lines, or written freely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.models.answer_decoding import generate_answers, process_answers
from gr2.models.reading import takes_gaps
from gr2.models.reasoner import Reasoner
from gr2.models.selection import Option, SelectionProcessor, selection_options
from gr2.prompts.context import Passage, compression_messages, line_cost, written_lines
from gr2.prompts.render import ItemView, PromptConfig

__all__ = ["Compressing", "Compressor", "Written"]


@dataclass(frozen=True)
class Compressing:
    """How contexts are made.

    Attributes:
        share: tokens of a context, as a share of the history's.
        select: choose among the history's lines; without it, write freely.
        batch: contexts that are generated at once.
        temperature: of sampling; 0 takes the likeliest token.
        samples: contexts of each history.
        ids_only: contexts hold no text.
    """

    share: float = 0.2
    select: bool = True
    batch: int = 64
    temperature: float = 0.0
    samples: int = 1
    ids_only: bool = False


@dataclass(frozen=True)
class Written:
    """A context as the model emitted it.

    `lines` are the context's, oldest first, None where they cost more than the budget, or there are none. `cost` is
    what they take in a prompt. `allowed` is the set that each token was chosen from, empty for free text.
    """

    tokens: tuple[int, ...]
    allowed: list[NDArray[np.int64]]
    lines: tuple[str, ...] | None
    cost: int


class Compressor:
    """Makes contexts by a reasoner; `prompt` says which events of a history are looked at, and how they are written."""

    def __init__(self, reasoner: Reasoner, prompt: PromptConfig, settings: Compressing) -> None:
        self.reasoner, self.settings, self._prompt = reasoner, settings, prompt
        self._costs: dict[str, int] = {}
        self._options: dict[Passage, list[Option]] = {}

    def count(self, text: str) -> int:
        """The number of tokens of a text."""
        if text not in self._costs:
            self._costs[text] = len(self.reasoner.encode(text))
        return self._costs[text]

    def passage(self, history: Sequence[ItemView]) -> Passage:
        """What there is to choose from."""
        return Passage.of(history, self._prompt, self.count, ids_only=self.settings.ids_only)

    def prompt(self, passage: Passage) -> list[int]:
        """The tokens by which a context is asked for."""
        return self.reasoner.encode_chat(
            compression_messages(passage, share=self.settings.share, select=self.settings.select)
        )

    def options(self, passage: Passage) -> list[Option]:
        """The lines that may be chosen."""
        if passage not in self._options:
            self._options[passage] = selection_options(self.reasoner, passage)
        return self._options[passage]

    def write(self, passages: Sequence[Passage], *, seed: int) -> Iterator[tuple[list[int], list[Written]]]:
        """Batch by batch, the places of passages and their contexts, those of one passage side by side.

        What is drawn depends on the arguments and the weights alone.
        """
        prompts = [self.prompt(passage) for passage in passages]
        # Prompts of like length together, since the others are padded.
        order = sorted(range(len(passages)), key=lambda place: (-len(prompts[place]), place))
        step = max(1, self.settings.batch // self.settings.samples)
        for number, first in enumerate(range(0, len(order), step)):
            places = order[first : first + step]
            chosen = [passages[place] for place in places]
            yield places, self._batch(chosen, [prompts[place] for place in places], seed + number)

    def _batch(self, passages: Sequence[Passage], prompts: Sequence[Sequence[int]], seed: int) -> list[Written]:
        settings, model = self.settings, self.reasoner.model
        eos = self.reasoner.vocabulary.eos
        budgets = [passage.budget(settings.share) for passage in passages]
        options = [self.options(passage) for passage in passages] if settings.select else []
        processor = SelectionProcessor(self.reasoner, options, budgets) if settings.select else None
        if processor is not None and takes_gaps(model):
            sequences = process_answers(
                model, prompts, processor, samples=settings.samples, temperature=settings.temperature, seed=seed
            )
        else:
            longest = max((sum(len(each.tokens) for each in every) for every in options), default=max(budgets))
            sequences = generate_answers(
                model, prompts, processor, most=longest + 1, eos=eos,
                samples=settings.samples, temperature=settings.temperature, seed=seed,
            )  # fmt: skip
        written = []
        for row, sequence in enumerate(sequences):
            number = row // settings.samples
            tokens = tuple(sequence[: sequence.index(eos) + 1] if eos in sequence else sequence)
            if processor is not None:
                picks = processor.rows[row].picks
                passage = passages[number]
                written.append(Written(tokens, processor.rows[row].allowed, passage.lines(picks), passage.cost(picks)))
            else:
                written.append(self._read(tokens, passages[number], budgets[number]))
        return written

    def _read(self, tokens: tuple[int, ...], passage: Passage, budget: int) -> Written:
        """A context that was written freely."""
        eos = self.reasoner.vocabulary.eos
        text = str(self.reasoner.tokenizer.decode([token for token in tokens if token != eos]))
        lines = written_lines(text, passage)
        cost = sum(line_cost(line, self.count) for line in lines)
        refused = not lines or cost > budget or tokens[-1] != eos
        return Written(tokens, [], None if refused else lines, cost)
