from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.errors import ArtifactError, Gr2Error
from gr2.models.answering import Answering, answers
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.render import ItemView, PromptConfig, Slate, render
from gr2.prompts.verdict import Verdict
from gr2.training.compression.judge import UNREADABLE, Case, ReasonerJudge, TeacherJudge, VerdictLog
from gr2.training.compression.ranking import AnswerRanker
from gr2.training.reasoner.reranking import kendall_tau
from gr2.training.teachers.endpoint import Endpoint, EndpointTeacher

CODES = [(0, 1), (0, 2), (3, 3), (2, 0)]
ITEMS = [ItemView(codes, f"item {number}", ()) for number, codes in enumerate(CODES)]
SLATES = [Slate((ITEMS[0], ITEMS[3]), tuple(ITEMS)), Slate((ITEMS[1], ITEMS[2]), tuple(ITEMS[::-1]))]
TARGETS = np.array([1, 3])
PROMPT = PromptConfig(reasoning=False)
CASES = [Case(1, ("b",)), Case(0, ("a", "c")), Case(1, ("b",)), Case(0, ())]


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["Candidates: rank"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


def test_the_reasoners_own_rankings_are_the_verdict(reasoner: Reasoner) -> None:
    ranker = AnswerRanker(reasoner, PROMPT, Answering(reasoning=False, batch=3))
    judge = ReasonerJudge(ranker, SLATES, TARGETS)
    found = judge.verdicts(CASES)

    def ranking(slate: Slate) -> list[int]:
        (answered,) = answers(reasoner, [render(slate, PROMPT)], [slate], batch=1, reasoning=False)
        return answered.ranking.tolist()

    for case, verdict in zip(CASES, found, strict=True):
        slate, target = SLATES[case.task], int(TARGETS[case.task])
        whole, short = ranking(slate), ranking(replace(slate, context=case.context))
        assert verdict is not None
        assert verdict.solvable == (whole.index(target) <= target)
        assert verdict.quality == pytest.approx(1 / np.log2(2 + short.index(target)))
        assert verdict.preservation == pytest.approx((1 + kendall_tau([whole.index(each) for each in short])) / 2)
    # Whether a case is solvable does not depend on the context, so that nothing is earned by spoiling one.
    assert found[0] == found[2]
    assert (
        len({verdict.solvable for case, verdict in zip(CASES, found, strict=True) if verdict and case.task == 0}) == 1
    )


class Fixed:
    """A `Ranker` whose order of a slate depends on whether that has a context."""

    def __init__(self, whole: tuple[int, ...], short: tuple[int, ...]) -> None:
        self.whole, self.short = whole, short

    def rank(self, slates: Sequence[Slate]) -> list[tuple[int, ...]]:
        return [self.whole if slate.context is None else self.short for slate in slates]


@pytest.mark.parametrize(
    ("whole", "solvable"), [((1, 0, 2, 3), True), ((0, 1, 2, 3), True), ((0, 2, 1, 3), False), ((3, 2, 0, 1), False)]
)
def test_a_case_can_be_solved_where_the_target_does_not_fall_with_the_whole_history(
    whole: tuple[int, ...], solvable: bool
) -> None:
    judge = ReasonerJudge(Fixed(whole, whole[::-1]), SLATES, TARGETS)
    (verdict,) = judge.verdicts([Case(0, ("a",))])
    assert verdict == Verdict(solvable, 0.0, 1 / float(np.log2(1 + whole[::-1].index(1) + 1)))


def endpoint(url: str) -> EndpointTeacher:
    return EndpointTeacher(
        Endpoint(
            base_url=url, model="judge", api_key_env="", concurrency=1, timeout=10.0, retries=0, requests_per_minute=0,
            price_prompt=1.0, price_completion=1.0, temperature=0.0, max_tokens=64,
        )
    )  # fmt: skip


def test_a_language_model_is_asked_once_for_each_case_and_read_strictly(chat: Any, tmp_path: Path) -> None:
    good = chat.completion('```json\n{"solvable": 1, "preservation": 0.5, "quality": 0.25}\n```')
    replies = [good, chat.completion("no idea"), chat.Response(status=400, body=b"{}"), good]
    with chat.serving(lambda call: replies[call.number]) as server:
        judge = TeacherJudge(endpoint(server.url), SLATES, TARGETS, PROMPT, tmp_path / "log.jsonl")
        assert judge.verdicts(CASES) == [Verdict(True, 0.5, 0.25), None, Verdict(True, 0.5, 0.25), None]
        assert len(server.calls) == 3
        asked = server.calls[0].messages[-1]["content"]
        assert "Shortened history:\n- b" in asked
        assert asked.endswith("item 0")
        # What failed may be asked again; what was paid for is not, whatever it was.
        again = TeacherJudge(endpoint(server.url), SLATES, TARGETS, PROMPT, tmp_path / "log.jsonl")
        found = again.verdicts(CASES)
        assert found == [Verdict(True, 0.5, 0.25), None, Verdict(True, 0.5, 0.25), Verdict(True, 0.5, 0.25)]
        assert len(server.calls) == 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["why"][:8] for line in lines] == ["", "not-json", ""]
    assert sum(line["cost"] for line in lines) == pytest.approx(3 * 120e-6)


def test_a_judge_that_gives_no_verdicts_ends_it(chat: Any, tmp_path: Path) -> None:
    good = chat.completion('{"solvable": 1, "preservation": 0.5, "quality": 0.25}')
    babble = chat.completion('{"solvable": 1, "preservation": NaN, "quality": 1}')
    cases = [Case(number % 2, (f"line {number}",)) for number in range(2 * UNREADABLE)]
    with chat.serving(lambda call: good if call.number == UNREADABLE - 1 else babble) as server:
        judge = TeacherJudge(endpoint(server.url), SLATES, TARGETS, PROMPT, tmp_path / "log.jsonl")
        assert sum(each is not None for each in judge.verdicts(cases[:UNREADABLE])) == 1
        with pytest.raises(Gr2Error, match=f"{UNREADABLE} replies of the judge in a row were no verdicts.*not-json"):
            judge.verdicts(cases[UNREADABLE:])


def test_a_log_that_a_kill_cut_short_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = VerdictLog(path)
    log.add("one", Verdict(True, 1.0, 0.5), "")
    with path.open("ab") as file:
        file.write(b'{"question": "two", "ver')
    log = VerdictLog(path)
    assert list(log.found) == ["one"]
    log.add("two", None, "not-json")
    assert list(VerdictLog(path).found) == ["one", "two"]
    path.write_text("[]\n")
    with pytest.raises(ArtifactError, match="not verdicts written by gr2"):
        VerdictLog(path)
