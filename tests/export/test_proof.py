"""Graphs in fp32 must be the student: neither scores nor orders may differ, on real and on random requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gr2.errors import BundleError
from gr2.export.agreement import NOT_FINITE, Agreement
from gr2.export.proof import _check

SAME = Agreement(100, 1e-5, 0.99, 0.0, 1.0, 1.0, 50, 0.8, 0.8)


def test_scores_within_the_tolerance_pass() -> None:
    _check({"whole": (SAME, SAME), "core": (SAME, replace(SAME, max_abs_difference=1e-3))}, 1e-3)


@pytest.mark.parametrize(
    "bad", [{"max_abs_difference": 2e-3}, {"max_abs_difference": NOT_FINITE}, {"broken_order": 0.01}]
)
@pytest.mark.parametrize("part", ["real", "random"])
def test_one_difference_of_one_way_is_refused(part: str, bad: dict[str, Any]) -> None:
    wrong = replace(SAME, **bad)
    pair = (wrong, SAME) if part == "real" else (SAME, wrong)
    with pytest.raises(BundleError, match=r"the ONNX graph \(core\) does not rank as the student: on 100 and 100 real"):
        _check({"whole": (SAME, SAME), "core": pair}, 1e-3)
