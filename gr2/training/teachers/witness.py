"""The strongest fact of each kind of evidence for a candidate, as a claim, and the claims that describe a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr2.models.evidence import DECAY
from gr2.training.teachers.claims import Claim, floor_count
from gr2.training.teachers.ledger import Case, Ledger

__all__ = ["Witness"]

RARE = 3.0  # -log of the largest share of titles that a word worth citing is in


@dataclass(frozen=True)
class Witness:
    """Finds claims about the case of a user; only the users that `counted` (U,) bool has are counted."""

    ledger: Ledger
    case: Case
    counted: NDArray[np.bool_]

    def claim(self, kind: str, item: int) -> Claim | None:
        """The strongest fact of that kind of evidence (`KINDS`) for a candidate, None where the data holds none."""
        return FACTS[kind](self, item)

    def pattern(self) -> tuple[Claim, ...]:
        """What the history has in common, and its last item."""
        past, total = self.case.history, len(self.case.history)
        claims = []
        types = Counter(name for name in (self.ledger.types[item] for item in reversed(past)) if name)
        if types:
            name, count = types.most_common(1)[0]
            claims.append(Claim("category-share", count=count, total=total, name=name))
        brands = Counter(brand for brand in (self.ledger.catalog.brand[item] for item in past) if brand)
        same = max(brands.values(), default=0)
        if same > 1:
            claims.append(Claim("brand-share", count=same, total=total))
        return (*claims, *(Claim("last", other=self.ledger.codes[item]) for item in past[-1:]))

    def types(self) -> tuple[Claim, ...]:
        """The type of candidates that buyers of a history's items took most, best one that is not the item's own."""
        found: dict[str, tuple[tuple[bool, float], Claim]] = {}
        for age, past in enumerate(dict.fromkeys(reversed(self.case.history))):
            for name in dict.fromkeys(self.ledger.types[item] for item in self.case.candidates):
                count = floor_count(self._count(self.ledger.takers(past, name))) if name else 0
                if not count:
                    continue
                claim = Claim("type-together", other=self.ledger.codes[past], count=count, name=name)
                strength = (name != self.ledger.types[past], count * DECAY**age)
                if name not in found or strength > found[name][0]:
                    found[name] = (strength, claim)
        if found:
            return (max(found.values(), key=lambda each: each[0])[1],)
        return (Claim("no-type"),) if self.ledger.none_stands_out(self.case) else ()

    def _count(self, users: NDArray[np.int64]) -> int:
        return int(self.counted[users].sum())

    def _newest(self, kind: str, holds: Callable[[int], bool], name: str = "") -> Claim | None:
        """The claim about the newest item of the history for which it holds."""
        other = next((past for past in reversed(self.case.history) if holds(past)), None)
        return None if other is None else Claim(kind, other=self.ledger.codes[other], name=name)

    def _together(self, item: int) -> Claim | None:
        best, claim = 0.0, None
        for age, past in enumerate(reversed(self.case.history)):
            count = self._count(self.ledger.both(item, past)) if past != item else 0
            if count * DECAY**age > best:
                best = count * DECAY**age
                claim = Claim("together", other=self.ledger.codes[past], count=floor_count(count))
        return claim

    def _popularity(self, item: int) -> Claim | None:
        count = floor_count(self._count(self.ledger.buyers(item)))
        return Claim("popularity", count=count) if count else None

    def _prefix(self, item: int) -> Claim | None:
        shared = [(self.ledger.shared_codes(item, past), age) for age, past in enumerate(self.case.history)]
        count, age = max(shared, default=(0, 0))
        return Claim("prefix", other=self.ledger.codes[self.case.history[age]], count=count) if count else None

    def _category(self, item: int) -> Claim | None:
        name = self.ledger.types[item]
        return self._newest("category", lambda past: self.ledger.types[past] == name, name) if name else None

    def _brand(self, item: int) -> Claim | None:
        brand = self.ledger.catalog.brand[item]
        return self._newest("brand", lambda past: self.ledger.catalog.brand[past] == brand) if brand else None

    def _price(self, item: int) -> Claim | None:
        return self._newest("price", lambda past: self.ledger.alike_in_price(item, past))

    def _title(self, item: int) -> Claim | None:
        own = self.ledger.words[item]
        shared = {word for past in self.case.history for word in own & self.ledger.words[past]}
        words = [word for word in shared if self.ledger.rarity[word] >= RARE]
        if not words:
            return None
        word = max(words, key=lambda each: (self.ledger.rarity[each], each))
        return self._newest("title", lambda past: word in self.ledger.words[past], word)

    def _listing(self, item: int) -> Claim | None:
        return Claim("listing", count=self.case.candidates.index(item) + 1)


FACTS: dict[str, Callable[[Witness, int], Claim | None]] = {
    "together": Witness._together,
    "popularity": Witness._popularity,
    "prefix": Witness._prefix,
    "category": Witness._category,
    "brand": Witness._brand,
    "price": Witness._price,
    "title": Witness._title,
    "listing": Witness._listing,
}
