from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr2.prompts.verdict import Verdict
from gr2.training.compression.reward import context_reward, judged, shortness, trails_off

marks = st.floats(0, 1)


def test_the_judges_marks_are_weighed_as_in_the_report() -> None:
    assert judged(Verdict(True, 0.5, 1.0)) == pytest.approx(0.2 * 0.5 + 0.8)
    assert judged(Verdict(False, 0.5, 1.0)) == pytest.approx(0.8 * 0.5 + 0.2)


def test_shortness_is_what_was_left_out() -> None:
    assert shortness(20, 100) == pytest.approx(0.8)
    assert shortness(0, 100) == 1.0
    assert shortness(150, 100) == 0.0
    with pytest.raises(ValueError, match="at least one token"):
        shortness(0, 0)


def test_dots_that_the_history_had_are_no_giving_up() -> None:
    assert trails_off(["a rose soap..."], ["a rose soap with oil"])
    assert trails_off(["one", "two\u2026 "], ["one..."] * 0 + ["one", "two and three"])
    assert not trails_off(["a rose soap..."], ["a rose soap...", "b"])
    verdict = Verdict(True, 1.0, 1.0)
    whole = context_reward(verdict, 20, 100, alpha=0.25)
    assert whole == pytest.approx(0.25 * 0.8 + 0.75)
    assert context_reward(verdict, 20, 100, alpha=0.25, penalty=0.5, trailing=True) == pytest.approx(whole / 2)


@given(marks, marks, marks, st.booleans(), st.integers(0, 100), st.floats(0, 1))
def test_better_marks_and_fewer_tokens_never_earn_less(
    preservation: float, quality: float, more: float, solvable: bool, tokens: int, alpha: float
) -> None:
    before = context_reward(Verdict(solvable, preservation, quality), tokens, 100, alpha=alpha)
    assert 0 <= before <= 1 + 1e-9
    better = Verdict(solvable, max(preservation, more), quality), Verdict(solvable, preservation, max(quality, more))
    for verdict in better:
        assert context_reward(verdict, tokens, 100, alpha=alpha) >= before
    assert context_reward(Verdict(solvable, preservation, quality), tokens // 2, 100, alpha=alpha) >= before
