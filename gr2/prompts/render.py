"""Prompts: a user's history and the candidates as chat messages, within a budget of tokens."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gr2.catalog import Catalog
from gr2.config import LATER, refuse_below
from gr2.errors import ConfigError
from gr2.prompts.semantic_id import END, parse_sid, sid_text

__all__ = [
    "CANDIDATES",
    "HISTORY",
    "MARK",
    "ItemView",
    "Prompt",
    "PromptConfig",
    "Slate",
    "clean",
    "history_lines",
    "item_line",
    "read_candidates",
    "render",
    "slate_of",
]

HISTORY, CANDIDATES, MARK = "History, oldest first:", "Candidates:", "- "
GOAL = (
    "You are an e-commerce analyst. Re-rank the candidates by how likely each is to be the user's next purchase.",
    "Weigh the whole history and all candidates together.",
)
KNOWLEDGE = (
    "Purchases follow one another: refills of what runs out, complements of what was bought, further steps of a "
    "routine, the same brand, similar prices."
)
STEPS = (
    "Explain in three steps: the pattern in the history, the types of product that complement it, the candidates "
    "that match. Cite items by their IDs."
)
RANKS = "Each candidate's rank is the place that a first ranker gave it."
ANSWER = 'Answer in JSON, with the IDs of all candidates, best first: {%s"recommendations": ["ID", ...]}'
EXPLANATION = '"explanation": "...", '

# What a chat template or a tokenizer could take for a token of its own is written with these.
ANGLES = re.compile("[<>\uff1c\uff1e\ufe64\ufe65\u226e\u226f]")
BRACKETED = re.compile(r"\[/?[A-Z_]+\]")
LONGEST_TEXT = 500


@dataclass(frozen=True)
class ItemView:
    """What a prompt says of an item. `categories` is a path with the leaf last."""

    codes: tuple[int, ...]
    title: str | None
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Slate:
    """A request: the history, oldest first, and the candidates in the pre-ranker's order.

    `context` are lines that a prompt shows in the history's place (see `gr2.prompts.context`), None for the history.
    """

    history: tuple[ItemView, ...]
    candidates: tuple[ItemView, ...]
    context: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are written.

    Attributes:
        knowledge: prime with domain knowledge, that is with how purchases follow one another.
        reasoning: ask for an explanation before the ranking; without it, for the ranking alone.
        incoming_rank: say each candidate's rank in the pre-ranker's order.
        candidates_first: candidates before the history, so that a slate's KV cache serves all users who see it.
        max_history: events that the model sees, the most recent ones.
        title_words: words of a title; 0 is all of them.
        budget: tokens of the whole prompt. The oldest history is dropped to keep it, candidates never are.
        compressor: whose shorter contexts stand for the histories: `compress` for this run's, or a folder with that
            stage's artefact; "" is none.
    """

    knowledge: bool = True
    reasoning: bool = True
    incoming_rank: bool = False
    candidates_first: bool = False
    max_history: int = 20
    title_words: int = 12
    budget: int = 2048
    compressor: str = field(default="", metadata=LATER)

    def __post_init__(self) -> None:
        refuse_below(self, 0, "max_history", "title_words")
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1, got {self.budget}")

    @classmethod
    def of(cls, config: object) -> Self:
        """The part of a stage's configuration that is about prompts: its keys have the names of these."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Prompt:
    """Chat messages, of the roles system and user; `kept` events of the history are in them, and `dropped` are those
    within `max_history` that the budget had no room for.

    Of a slate with a context, what is counted are its lines.
    """

    messages: tuple[dict[str, str], ...]
    kept: int
    dropped: int


def slate_of(catalog: Catalog, codes: NDArray[np.uint16], history: Sequence[int], candidates: Sequence[int]) -> Slate:
    """The slate of item indices, `codes` (N, L) being those of the catalogue."""

    def view(item: int) -> ItemView:
        return ItemView(tuple(codes[item].tolist()), catalog.title[item], tuple(catalog.categories[item]))

    return Slate(tuple(map(view, history)), tuple(map(view, candidates)))


def render(
    slate: Slate,
    config: PromptConfig,
    count: Callable[[Sequence[dict[str, str]]], int] | None = None,
    *,
    order: Sequence[int] | None = None,
) -> Prompt:
    """The prompt of a slate; `count` is the number of tokens of messages, without which the budget is not kept.

    Candidates are listed in the slate's order, or in `order`, a permutation of their places in it. Raises ConfigError
    if the candidates alone exceed the budget.
    """
    lines_of_history = history_lines(slate, config)
    most = len(lines_of_history)
    system = _system(config)
    lines = [
        MARK + item_line(item, config.title_words) + (f" | rank {rank}" if config.incoming_rank else "")
        for rank, item in enumerate(slate.candidates, 1)
    ]
    candidates = [CANDIDATES, *(lines if order is None else (lines[place] for place in order))]
    history = [MARK + line for line in lines_of_history]

    def messages(kept: int) -> tuple[dict[str, str], ...]:
        blocks = [[HISTORY, *history[most - kept :]], candidates]
        user = "\n\n".join("\n".join(block) for block in (blocks[::-1] if config.candidates_first else blocks))
        return {"role": "system", "content": system}, {"role": "user", "content": user}

    if count is not None and count(messages(most)) > config.budget:
        most_that_fit = _largest(most, lambda kept: count(messages(kept)) <= config.budget)
        if most_that_fit < 0:
            raise ConfigError(
                f"the {len(slate.candidates)} candidates take {count(messages(0))} tokens without any history, more "
                f"than the budget of {config.budget}; raise `budget`, or lower `title_words`"
            )
        return Prompt(messages(most_that_fit), most_that_fit, most - most_that_fit)
    return Prompt(messages(most), most, 0)


def history_lines(slate: Slate, config: PromptConfig) -> tuple[str, ...]:
    """What a prompt says of the history if there is room, oldest first: its newest events' lines, or the context."""
    if slate.context is not None:
        return slate.context
    newest = slate.history[max(0, len(slate.history) - config.max_history) :]
    return tuple(item_line(item, config.title_words) for item in newest)


def read_candidates(prompt: Prompt, levels: int, level_size: int) -> list[tuple[int, ...]]:
    """The codes of a prompt's candidates, in their order. Raises ValueError if it holds none."""
    lines = prompt.messages[-1]["content"].split("\n")
    if CANDIDATES not in lines:
        raise ValueError(f"expected a line {CANDIDATES!r} in the user's message")
    found = []
    for line in lines[lines.index(CANDIDATES) + 1 :]:
        if not line.startswith(MARK):
            break
        text, end, _ = line.removeprefix(MARK).partition(END)
        found.append(parse_sid(text + end, levels, level_size))
    return found


def item_line(item: ItemView, title_words: int = 0) -> str:
    """The one line by which prompts name an item: ID, title, category path."""
    parts = [clean(item.title, title_words), " > ".join(filter(None, map(clean, item.categories)))]
    return " ".join([sid_text(item.codes), " | ".join(filter(None, parts))]).rstrip()


@lru_cache(maxsize=65_536)
def clean(text: str | None, words: int = 0) -> str:
    """Catalogue text that can be trusted in a prompt: its first `words` words, for 0 all, up to 500 characters.

    Without HTML entities, line breaks, what cannot be printed, and what could be read as a token of a semantic ID or of
    a chat template.
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in html.unescape(text or ""))
    plain = BRACKETED.sub(" ", ANGLES.sub(" ", plain))
    return " ".join(plain.split()[: words or None])[:LONGEST_TEXT].rstrip()


def _system(config: PromptConfig) -> str:
    rules = [*GOAL]
    if config.knowledge:
        rules.append(KNOWLEDGE)
    if config.incoming_rank:
        rules.append(RANKS)
    if config.reasoning:
        rules.append(STEPS)
    return "\n".join([*rules, ANSWER % (EXPLANATION if config.reasoning else "")])


def _largest(below: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `below` that fits, -1 if none does; all that are smaller fit, too."""
    low, high = -1, below
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
