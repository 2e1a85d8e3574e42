from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gr2.models.answer_decoding import Written
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import Answering
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.prompts.render import ItemView, PromptConfig, Slate
from gr2.training.policy.list_rollouts import ListRollouts, Worth
from gr2.training.policy.rewards import ndcg_gain, one_positive, promotion, reward
from gr2.training.policy.vllm_explanations import explanation_sets

CODES = [(0, 1), (0, 2), (3, 3), (2, 0)]
ASKING = Answering(reasoning=True, max_reasoning=5, batch=4, temperature=1.0, samples=3)


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return from_scratch("tiny", ["Candidates: rank"], SidSpec(2, 4, "toy"), vocabulary=320, seed=0)


@pytest.fixture(scope="module")
def slates() -> list[Slate]:
    items = [ItemView(codes, f"item {number}", ()) for number, codes in enumerate(CODES)]
    return [Slate((items[0],), tuple(items)), Slate((items[1], items[2]), tuple(items[::-1]))]


def rollouts(reasoner: Reasoner, slates: list[Slate], **options: object) -> ListRollouts:
    chosen = {"prompt": PromptConfig(), "asking": ASKING, "worth": Worth(reward("default"))} | options
    return ListRollouts(reasoner, slates, [one_positive(1, 4), one_positive(3, 4)], **chosen)  # type: ignore[arg-type]


def test_groups_come_in_the_order_of_their_tasks_and_again_by_the_seed(reasoner: Reasoner, slates: list[Slate]) -> None:
    draw = rollouts(reasoner, slates)
    groups = draw([1, 0, 1], 7)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert [group[0].outcome.target for group in groups] == [3, 1, 3]
    assert groups[0][0].prompt == groups[2][0].prompt != groups[1][0].prompt
    again = [[each.tokens for each in group] for group in draw([1, 0, 1], 7)]
    assert again == [[each.tokens for each in group] for group in groups]
    assert again != [[each.tokens for each in group] for group in draw([1, 0, 1], 8)]


def test_every_token_was_chosen_from_its_set(reasoner: Reasoner, slates: list[Slate]) -> None:
    for group in rollouts(reasoner, slates)([0, 1], 1):
        for each in group:
            assert all(token in allowed for token, allowed in zip(each.tokens, each.allowed, strict=True))
            assert each.reward == promotion(each.outcome.ranking, each.outcome.target)
            assert each.tokens[-1] == reasoner.vocabulary.eos


def test_shuffled_candidates_keep_their_places_in_the_incoming_order(reasoner: Reasoner, slates: list[Slate]) -> None:
    draw = rollouts(reasoner, slates, shuffle=True, prompt=PromptConfig(incoming_rank=True))
    orders = set()
    for seed in range(6):
        (group,) = draw([0], seed)
        orders.add(group[0].outcome.shown)
        text = reasoner.tokenizer.decode(list(group[0].prompt))
        lines = [line for line in text.split("\n") if " | rank " in line]
        assert [int(line.rpartition("rank ")[2].split("<")[0]) - 1 for line in lines] == list(group[0].outcome.shown)
        assert len({each.outcome.shown for each in group}) == 1
        # The ranking in the answer, read by the slate's own order.
        written = reasoner.tokenizer.decode(list(group[0].tokens))
        places = [
            written.index(f"<s_a_{CODES[place][0]}><s_b_{CODES[place][1]}>") for place in group[0].outcome.ranking
        ]
        assert places == sorted(places)
    assert len(orders) > 1


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_the_model_reads_and_says_does_not_depend_on_the_target(
    reasoner: Reasoner, slates: list[Slate], shuffle: bool
) -> None:
    found = []
    for targets in ([1, 3], [0, 2]):
        grades = [one_positive(target, 4) for target in targets]
        draw = ListRollouts(reasoner, slates, grades, PromptConfig(), ASKING, Worth(reward("default")), shuffle=shuffle)
        groups = draw([0, 1], 5)
        found.append([(list(each.prompt), list(each.tokens), each.outcome.shown) for group in groups for each in group])
        assert [group[0].outcome.target for group in groups] == targets
    assert found[0] == found[1]


def test_lists_of_several_positives_are_paid_by_all_of_them(reasoner: Reasoner, slates: list[Slate]) -> None:
    grades = [(1, 0, 2, 0), (0, 1, 1, 0)]
    draw = ListRollouts(reasoner, slates, grades, PromptConfig(), ASKING, Worth(reward("ndcg")), shuffle=True)
    for group, own in zip(draw([0, 1], 3), grades, strict=True):
        for each in group:
            assert each.outcome.grades == own
            assert each.reward == ndcg_gain(each.outcome.ranking, own)
    assert [group[0].outcome.target for group in draw([0, 1], 3)] == [2, 1]


def test_free_answers_that_are_refused_are_paid_as_such(reasoner: Reasoner, slates: list[Slate]) -> None:
    asking = Answering(constrained=False, reasoning=False, batch=4, temperature=1.0, samples=3)
    (group,) = rollouts(reasoner, slates, asking=asking)([0], 0)
    for each in group:
        assert each.outcome.ranking is None
        assert each.reward == -1.0
        assert set(map(type, each.allowed)) == {type(None)}


def test_of_free_answers_what_is_longer_than_a_ranking_counts_as_explained(
    reasoner: Reasoner, slates: list[Slate]
) -> None:
    asking = Answering(constrained=False, max_reasoning=5, batch=4, temperature=1.0, samples=3)
    worth = Worth(reward("default"), overlong_tokens=5, overlong_penalty=0.5)
    bare = AnswerGrammar(reasoner).length(len(CODES), 0)
    (group,) = rollouts(reasoner, slates, asking=asking, worth=worth)([0], 0)
    for each in group:
        explained = max(0, len(each.tokens) - bare)
        assert each.reward == pytest.approx(-1.0 - 0.5 * min(1.0, explained / 5))
    assert max(len(each.tokens) for each in group) > bare


def test_worth_is_weighed_by_the_targets_place_and_less_for_long_explanations() -> None:
    worth = Worth(reward("default"), np.array([0.5, 2.0]), overlong_tokens=4, overlong_penalty=0.5)
    assert worth([1, 0], [0, 1], explained=0, longest=10) == pytest.approx(2.0 * 0.5)
    assert worth([1, 0], [1, 0], explained=0, longest=10) == pytest.approx(0.5 * -0.5)
    assert worth([0, 1], [1, 0], explained=8, longest=10) == pytest.approx(-0.5 * 0.5)
    assert worth([0, 1], [1, 0], explained=10, longest=10) == pytest.approx(-0.5)
    assert worth([0, 1], [1, 0], explained=6, longest=10) == 0.0


class Scribbler:
    """A `Writer` of random explanations."""

    def __init__(self, reasoner: Reasoner) -> None:
        self.sets = explanation_sets(AnswerGrammar(reasoner))
        self.prompts: list[list[int]] = []

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, samples: int, temperature: float, most: int
    ) -> list[Written]:
        assert temperature == 1.0
        self.prompts += [list(prompt) for prompt in prompts]
        first, later = self.sets
        rng = np.random.default_rng(len(self.prompts))
        return [
            (rng.choice(first, most - 1).tolist(), [first, *[later] * (most - 2)])
            for _ in range(len(prompts) * samples)
        ]


def test_explanations_may_be_anothers_and_count_as_chosen_from_its_sets(
    reasoner: Reasoner, slates: list[Slate]
) -> None:
    writer = Scribbler(reasoner)
    worth = Worth(reward("default"), overlong_tokens=2, overlong_penalty=0.5)
    (group,) = rollouts(reasoner, slates, writer=writer, worth=worth)([0], 3)
    opening = len(AnswerGrammar(reasoner).opening)
    (prompt,) = writer.prompts
    for each in group:
        assert prompt == [*each.prompt, *each.tokens[:opening]]
        assert [id(allowed) for allowed in each.allowed[opening : opening + 4]] == [
            id(allowed) for allowed in (writer.sets[0], *[writer.sets[1]] * 3)
        ]
        # Four of five tokens: one of the two that cost.
        assert each.reward == pytest.approx(promotion(each.outcome.ranking, each.outcome.target) - 0.25)
    assert len({tuple(each.tokens) for each in group}) == 3


def test_a_writer_needs_answers_that_explain(reasoner: Reasoner, slates: list[Slate]) -> None:
    asking = Answering(reasoning=False, batch=4, temperature=1.0, samples=3)
    with pytest.raises(ValueError, match="a writer writes explanations of constrained answers"):
        rollouts(reasoner, slates, writer=Scribbler(reasoner), asking=asking)([0], 3)
