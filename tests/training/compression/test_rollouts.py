from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gr2.models.compressing import Compressing, Compressor
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.render import ItemView, PromptConfig
from gr2.prompts.verdict import Verdict
from gr2.training.compression.judge import Case
from gr2.training.compression.reward import context_reward
from gr2.training.compression.rollouts import ContextOutcome, ContextRollouts, ContextWorth, context_monitor

HISTORY = [ItemView((number, 1), f"item {number}", ("Bath",)) for number in range(4)]
WORTH = ContextWorth(alpha=0.5, penalty=0.5)


class Marks:
    """Finds a context as good as it has lines, and has no verdict on those of `silent` tasks."""

    def __init__(self, *silent: int) -> None:
        self.silent = silent

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        return [
            None if case.task in self.silent else Verdict(True, 1.0, min(1.0, len(case.context) / 4)) for case in cases
        ]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["item Bath"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


def rollouts(reasoner: Reasoner, judge: Marks, *, select: bool = True) -> ContextRollouts:
    compressor = Compressor(reasoner, PromptConfig(), Compressing(0.6, select, 8, 1.0, 4))
    passages = [compressor.passage(HISTORY[:count]) for count in (2, 4)]
    return ContextRollouts(compressor, passages, judge, WORTH)


def test_groups_come_in_the_order_of_their_tasks_and_again_by_the_seed(reasoner: Reasoner) -> None:
    draw = rollouts(reasoner, Marks())
    groups = draw([1, 0, 1], 7)
    assert [[each.outcome.events for each in group] for group in groups] == [[4] * 4, [2] * 4, [4] * 4]
    assert [[each.tokens for each in group] for group in draw([1, 0, 1], 7)] == [
        [each.tokens for each in group] for group in groups
    ]
    for group in groups:
        for each in group:
            seen = each.outcome
            expected = context_reward(
                Verdict(True, 1.0, min(1.0, seen.lines / 4)), seen.cost, seen.original, alpha=0.5, penalty=0.5
            )
            assert each.reward == pytest.approx(expected)
            assert seen.cost <= 0.6 * seen.original


def test_contexts_without_a_verdict_teach_nothing(reasoner: Reasoner) -> None:
    one, two = rollouts(reasoner, Marks(0))([0, 1], 1)
    assert len({each.reward for each in one}) == 1
    assert len({each.reward for each in two}) > 1
    assert context_monitor([each.outcome for each in one])["unjudged"] == 1.0


class Alternating(Marks):
    """Has a verdict on every other context."""

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        return [each if number % 2 else None for number, each in enumerate(super().verdicts(cases))]


def test_a_context_without_a_verdict_is_paid_what_the_others_of_its_group_are(reasoner: Reasoner) -> None:
    (group,) = rollouts(reasoner, Alternating())([1], 1)
    known = [each.reward for each in group if each.outcome.verdict is not None]
    assert len(known) == 2
    assert known[0] != known[1]
    for each in group:
        if each.outcome.verdict is None:
            assert each.reward == pytest.approx(sum(known) / 2)


def test_a_context_of_the_newest_events_is_told_from_others(reasoner: Reasoner) -> None:
    found = {}
    for seed in range(6):
        for group in rollouts(reasoner, Marks())([0, 1], seed):
            for each in group:
                found[each.outcome.newest] = each.outcome
    assert found.keys() == {True, False}


def test_free_text_that_does_not_come_to_an_end_is_refused(reasoner: Reasoner) -> None:
    (group,) = rollouts(reasoner, Marks(), select=False)([1], 0)
    refused = [each for each in group if each.outcome.refused]
    assert refused
    assert {each.reward for each in refused} == {0.0}
    assert all(allowed is None for each in group for allowed in each.allowed)


def test_the_monitor_says_what_contexts_cost_and_whether_they_are_the_newest_events() -> None:
    one = ContextOutcome(10, 50, 2, 4, True, False, Verdict(True, 0.5, 1.0), 0.75)
    figures = context_monitor([one, replace(one, cost=0, newest=False, refused=True, verdict=None, reward=0.0)])
    assert figures == pytest.approx(
        {
            "reward": 0.375, "share": 0.1, "events": 0.5, "copies/newest": 0.5, "valid": 0.5, "unjudged": 0.0,
            "judged/solvable": 1.0, "judged/preservation": 0.5, "judged/quality": 1.0,
        }
    )  # fmt: skip
