"""Titles that a text cites: of items that its writer was not shown, or beside the ID of another item."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from gr2.catalog import Catalog
from gr2.prompts.render import clean
from gr2.prompts.semantic_id import BEGIN, END

__all__ = ["Titles"]

# Fewer words may be a description that happens to be a title, too.
LEAST_WORDS = 4
WORD = re.compile(r"[^\W_]+")
CITED = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
BESIDE = re.compile(r"[\s(:,|\"'\u2018\u201c\u2013\u2014-]*")  # what may stand between an ID and its title


class Titles:
    """Finds the titles of a catalogue, of at least `LEAST_WORDS` words, in texts; case and punctuation do not count.

    Titles are as prompts show them: the first `shown` words, 0 for all.
    """

    def __init__(self, catalog: Catalog, *, shown: int = 0) -> None:
        self._catalog, self._shown = catalog, shown
        starts = ((hash(words[:LEAST_WORDS]), item) for item in range(len(catalog)) if (words := self._words(item)))
        table = np.array(list(starts), dtype=np.int64).reshape(-1, 2)
        self._hash, self._item = table[np.argsort(table[:, 0], kind="stable")].T

    def untrue(self, text: str, shown: Mapping[str, int]) -> str | None:
        """Why the titles in `text` are not those of items that were `shown`, by their semantic IDs; None if they are.

        A title right behind an ID must be that item's.
        """
        known = {" ".join(self._all_words(item)) for item in shown.values()}
        places = {match.end(): match.group() for match in CITED.finditer(text)}
        plain = CITED.sub(lambda match: " " * len(match.group()), text)
        for start, words, items in self._found(plain):
            title = " ".join(words)
            if not any(f" {title} " in f" {other} " for other in known):
                return f"unknown-title: {title!r} is of no item in the history or among the candidates"
            beside = next((cited for end, cited in places.items() if BESIDE.fullmatch(text, end, start)), None)
            own = shown.get(beside or "")
            if own is not None and own not in items and f" {title} " not in f" {' '.join(self._all_words(own))} ":
                return f"wrong-title: {title!r} is not the title of {beside}"
        return None

    def _found(self, text: str) -> Iterator[tuple[int, tuple[str, ...], set[int]]]:
        """Where each title starts, its words, and the items that have it; the longest where several start."""
        matches = list(WORD.finditer(text))
        words = tuple(match.group().casefold() for match in matches)
        for place in range(len(words) - LEAST_WORDS + 1):
            key = hash(words[place : place + LEAST_WORDS])
            low, high = (np.searchsorted(self._hash, key, side=side) for side in ("left", "right"))
            items = self._item[low:high].tolist()
            whole = [(own, item) for item in items if words[place : place + len(own := self._words(item))] == own]
            if whole:
                longest = max((own for own, _ in whole), key=len)
                yield matches[place].start(), longest, {item for own, item in whole if own == longest}

    def _words(self, item: int) -> tuple[str, ...]:
        """The words of a title that is long enough to be known again, none of another."""
        words = self._all_words(item)
        return words if len(words) >= LEAST_WORDS else ()

    def _all_words(self, item: int) -> tuple[str, ...]:
        return tuple(word.casefold() for word in WORD.findall(clean(self._catalog.title[item], self._shown)))
