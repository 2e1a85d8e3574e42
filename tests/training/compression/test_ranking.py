from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gr2.models.answering import Answering, answers
from gr2.models.item_likelihood import item_likelihoods
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.render import ItemView, PromptConfig, Slate, render
from gr2.prompts.semantic_id import sid_text
from gr2.training.compression.ranking import AnswerRanker, LikelihoodRanker

CODES = [(0, 1), (0, 2), (3, 3), (2, 0)]
ITEMS = [ItemView(codes, f"item {number}", ()) for number, codes in enumerate(CODES)]
SLATE = Slate((ITEMS[0], ITEMS[3], ITEMS[2]), (*ITEMS, ITEMS[0]))
PROMPT = PromptConfig(reasoning=False, max_history=2)


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["Candidates: rank"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


def test_likelihoods_order_candidates_after_the_events_shown_or_cited(reasoner: Reasoner) -> None:
    context = f"after {sid_text(CODES[1])} came {sid_text(CODES[0])}"
    slates = [SLATE, replace(SLATE, context=(context, "no item")), replace(SLATE, context=())]
    candidates = [[item.codes for item in SLATE.candidates]] * 3
    scores = item_likelihoods(reasoner, [[CODES[3], CODES[2]], [CODES[1], CODES[0]], []], candidates)
    rankings = LikelihoodRanker(reasoner, PROMPT).rank(slates)
    for ranking, expected in zip(rankings, scores, strict=True):
        assert sorted(ranking) == list(range(5))
        assert list(expected[list(ranking)]) == sorted(expected, reverse=True)
        # The first and the last candidate are one item: equals keep their order.
        assert ranking.index(0) + 1 == ranking.index(4)
    assert len({*rankings}) > 1 or len({tuple(np.argsort(-each)) for each in scores}) == 1


def test_answers_are_those_of_the_prompt_alone(reasoner: Reasoner) -> None:
    slates = [replace(SLATE, context=(sid_text(CODES[1]),)), SLATE, replace(SLATE, context=())]
    ranker = AnswerRanker(reasoner, PROMPT, Answering(reasoning=False, batch=2))
    for slate, ranking in zip(slates, ranker.rank(slates), strict=True):
        (alone,) = answers(reasoner, [render(slate, PROMPT)], [slate], batch=1, reasoning=False)
        assert ranking == tuple(alone.ranking.tolist())
