"""The checker of claims against the data itself: what is true is accepted, what is made false is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gr2.artifact import Artifact
from gr2.data.dataset import Dataset
from gr2.training.teachers.claims import Claim, Statement
from gr2.training.teachers.ledger import Case, Ledger
from gr2.training.teachers.scores import KINDS
from gr2.training.teachers.witness import Witness


@pytest.fixture(scope="module")
def ledger(tiny_run: Path) -> Ledger:
    return Ledger(Dataset.load(tiny_run / "prepare"), Artifact.load(tiny_run / "tokenize").array("codes.npy"), shown=12)


def cases(ledger: Ledger, count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    users = rng.integers(0, ledger.dataset.users, count).tolist()
    found = []
    for user in users:
        events = ledger.dataset.events(user)[:-2]
        items = rng.permutation(len(ledger.catalog))[:8].tolist()
        found.append(Case(user, tuple(events[: rng.integers(1, len(events) + 1)].tolist()), tuple(items)))
    return found


def events_of(ledger: Ledger) -> list[set[int]]:
    return [set(ledger.dataset.events(user)[:-2].tolist()) for user in range(ledger.dataset.users)]


def statement(ledger: Ledger, claim: Claim, item: int | None) -> Statement:
    return Statement("Pattern" if item is None else "Match", (claim,), None if item is None else ledger.codes[item])


def test_counts_are_those_of_a_loop_over_users(ledger: Ledger) -> None:
    bought = events_of(ledger)
    rng = np.random.default_rng(1)
    for left, right in rng.integers(0, len(ledger.catalog), (60, 2)).tolist():
        both = [user for user, items in enumerate(bought) if {left, right} <= items]
        assert ledger.both(left, right).tolist() == both
        name = ledger.types[right]
        takers = [
            user for user, items in enumerate(bought) if left in items and any(ledger.types[i] == name for i in items)
        ]
        assert ledger.takers(left, name).tolist() == takers


def test_every_claim_of_a_witness_holds(ledger: Ledger) -> None:
    fold = np.arange(ledger.dataset.users) % 3
    kinds = set()
    for case in cases(ledger, 60):
        witness = Witness(ledger, case, fold != fold[case.user])
        for claim in (*witness.pattern(), *witness.types()):
            assert ledger.holds(statement(ledger, claim, None), case), claim
        for item in case.candidates:
            for kind in KINDS:
                claim = witness.claim(kind, item)
                if claim is not None:
                    kinds.add(kind)
                    assert ledger.holds(statement(ledger, claim, item), case), claim
    assert kinds == set(KINDS)


def test_a_claim_that_is_made_false_is_refused(ledger: Ledger) -> None:
    users = np.arange(ledger.dataset.users)
    tried = set()
    for case in cases(ledger, 60):
        witness = Witness(ledger, case, users != case.user)
        facts = [(None, claim) for claim in (*witness.pattern(), *witness.types())]
        facts += [(item, claim) for item in case.candidates for kind in KINDS if (claim := witness.claim(kind, item))]
        for item, claim in facts:
            for false in distortions(ledger, case, claim):
                tried.add(claim.kind)
                assert not ledger.holds(statement(ledger, false, item), case), (claim, false)
    assert tried == {
        "category-share", "brand-share", "last", "type-together", "together", "category", "brand", "price", "prefix",
        "title", "popularity", "listing",
    }  # fmt: skip


def distortions(ledger: Ledger, case: Case, claim: Claim) -> list[Claim]:
    """Claims that say a little more, or something else, than a true one."""
    found = []
    if claim.count:
        # No count of this shop has as many digits.
        found.append(replace(claim, count=claim.count + (1 if claim.kind in EXACT else 10**6)))
    if claim.total:
        found.append(replace(claim, total=claim.total + 1))
    if claim.name:
        found.append(replace(claim, name="Nothing Like It"))
    if claim.other is not None:
        outside = next(item for item in range(len(ledger.catalog)) if item not in case.history)
        found.append(replace(claim, other=ledger.codes[outside]))
    return found


EXACT = ("category-share", "brand-share", "prefix", "listing")


def test_only_candidates_are_spoken_of(ledger: Ledger) -> None:
    (case,) = cases(ledger, 1)
    outside = next(item for item in range(len(ledger.catalog)) if item not in case.candidates)
    claim = Claim("popularity", count=1)
    assert not ledger.holds(statement(ledger, claim, outside), case)
    assert not ledger.holds(Statement("Match", (claim,), (7, 7, 7, 7)), case)
    assert not ledger.holds(Statement("Pattern", (claim,)), case)


def test_the_users_own_purchases_count_for_nothing(ledger: Ledger) -> None:
    bought = events_of(ledger)
    user, item = next(
        (user, item) for user, items in enumerate(bought) for item in items if sum(item in each for each in bought) >= 2
    )
    others = sum(item in each for other, each in enumerate(bought) if other != user)
    case = Case(user, (item,), (item,))
    assert ledger.holds(statement(ledger, Claim("popularity", count=others), item), case)
    assert not ledger.holds(statement(ledger, Claim("popularity", count=others + 1), item), case)
