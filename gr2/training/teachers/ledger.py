"""What the data holds: facts of a list that a trace may cite, and whether a claim is one of them.

Facts about a list are counted without the users of its own fold, the claims made of them are checked against all users
but its own: a claim that something was bought by n others or more stays true when more others are counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gr2.data.dataset import Dataset
from gr2.prompts.render import clean
from gr2.training.teachers.attributes import title_words
from gr2.training.teachers.claims import Claim, Statement, plain_name

__all__ = ["PRICE_BAND", "Case", "Ledger"]

PRICE_BAND = 1.25  # prices are alike within this factor


@dataclass(frozen=True)
class Case:
    """A list as claims speak of it, in item indices: its user, the history that is shown (oldest first), and the
    candidates in incoming order.
    """

    user: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]


class Ledger:
    """The training events, the catalogue and the semantic IDs (N, L) of a data set.

    Of titles the first `shown` words count, as a prompt shows them; 0: all.
    """

    def __init__(self, dataset: Dataset, codes: NDArray[np.uint16], *, shown: int = 0) -> None:
        self.dataset, self.catalog, self.shown = dataset, dataset.catalog, shown
        self.codes = [tuple(row) for row in codes.tolist()]

    @cached_property
    def _events(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The user and the item of every training event."""
        lengths = self.dataset.lengths - 2
        user = np.repeat(np.arange(self.dataset.users), lengths)
        place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return user, self.dataset.items[self.dataset.offsets[user] + place]

    @cached_property
    def _buyers(self) -> list[NDArray[np.int64]]:
        """For each item the users who have it, ascending."""
        user, item = self._events
        pairs = np.unique(item.astype(np.int64) * self.dataset.users + user)
        bounds = np.searchsorted(pairs, np.arange(1, len(self.catalog)) * self.dataset.users)
        return [part % self.dataset.users for part in np.split(pairs, bounds)]

    @cached_property
    def types(self) -> list[str]:
        """For each item the name of its most special category, "" where it has none."""
        return [plain_name(clean(path[-1])) if path else "" for path in self.catalog.categories]

    @cached_property
    def _takers(self) -> dict[str, NDArray[np.int64]]:
        """For each type the users who have an item of it, ascending."""
        user, item = self._events
        number = {name: place for place, name in enumerate(dict.fromkeys(self.types))}
        kind = np.array([number[name] for name in self.types])
        pairs = np.unique(kind[item] * self.dataset.users + user)
        bounds = np.searchsorted(pairs, np.arange(1, len(number)) * self.dataset.users)
        parts = np.split(pairs, bounds)
        return {name: parts[place] % self.dataset.users for name, place in number.items() if name}

    @cached_property
    def words(self) -> list[frozenset[str]]:
        """For each item the words of its title that are shown."""
        return [title_words(clean(title, self.shown)) for title in self.catalog.title]

    @cached_property
    def rarity(self) -> dict[str, float]:
        """For each word -log of the share of titles that have it."""
        counts = Counter(word for words in self.words for word in words)
        return {word: -math.log(count / len(self.words)) for word, count in counts.items()}

    def buyers(self, item: int) -> NDArray[np.int64]:
        """The users whose training events hold the item, ascending."""
        return self._buyers[item]

    def both(self, item: int, other: int) -> NDArray[np.int64]:
        """The users who have both items."""
        return np.intersect1d(self.buyers(item), self.buyers(other), assume_unique=True)

    def takers(self, item: int, name: str) -> NDArray[np.int64]:
        """The users who have the item and one of the type `name`."""
        return np.intersect1d(self.buyers(item), self._takers.get(name, self.buyers(item)[:0]), assume_unique=True)

    def holds(self, statement: Statement, case: Case) -> bool:
        """Whether every claim of the statement is true of the case and cites only what the case holds."""
        item = None
        if statement.item is not None:
            item = self._find(statement.item, case.candidates)
            if item is None:
                return False
        return all(self._true(claim, item, case) for claim in statement.claims)

    def _find(self, codes: tuple[int, ...], items: Sequence[int]) -> int | None:
        return next((item for item in reversed(items) if self.codes[item] == codes), None)

    def _true(self, claim: Claim, item: int | None, case: Case) -> bool:
        other = None if claim.other is None else self._find(claim.other, case.history)
        if (claim.other is not None and other is None) or (item is None) != (claim.kind in HISTORY):
            return False
        if claim.kind in HISTORY:
            return self._true_of_history(claim, other, case)
        assert item is not None
        if claim.kind == "popularity":
            return _others(self.buyers(item), case) >= claim.count >= 1
        if claim.kind == "listing":
            return case.candidates.index(item) + 1 == claim.count
        assert other is not None
        return self._true_of_pair(claim, item, other, case)

    def _true_of_history(self, claim: Claim, other: int | None, case: Case) -> bool:
        total = len(case.history)
        if claim.kind == "last":
            return bool(case.history) and other == case.history[-1]
        if claim.kind == "no-type":
            return self.none_stands_out(case)
        if claim.kind == "type-together":
            assert other is not None
            return _others(self.takers(other, claim.name), case) >= claim.count >= 1
        if claim.kind == "category-share":
            count = sum(self.types[past] == claim.name for past in case.history)
        else:
            brands = [self.catalog.brand[past] for past in case.history]
            count = max((brands.count(brand) for brand in brands if brand), default=0)
        return (count, total) == (claim.count, claim.total) and count > 0

    def _true_of_pair(self, claim: Claim, item: int, other: int, case: Case) -> bool:
        if claim.kind == "together":
            return _others(self.both(item, other), case) >= claim.count >= 1
        if claim.kind == "category":
            return claim.name != "" and self.types[item] == self.types[other] == claim.name
        if claim.kind == "brand":
            return bool(self.catalog.brand[item]) and self.catalog.brand[item] == self.catalog.brand[other]
        if claim.kind == "price":
            return self.alike_in_price(item, other)
        if claim.kind == "prefix":
            return self.shared_codes(item, other) == claim.count >= 1
        return claim.kind == "title" and claim.name in self.words[item] & self.words[other]

    def none_stands_out(self, case: Case) -> bool:
        """Whether no other user has both an item of the history and one of a candidate's type."""
        types = {self.types[item] for item in case.candidates} - {""}
        return not any(_others(self.takers(past, name), case) for past in set(case.history) for name in types)

    def alike_in_price(self, item: int, other: int) -> bool:
        """Whether both prices are known and within the factor `PRICE_BAND`."""
        low, high = sorted((self.catalog.price[item] or 0.0, self.catalog.price[other] or 0.0))
        return low > 0 and high <= PRICE_BAND * low

    def shared_codes(self, item: int, other: int) -> int:
        """The length of the common prefix of two semantic IDs."""
        count = 0
        for left, right in zip(self.codes[item], self.codes[other], strict=True):
            if left != right:
                break
            count += 1
        return count


HISTORY = ("category-share", "brand-share", "last", "type-together", "no-type")


def _others(users: NDArray[np.int64], case: Case) -> int:
    """How many of the users are not the case's own."""
    return int((users != case.user).sum())
