from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError, DataError
from gr2.metrics import ranking_metrics
from gr2.models.answering import answers
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.prompts.render import PromptConfig
from gr2.training.reasoner.reranking import evaluate_reasoner, kendall_tau, list_prompts, list_slates

PROMPT = PromptConfig(max_history=3)
OPTIONS = {"max_reasoning": 4, "limit": 20, "batch": 8, "resamples": 200, "slate": 5}


@pytest.fixture(scope="module")
def reasoner():
    made = from_scratch("tiny", ["Some text"], SidSpec(3, 8, "f00d"), vocabulary=400, seed=1)
    made.model.get_input_embeddings().weight.data.mul_(20.0)
    return made


@pytest.fixture(scope="module")
def dataset(tiny_parents):
    return Dataset.load(tiny_parents["prepare"].path)


@pytest.fixture(scope="module")
def codes(tiny_parents):
    return tiny_parents["tokenize"].array("codes.npy")


@pytest.fixture(scope="module")
def lists(tiny_parents):
    return CandidateLists.load(tiny_parents["prerank"].file("test.parquet"))


def test_the_figures_are_those_of_the_answers(reasoner, dataset, codes, lists):
    metrics, table = evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, **OPTIONS | {"limit": 0})
    held = lists.top(5).with_target()
    slates = list_slates(dataset, codes, held)
    found = answers(reasoner, list_prompts(reasoner, slates, PROMPT), slates, max_reasoning=4, batch=8)
    ranks = [1 + each.ranking.tolist().index(label) for each, label in zip(found, held.label(), strict=True)]
    assert table["reasoner"].to_pylist() == ranks
    assert table["incoming"].to_pylist() == (held.label() + 1).tolist()
    assert table["answer"].to_pylist() == [each.text for each in found]
    assert metrics["all"]["reasoner"] == ranking_metrics(np.array(ranks))
    assert metrics["all"]["incoming"] == ranking_metrics(held.label() + 1)
    assert (metrics["lists"], metrics["target_in_slate"], metrics["all"]["slates"]) == (
        len(lists),
        len(held),
        len(held),
    )
    assert (metrics["valid"], metrics["refusals"]) == (1.0, {})
    same = [each.ranking.tolist() == list(range(5)) for each in found]
    assert metrics["copied"] == np.mean(same)
    assert metrics["kendall_tau"] == np.mean([kendall_tau(each.ranking.tolist()) for each in found])
    assert metrics["answer_tokens"] == np.mean([len(each.tokens) for each in found])
    assert metrics["history_kept_mean"] == 3


def test_answers_do_not_depend_on_the_target(reasoner, dataset, codes, lists):
    held = lists.top(5).with_target()
    moved = replace(held, target=held.candidates[np.arange(len(held)), (held.label() + 1) % 5])
    tables = [evaluate_reasoner(reasoner, dataset, codes, each, PROMPT, **OPTIONS)[1] for each in (held, moved)]
    assert tables[0]["answer"].equals(tables[1]["answer"])
    assert not tables[0]["reasoner"].equals(tables[1]["reasoner"])


def test_slates_are_what_the_lists_say(dataset, codes, lists):
    for row, slate in enumerate(list_slates(dataset, codes, lists)):
        history = dataset.history(int(lists.user[row]), int(lists.position[row]))
        assert [item.codes for item in slate.history] == [tuple(codes[item].tolist()) for item in history]
        assert [item.codes for item in slate.candidates] == [
            tuple(codes[item].tolist()) for item in lists.candidates[row] if item >= 0
        ]


def test_refused_answers_count_as_the_incoming_order(reasoner, dataset, codes, lists):
    metrics, table = evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, constrained=False, **OPTIONS)
    assert metrics["valid"] == 0.0
    assert sum(metrics["refusals"].values()) == 20
    assert table["reasoner"] == table["incoming"]
    assert None not in table["refused"].to_pylist()
    assert (metrics["copied"], metrics["kendall_tau"]) == (0.0, None)
    assert metrics["all"]["difference"]["R@1"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("cut", [0.0, 0.4, 0.99])
def test_an_evaluation_goes_on_where_it_was_killed(reasoner, dataset, codes, lists, tmp_path, cut):
    path = tmp_path / "answers.jsonl"
    first = evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, checkpoint=path, **OPTIONS)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    again = evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, checkpoint=path, **OPTIONS)
    assert first == again
    assert path.read_bytes() == data


def test_other_prompts_do_not_go_on_from_it(reasoner, dataset, codes, lists, tmp_path):
    path = tmp_path / "answers.jsonl"
    evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, checkpoint=path, **OPTIONS)
    bare = replace(PROMPT, reasoning=False)
    _, table = evaluate_reasoner(reasoner, dataset, codes, lists, bare, checkpoint=path, **OPTIONS)
    assert table.equals(evaluate_reasoner(reasoner, dataset, codes, lists, bare, **OPTIONS)[1])


def test_a_limit_draws_lists_by_the_seed(reasoner, dataset, codes, lists):
    options = OPTIONS | {"limit": 3, "constrained": False}
    first, again, other = (
        evaluate_reasoner(reasoner, dataset, codes, lists, PROMPT, seed=seed, **options)[1]["user"]
        for seed in (0, 0, 1)
    )
    assert len(first) == 3
    assert first == again
    assert first != other


def test_tied_targets_are_told_apart_where_the_last_events_are_asked_for(reasoner, dataset, codes, lists, tiny_parents):
    tied = replace(dataset, tied=np.arange(dataset.users) % 3 == 0)
    options = OPTIONS | {"constrained": False, "limit": 0}
    metrics, table = evaluate_reasoner(reasoner, tied, codes, lists, PROMPT, **options)
    assert metrics["untied"]["slates"] == np.sum(table["user"].to_numpy() % 3 != 0)
    val = CandidateLists.load(tiny_parents["prerank"].file("val.parquet"))
    metrics, table = evaluate_reasoner(reasoner, tied, codes, val, PROMPT, **options)
    assert "untied" not in metrics
    assert "untied" not in table.column_names


def test_lists_without_any_target_are_an_error(reasoner, dataset, codes, lists):
    for absent in (lists.take(lists.label() > 0).top(1), lists.take(np.array([], dtype=np.int64))):
        with pytest.raises(DataError, match=r"none of \d+ lists has its target among its top 5"):
            evaluate_reasoner(reasoner, dataset, codes, absent, PROMPT, **OPTIONS)


def test_the_budget_is_in_the_reasoners_tokens(reasoner, dataset, codes, lists):
    slates = list_slates(dataset, codes, lists.take(np.arange(5)))
    whole = list_prompts(reasoner, slates, PROMPT)
    budget = max(len(reasoner.encode_chat(prompt.messages)) for prompt in whole) - 1
    for prompt in list_prompts(reasoner, slates, replace(PROMPT, budget=budget)):
        assert len(reasoner.encode_chat(prompt.messages)) <= budget
    with pytest.raises(ConfigError, match="more than the budget of 50"):
        list_prompts(reasoner, slates, replace(PROMPT, budget=50))


@given(st.permutations(range(7)))
def test_tau_is_that_of_scipy(order):
    assert kendall_tau(order) == pytest.approx(kendalltau(order, range(7)).statistic)


@pytest.mark.parametrize("order", [[], [0]])
def test_fewer_than_two_candidates_are_always_in_order(order):
    assert kendall_tau(order) == 1.0
