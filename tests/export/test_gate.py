"""The gate: each of its bounds alone keeps a variant out of the bundle, on real requests and on random ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gr2.export.agreement import NOT_FINITE, Agreement
from gr2.export.gate import Gate, judge

GATE = Gate(min_top1=0.98, min_tau=0.97, max_lost=0.005)
GOOD = Agreement(100, 0.1, 0.5, 0.0, 0.98, 0.97, 50, 0.8, 0.797)
ROLES = ("encoder", "scorer")


def test_what_reaches_every_bound_is_within() -> None:
    found = judge(GATE, ROLES, {"split": (GOOD, GOOD), "core": (GOOD, GOOD)})
    assert found.roles == ROLES
    assert found.verdict == "within the gate"
    assert found.parity["core"]["random"]["tau"] == 0.97


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ({"top1": 0.97}, "top-1 agreement 0.9700 on {} requests, 0.98 wanted"),
        ({"max_abs_difference": NOT_FINITE}, "scores on {} requests are not finite"),
        ({"tau": 0.96}, "Kendall's tau 0.9600 on {} requests, 0.97 wanted"),
    ],
)
@pytest.mark.parametrize("part", ["real", "random"])
def test_one_bound_missed_by_one_way_refuses_the_variant(part: str, bad: dict[str, float], fault: str) -> None:
    wrong = replace(GOOD, **bad)
    pair = (wrong, GOOD) if part == "real" else (GOOD, wrong)
    found = judge(GATE, ROLES, {"split": (GOOD, GOOD), "core": pair})
    assert found.roles == ()
    assert found.verdict == f"refused: core: {fault.format(part)}"


def test_quality_lost_on_labelled_requests_refuses_the_variant() -> None:
    found = judge(GATE, ROLES, {"split": (replace(GOOD, ndcg=0.792), GOOD)})
    assert found.roles == ()
    assert found.verdict == "refused: split: loses 1.00% of the student's N@5, at most 0.50% allowed"


def test_requests_that_there_were_none_of_are_not_judged() -> None:
    none = Agreement(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0)
    assert judge(GATE, ROLES, {"split": (none, GOOD)}).roles == ROLES
