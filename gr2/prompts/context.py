"""A history in fewer tokens: some of its events, each as its ID alone or as its whole line.

What a compressor chooses among, and two ways to choose without a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gr2.prompts.render import HISTORY, MARK, ItemView, PromptConfig, clean, item_line
from gr2.prompts.semantic_id import BEGIN, END, parse_sid, sid_text

__all__ = [
    "Passage",
    "Pick",
    "cited_codes",
    "compression_messages",
    "covering",
    "line_cost",
    "newest",
    "relevant",
    "truncated",
    "written_lines",
]

Count = Callable[[str], int]
SHORTEN = (
    "Shorten a user's history for a ranker that must find the next purchase. Keep what tells it most, in at most {} "
    "of the tokens."
)
SELECT = "Name the events to keep, newest first: the ID alone, or the whole line."
WRITE = "Write lines, oldest first, and cite items by their IDs."
IDS = re.compile(f"({re.escape(BEGIN)}.*?{re.escape(END)})", re.DOTALL)


@dataclass(frozen=True, order=True)
class Pick:
    """An event that is kept, by its place in the passage; `whole` with title and categories, else the ID alone."""

    event: int
    whole: bool = False


@dataclass(frozen=True)
class Passage:
    """The events that a prompt would show, oldest first, with what their lines cost in tokens.

    `whole` and `brief` (T,) are lines that may be kept, `whole_cost` and `brief_cost` (T,) their tokens in the prompt,
    with the mark before and the line break after them. A compressor is `shown` (T,) lines.
    """

    items: tuple[ItemView, ...]
    shown: tuple[str, ...]
    whole: tuple[str, ...]
    brief: tuple[str, ...]
    whole_cost: tuple[int, ...]
    brief_cost: tuple[int, ...]

    @classmethod
    def of(cls, history: Sequence[ItemView], config: PromptConfig, count: Count, *, ids_only: bool = False) -> Passage:
        """The newest `max_history` events; `count` is the number of tokens of a text.

        With `ids_only` whole lines are no more than IDs: of contexts for a ranker that reads no text.
        """
        items = tuple(history[max(0, len(history) - config.max_history) :])
        shown = tuple(item_line(item, config.title_words) for item in items)
        brief = tuple(sid_text(item.codes) for item in items)
        whole = brief if ids_only else shown
        costs = [tuple(line_cost(line, count) for line in lines) for lines in (whole, brief)]
        return cls(items, shown, whole, brief, *costs)

    @property
    def tokens(self) -> int:
        """What all lines cost."""
        return sum(self.whole_cost)

    def budget(self, share: float) -> int:
        """The tokens that a context may have: that share of all, but enough for one ID."""
        return max(int(share * self.tokens), *self.brief_cost, 0) if self.items else 0

    def cost(self, picks: Iterable[Pick]) -> int:
        """The tokens of a context."""
        return sum((self.whole_cost if pick.whole else self.brief_cost)[pick.event] for pick in picks)

    def lines(self, picks: Iterable[Pick]) -> tuple[str, ...]:
        """The context's lines, oldest first."""
        return tuple((self.whole if pick.whole else self.brief)[pick.event] for pick in sorted(picks))


def line_cost(line: str, count: Count) -> int:
    """The tokens of a line in a prompt's history."""
    return count(f"{MARK}{line}\n")


def compression_messages(passage: Passage, *, share: float, select: bool) -> tuple[dict[str, str], ...]:
    """What a compressor is asked: for events to `select`, or for lines of its own."""
    system = "\n".join([SHORTEN.format(f"{share:.0%}"), SELECT if select else WRITE])
    user = "\n".join([HISTORY, *(MARK + line for line in passage.shown)])
    return {"role": "system", "content": system}, {"role": "user", "content": user}


def written_lines(text: str, passage: Passage) -> tuple[str, ...]:
    """The lines of a context that a model wrote freely, made safe: IDs that the history lacks are taken out.

    So is whatever else could be read as a token of a semantic ID or of a chat template.
    """
    known = set(passage.brief)
    lines = []
    for line in text.splitlines():
        parts = [part if part in known else clean(part) for part in IDS.split(line.removeprefix(MARK))]
        lines.append(" ".join(filter(None, parts)))
    return tuple(filter(None, lines))


def cited_codes(lines: Iterable[str], levels: int, level_size: int) -> list[tuple[int, ...]]:
    """The codes of the items that lines cite, in their order. Raises ValueError on an ID that is none."""
    found = (match for line in lines for match in IDS.findall(line))
    return [parse_sid(text, levels, level_size) for text in found]


def truncated(passage: Passage, budget: int, count: Count) -> tuple[str, ...]:
    """The newest lines that fit, and of the next as many words as fit behind its ID: what a budget does alone."""
    lines: list[str] = []
    for place in reversed(range(len(passage.items))):
        if passage.whole_cost[place] <= budget:
            lines.append(passage.whole[place])
            budget -= passage.whole_cost[place]
            continue
        words = passage.whole[place].split()
        cut = (" ".join(words[:most]) for most in range(len(words) - 1, 0, -1))
        lines += [line for line in cut if line_cost(line, count) <= budget][:1]
        break
    return tuple(reversed(lines))


def newest(passage: Passage, budget: int) -> list[Pick]:
    """The newest events."""
    return _filled(passage, range(len(passage.items) - 1, -1, -1), budget)


def covering(passage: Passage, budget: int) -> list[Pick]:
    """The newest event of each category, then the newest of the others."""
    seen: set[str] = set()
    first: list[int] = []
    rest: list[int] = []
    for place in reversed(range(len(passage.items))):
        leaf = passage.items[place].categories[-1:]
        (rest if seen.issuperset(leaf) and leaf else first).append(place)
        seen.update(leaf)
    return _filled(passage, [*first, *rest], budget)


def relevant(passage: Passage, candidates: Sequence[ItemView], budget: int) -> list[Pick]:
    """The events most like a candidate: by shared categories, words of the title and codes; of equals the newest."""
    order = sorted(
        range(len(passage.items)),
        key=lambda place: (max((_alike(passage.items[place], each) for each in candidates), default=0.0), place),
        reverse=True,
    )
    return _filled(passage, order, budget)


def _filled(passage: Passage, order: Iterable[int], budget: int) -> list[Pick]:
    """IDs of events in that order while they fit, and whole lines for the first of them from what is left."""
    kept: list[int] = []
    for place in order:
        if passage.brief_cost[place] <= budget:
            kept.append(place)
            budget -= passage.brief_cost[place]
    picks = []
    for place in kept:
        more = passage.whole_cost[place] - passage.brief_cost[place]
        picks.append(Pick(place, 0 < more <= budget))
        budget -= more if more <= budget else 0
    return sorted(picks)


def _alike(one: ItemView, other: ItemView) -> float:
    """Shares, from 0 to 1 each, of the categories, the words and the leading codes that two items have in common."""
    words = [set((item.title or "").lower().split()) for item in (one, other)]
    paths = [set(item.categories) for item in (one, other)]
    codes = next(
        (level for level, pair in enumerate(zip(one.codes, other.codes, strict=True)) if pair[0] != pair[1]),
        len(one.codes),
    )
    return _overlap(*words) + _overlap(*paths) + codes / len(one.codes)


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0
