import numpy as np
import pytest
import torch

from gr2.artifact import Artifact
from gr2.data.candidates import PADDING
from gr2.data.dataset import Dataset
from gr2.models.reasoner import SidSpec, from_scratch
from gr2.training.reasoner.next_item import NextItem, list_metrics


@pytest.fixture(scope="module")
def world(tiny_parents):
    dataset = Dataset.load(tiny_parents["prepare"].path)
    codes = tiny_parents["tokenize"].array("codes.npy")
    sids = SidSpec.of(tiny_parents["tokenize"])
    reasoner = from_scratch("tiny", ["some words"], sids, vocabulary=400, seed=5)
    with torch.no_grad():
        # A model from scratch is nearly indifferent; this one has opinions.
        for parameter in reasoner.model.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    reasoner.model.eval()
    return dataset, codes, reasoner


@torch.no_grad()
def every_score(reasoner, codes, history):
    """(N,) the log-likelihood of each item after `history`, each by a pass of its own without a cache."""
    tokens = reasoner.item_tokens(codes)
    prefix = [*tokens[history].reshape(-1).tolist(), *reasoner.vocabulary.begin]
    scores = []
    for item in range(len(codes)):
        logits = reasoner.model(torch.tensor([[*prefix, *tokens[item, 1:-1].tolist()]])).logits[0].double()
        total = 0.0
        for level, token in enumerate(tokens[item, 1:-1].tolist()):
            row = logits[len(prefix) - 1 + level]
            total += float(row[token] - row[torch.from_numpy(reasoner.vocabulary.tokens[level])].logsumexp(0))
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize("plain", [True, False])
def test_enough_beams_find_the_most_likely_unseen_items(world, plain):
    dataset, codes, reasoner = world
    search = NextItem(reasoner, codes, beams=len(codes), max_history=4)
    assert search.plain
    search.plain = plain
    user = np.array([0, 3, 8, 9])
    position = np.array([1, 2, 3, 4])
    lists = search.lists(dataset, user, position, size=12)
    for row, (who, where) in enumerate(zip(user, position, strict=True)):
        history = dataset.history(who, where)
        expected = every_score(reasoner, codes, history[-4:])
        expected[history] = -np.inf
        order = np.argsort(-expected)[:12]
        assert lists.candidates[row].tolist() == order.tolist()
        assert lists.scores[row] == pytest.approx(expected[order], abs=1e-3)
    assert lists.target.tolist() == [dataset.events(who)[where] for who, where in zip(user, position, strict=True)]


def test_only_the_latest_history_is_seen_and_all_of_it_denied(world):
    dataset, codes, reasoner = world
    user = int(np.argmax(dataset.lengths))
    position = dataset.lengths[user] - 1
    search = NextItem(reasoner, codes, beams=len(codes), max_history=2)
    lists = search.lists(dataset, np.array([user]), np.array([position]), size=len(codes))
    history = dataset.history(user, int(position))
    expected = every_score(reasoner, codes, history[-2:])
    kept = lists.candidates[0][lists.candidates[0] != PADDING]
    assert set(kept.tolist()) == set(range(len(codes))) - set(history.tolist())
    assert lists.scores[0, : len(kept)] == pytest.approx(np.sort(expected[kept])[::-1], abs=1e-3)


def test_rows_keep_their_places_whatever_their_length(world):
    dataset, codes, reasoner = world
    search = NextItem(reasoner, codes, beams=8, max_history=3)
    user = np.arange(dataset.users)
    position = dataset.lengths - 1
    whole = search.lists(dataset, user, position, size=5)
    for row in (0, 7, 50):
        alone = search.lists(dataset, user[[row]], position[[row]], size=5)
        assert alone.candidates[0].tolist() == whole.candidates[row].tolist()


def test_metrics_count_lists_without_their_target_as_misses(world):
    dataset, codes, reasoner = world
    search = NextItem(reasoner, codes, beams=10, max_history=3)
    lists = search.lists(dataset, np.arange(dataset.users), dataset.lengths - 1, size=10)
    metrics = list_metrics(lists)
    label = lists.label()
    assert metrics["lists"] == dataset.users
    assert metrics["R@5"] == pytest.approx(((label >= 0) & (label < 5)).mean())
    assert metrics["with_target"] == pytest.approx((label >= 0).mean()) == metrics["R@10"]


def test_lists_of_a_model_that_knows_nothing_are_told_apart_by_popularity(tiny_run):
    prepare, tokenize = (Artifact.load(tiny_run / name, name) for name in ("prepare", "tokenize"))
    dataset, codes = Dataset.load(prepare.path), tokenize.array("codes.npy")
    reasoner = from_scratch("tiny", ["some words"], SidSpec.of(tokenize), vocabulary=400, seed=5)
    search = NextItem(reasoner, codes, beams=20, max_history=4)
    lists = search.lists(dataset, np.arange(dataset.users), dataset.lengths - 1, size=10)
    metrics = list_metrics(lists)
    assert metrics["distinct_items"] < 0.4 * len(codes)
    held = lists.with_target()
    earlier = np.concatenate([dataset.events(user)[:-2] for user in range(dataset.users)])
    popularity = np.bincount(earlier, minlength=len(codes))
    order = np.argsort(-popularity[held.candidates], axis=1, kind="stable")
    ranks = np.argmax(np.take_along_axis(held.candidates, order, 1) == held.target[:, None], 1)
    # No history is looked at, and yet the targets rise.
    assert ranks.mean() < held.label().mean() - 1.0
