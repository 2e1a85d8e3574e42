from __future__ import annotations

import pytest

from gr2.errors import Gr2Error
from gr2.training.policy.monitors import CopyGuard, Outcome, monitor
from gr2.training.policy.rewards import one_positive

SHOWN = (0, 1, 2, 3, 4)


def outcome(ranking: tuple[int, ...] | None, target: int, reward: float, shown: tuple[int, ...] = SHOWN) -> Outcome:
    return Outcome(ranking, shown, one_positive(target, len(shown)), reward)


def test_figures_of_a_step() -> None:
    figures = monitor(
        [
            outcome((0, 1, 2, 3, 4), 0, 0.2),
            outcome((2, 0, 1, 3, 4), 2, 0.6),
            outcome((4, 3, 2, 1, 0), 0, -0.8),
            outcome(None, 1, -1.0),
        ]
    )
    assert figures["reward"] == pytest.approx(-0.25)
    assert figures["valid"] == 0.75
    assert figures["reward/from_1"] == pytest.approx(-0.3)
    assert figures["reward/from_2"] == -1.0
    assert figures["reward/from_3"] == 0.6
    assert "reward/from_4" not in figures
    assert figures["copies/identical"] == pytest.approx(1 / 3)
    assert figures["copies/near"] == pytest.approx(1 / 3)
    assert figures["copies/tau"] == pytest.approx((1.0 + 0.6 - 1.0) / 3)
    assert [figures[f"first/from_{rank}"] for rank in range(1, 6)] == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])
    assert [figures[f"target/at_{rank}"] for rank in range(1, 6)] == pytest.approx([2 / 3, 0, 0, 0, 1 / 3])
    # Two answers were paid; the target of one of them stayed where it was.
    assert figures["format_only"] == 0.5


def test_a_rise_of_another_positive_than_the_best_is_no_reward_of_the_format() -> None:
    figures = monitor([Outcome(ranking, SHOWN, (0, 2, 0, 0, 1), 0.5) for ranking in ((0, 1, 4, 2, 3), SHOWN)])
    assert figures["format_only"] == 0.5
    assert figures["reward/from_2"] == 0.5
    assert figures["target/at_2"] == 1.0


def test_an_echo_of_a_shuffled_order_is_no_copy_and_still_seen() -> None:
    shown = (4, 2, 0, 1, 3)
    figures = monitor([outcome(shown, 0, 0.0, shown)])
    assert figures["copies/near"] == 0.0
    assert figures["echoes/near"] == figures["echoes/tau"] == 1.0


def test_one_swap_of_ten_is_near_and_three_are_not() -> None:
    shown = tuple(range(10))
    for swaps, near in ((1, 1.0), (2, 1.0), (3, 0.0)):
        ranking = list(shown)
        for place in range(0, 2 * swaps, 2):
            ranking[place : place + 2] = ranking[place : place + 2][::-1]
        figures = monitor([outcome(tuple(ranking), 0, 0.0, shown)])
        assert figures["copies/identical"] == 0.0
        assert figures["copies/near"] == near


def test_refused_answers_alone_have_figures() -> None:
    assert monitor([outcome(None, 0, -1.0)]) == {
        "reward": -1.0, "valid": 0.0, "reward/from_1": -1.0, "format_only": 0.0,
    }  # fmt: skip


COPYING = monitor([outcome(SHOWN, 1, 0.2)])
WORKING = monitor([outcome((4, 3, 2, 1, 0), 4, 0.8)])


def test_a_run_that_only_copies_ends_with_the_reason() -> None:
    guard = CopyGuard(0.95, 3)
    guard.check(COPYING, [COPYING])
    # What else a log holds is not a step.
    guard.check(COPYING, [COPYING, {"train_loss": 0.1}])
    guard.check(COPYING, [COPYING, COPYING, WORKING])
    with pytest.raises(Gr2Error, match=r"last 3 steps 100\.0% of its answers.*\+0\.2000.*reward = 'default'"):
        guard.check(COPYING, [WORKING, COPYING, COPYING])


def test_a_run_that_copies_now_and_then_goes_on() -> None:
    CopyGuard(0.6, 2).check(COPYING, [COPYING, WORKING])


def test_copies_among_few_valid_answers_are_no_collapse() -> None:
    refused = [outcome(None, 1, -1.0)] * 3
    figures = monitor([outcome(SHOWN, 1, 0.0), *refused])
    assert (figures["copies/near"], figures["valid"]) == (1.0, 0.25)
    CopyGuard(0.3, 1).check(figures)
    with pytest.raises(Gr2Error, match=r"25\.0% of its answers"):
        CopyGuard(0.2, 1).check(figures)


def test_limit_of_one_ends_nothing() -> None:
    CopyGuard(1.0, 1).check(COPYING, [COPYING] * 5)
