from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr2.artifact import Artifact, open_stage
from gr2.catalog import Catalog
from gr2.config import build
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ArtifactError, ConfigError, DataError, Gr2Error
from gr2.models.preranker import PreRanker
from gr2.training import prerank
from gr2.training.loop.batches import epoch_batches
from gr2.training.prerank import PrerankConfig
from gr2.training.prerankers.retrieval import NOT_RANKED, catalogue_metrics, target_ranks, top_candidates
from gr2.training.prerankers.sasrec import Recipe, fit
from gr2.training.prerankers.sequences import training_windows

USERS, ITEMS = 60, 40
CONFIG = PrerankConfig(
    dim=8, layers=1, heads=1, dropout=0.2, max_history=6, batch=8, epochs=4, folds=3, list_size=5, threads=1
)
RECIPE = Recipe(
    dim=8,
    layers=1,
    heads=1,
    dropout=0.2,
    max_history=6,
    batch=8,
    epochs=4,
    patience=4,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.0,
    precision="float32",
)


def make_dataset(seed: int = 0) -> Dataset:
    """Users who walk the items in steps of one, with a jump now and then."""
    generator = np.random.default_rng(seed)
    runs = []
    for _ in range(USERS):
        steps = np.where(generator.random(generator.integers(3, 12)) < 0.8, 1, generator.integers(1, ITEMS))
        runs.append((generator.integers(ITEMS) + np.cumsum(steps)) % ITEMS)
    ids = [f"item{number}" for number in range(ITEMS)]
    catalog = Catalog(ids, [None] * ITEMS, [None] * ITEMS, [[]] * ITEMS, [None] * ITEMS, [None] * ITEMS)
    offsets = np.concatenate([[0], np.cumsum([len(run) for run in runs])]).astype(np.int64)
    items = np.concatenate(runs).astype(np.int32)
    users: list[Any] = list(range(1000, 1000 + USERS))
    return Dataset(catalog, users, offsets, items, np.full(len(items), np.nan), np.zeros(USERS, dtype=np.bool_))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


def save_prepared(dataset: Dataset, folder: Path) -> dict[str, Artifact]:
    with open_stage(folder / "prepare", "prepare", CONFIG, {}, 0) as work:
        dataset.save(work.path)
    return {"prepare": Artifact.load(folder / "prepare", "prepare")}


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("run")
    return prerank.run(CONFIG, save_prepared(dataset, folder), folder / "prerank", 7)


def without_times(metrics: Any) -> Any:
    if isinstance(metrics, dict):
        return {key: without_times(value) for key, value in metrics.items() if not key.endswith("_seconds")}
    return [without_times(value) for value in metrics] if isinstance(metrics, list) else metrics


def random_model(dataset: Dataset) -> PreRanker:
    torch.manual_seed(3)
    return PreRanker(len(dataset.catalog), dim=8, layers=1, heads=1, max_history=6)


def test_lists_cover_every_position_of_each_split(finished: Artifact, dataset: Dataset) -> None:
    lists = {split: CandidateLists.load(finished.file(f"{split}.parquet")) for split in ("train", "val", "test")}
    positions = [(user, position) for user in range(USERS) for position in range(1, dataset.train_length(user))]
    assert list(zip(lists["train"].user.tolist(), lists["train"].position.tolist(), strict=True)) == positions
    assert lists["val"].user.tolist() == lists["test"].user.tolist() == list(range(USERS))
    np.testing.assert_array_equal(lists["val"].position, dataset.lengths - 2)
    np.testing.assert_array_equal(lists["test"].position, dataset.lengths - 1)
    for split in lists.values():
        targets = [dataset.events(user)[position] for user, position in zip(split.user, split.position, strict=True)]
        assert split.target.tolist() == targets


def test_no_list_holds_a_seen_item(finished: Artifact, dataset: Dataset) -> None:
    for split in ("train", "val", "test"):
        lists = CandidateLists.load(finished.file(f"{split}.parquet"))
        assert lists.width == CONFIG.list_size
        for user, position, candidates in zip(lists.user, lists.position, lists.candidates, strict=True):
            assert not set(candidates.tolist()) & set(dataset.history(user, position).tolist())


def test_metrics_of_lists_and_catalogue_agree(finished: Artifact) -> None:
    metrics = finished.metrics
    for split in ("val", "test"):
        assert metrics["lists"][split]["R@1"] == pytest.approx(metrics[split]["R@1"])
        assert metrics["lists"][split]["with_target"] == pytest.approx(metrics[split]["R@5"])
    assert sum(fold["users"] for fold in metrics["folds"]) == USERS
    assert metrics["models"] == 1 + CONFIG.folds
    assert metrics["imported"] == []
    assert metrics["total_seconds"] > 0


def test_folds_divide_the_users() -> None:
    fold = prerank.fold_of_users(100, 3, seed=-5)
    assert sorted(np.bincount(fold).tolist()) == [33, 33, 34]
    np.testing.assert_array_equal(fold, prerank.fold_of_users(100, 3, seed=-5))
    assert not np.array_equal(fold, prerank.fold_of_users(100, 3, seed=5))


def test_training_lists_do_not_depend_on_what_their_users_did_later(dataset: Dataset, tmp_path: Path) -> None:
    """All but the first event of one fold's users is replaced: their first lists must stay as they were."""
    own = np.flatnonzero(prerank.fold_of_users(USERS, CONFIG.folds, 7) == 1)
    items = dataset.items.copy()
    for user in own.tolist():
        later = slice(dataset.offsets[user] + 1, dataset.offsets[user + 1])
        items[later] = (items[later] * 7 + 3) % ITEMS
    # One epoch, so that the changed users cannot make the models train longer or shorter.
    config = replace(CONFIG, epochs=1)
    plain, changed = (
        prerank.run(config, save_prepared(data, tmp_path), tmp_path / name, 7)
        for name, data in (("plain", dataset), ("changed", replace(dataset, items=items)))
    )
    assert changed.metrics["loss"] != plain.metrics["loss"]
    before, after = (CandidateLists.load(artifact.file("train.parquet")) for artifact in (plain, changed))
    first = np.isin(before.user, own) & (before.position == 1)
    assert first.sum() > 5
    np.testing.assert_array_equal(after.candidates[first], before.candidates[first])
    np.testing.assert_array_equal(after.scores[first], before.scores[first])
    assert not np.array_equal(after.scores[~np.isin(after.user, own)], before.scores[~np.isin(before.user, own)])


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    finished: Artifact, dataset: Dataset, tmp_path: Path
) -> None:
    inputs = save_prepared(dataset, tmp_path)
    again = prerank.run(CONFIG, inputs, tmp_path / "again", 7)
    assert again.digest == finished.digest
    assert without_times(again.metrics) == without_times(finished.metrics)
    assert prerank.run(CONFIG, inputs, tmp_path / "other", 8).digest != finished.digest


SCRIPT = """
import sys
from pathlib import Path
from gr2.artifact import Artifact
from gr2.training import prerank
from gr2.training.prerank import PrerankConfig
folder = Path(sys.argv[1])
config = PrerankConfig({config})
prerank.run(config, {{"prepare": Artifact.load(folder / "prepare")}}, folder / "prerank", 7)
"""


def test_killed_stage_resumes_to_the_same_bytes(finished: Artifact, dataset: Dataset, tmp_path: Path) -> None:
    inputs = save_prepared(dataset, tmp_path)
    arguments = repr(CONFIG).removeprefix("PrerankConfig(").removesuffix(")")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(config=arguments), str(tmp_path)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    waited = tmp_path / "prerank.partial" / "checkpoints" / "fold1.pt"
    deadline = time.monotonic() + 120
    while not waited.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the stage ended before it could be killed"

    resumed = prerank.run(CONFIG, inputs, tmp_path / "prerank", 7)
    assert resumed.digest == finished.digest
    assert without_times(resumed.metrics) == without_times(finished.metrics)
    assert not (tmp_path / "prerank" / "checkpoints").exists()


def test_training_interrupted_in_an_epoch_ends_in_the_same_weights(dataset: Dataset, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(model: PreRanker) -> float:
        calls.append(model)
        if len(calls) == 3:
            raise Interrupted
        return float(len(calls))

    users = np.arange(USERS)
    plain = fit(dataset, users, RECIPE, seed=(1,), checkpoint=tmp_path / "plain.pt", description="plain")
    calls: list[PreRanker] = []
    with pytest.raises(Interrupted):
        fit(dataset, users, RECIPE, seed=(1,), checkpoint=tmp_path / "cut.pt", description="cut", validate=interrupt)
    torch.rand(5)
    resumed = fit(dataset, users, RECIPE, seed=(1,), checkpoint=tmp_path / "cut.pt", description="cut")
    assert resumed.epochs == plain.epochs == RECIPE.epochs
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


def test_a_finished_model_is_not_trained_again(dataset: Dataset, tmp_path: Path) -> None:
    def refuse(model: PreRanker) -> float:
        raise AssertionError("trained again")

    users, checkpoint = np.arange(USERS), tmp_path / "one.pt"
    once = fit(dataset, users, RECIPE, seed=(1,), checkpoint=checkpoint, description="one")
    again = fit(dataset, users, RECIPE, seed=(1,), checkpoint=checkpoint, description="one", validate=refuse)
    torch.testing.assert_close(again.model.item.weight, once.model.item.weight, rtol=0, atol=0)
    assert (again.epochs, again.loss, again.seconds) == (once.epochs, once.loss, once.seconds)


def test_training_leaves_the_callers_random_state_alone(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(dataset, np.arange(9), RECIPE, seed=(1,), checkpoint=tmp_path / "one.pt", description="one")
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_a_damaged_checkpoint_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"one\.pt: not a checkpoint"):
        fit(dataset, np.arange(9), RECIPE, seed=(1,), checkpoint=tmp_path / "one.pt", description="one")


def test_training_stops_after_its_patience_and_keeps_the_best_epoch(dataset: Dataset, tmp_path: Path) -> None:
    values = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    recipe = replace(RECIPE, epochs=9, patience=2)
    checkpoint = tmp_path / "one.pt"
    fitted = fit(
        dataset,
        np.arange(USERS),
        recipe,
        seed=(1,),
        checkpoint=checkpoint,
        description="one",
        validate=lambda _: next(values),
    )
    assert (fitted.epochs, fitted.validation) == (2, 0.3)
    two = fit(
        dataset,
        np.arange(USERS),
        replace(recipe, stop_after=2),
        seed=(1,),
        checkpoint=tmp_path / "two.pt",
        description="two",
    )
    torch.testing.assert_close(two.model.item.weight, fitted.model.item.weight, rtol=0, atol=0)


def test_pre_ranker_learns_what_follows_what(dataset: Dataset, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=15, dim=16, dropout=0.0, learning_rate=3e-2)
    fitted = fit(dataset, np.arange(USERS), recipe, seed=(1,), checkpoint=tmp_path / "one.pt", description="one")
    ranks = target_ranks(fitted.model, dataset, np.arange(USERS), dataset.lengths - 1)
    assert catalogue_metrics(ranks)["R@1"] > 0.4


def test_every_event_but_the_first_is_a_target_once(dataset: Dataset) -> None:
    for max_history in (1, 3, 50):
        windows = training_windows(dataset, np.arange(USERS), max_history)
        assert windows.length.max() <= max_history + 1
        targets = [
            event
            for start, length in zip(windows.start.tolist(), windows.length.tolist(), strict=True)
            for event in range(start + 1, start + length)
        ]
        starts = dataset.offsets[:-1].tolist()
        expected = [
            start + position for user, start in enumerate(starts) for position in range(1, dataset.train_length(user))
        ]
        assert sorted(targets) == expected


def test_an_epoch_visits_every_window_once_in_a_new_order(dataset: Dataset) -> None:
    windows = training_windows(dataset, np.arange(USERS), 3)
    epochs = [np.concatenate(list(epoch_batches(windows.length, 8, np.random.default_rng(seed)))) for seed in (0, 0, 1)]
    assert sorted(epochs[0].tolist()) == list(range(len(windows)))
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epochs[2])


def test_lists_and_ranks_follow_the_models_scores(dataset: Dataset) -> None:
    model = random_model(dataset).eval()
    user, position = np.arange(USERS), dataset.lengths - 1
    ranks = target_ranks(model, dataset, user, position)
    lists = top_candidates(model, dataset, user, position, ITEMS)
    for row in range(USERS):
        history = dataset.history(row, int(position[row]))
        listed = lists.candidates[row][lists.candidates[row] >= 0].tolist()
        assert sorted(listed) == sorted(set(range(ITEMS)) - set(history.tolist()))
        with torch.no_grad():
            query = model(torch.from_numpy(history[-6:].astype(np.int64))[None])[0, -1]
            scores = (model.item.weight @ query).numpy()
        np.testing.assert_allclose(lists.scores[row, : len(listed)], scores[listed], rtol=1e-4, atol=1e-6)
        target = int(dataset.events(row)[-1])
        assert ranks[row] == (listed.index(target) + 1 if target in listed else NOT_RANKED)


def test_equal_scores_rank_by_item_index(dataset: Dataset) -> None:
    model = random_model(dataset)
    with torch.no_grad():
        model.item.weight.zero_()
    user, position = np.arange(USERS), dataset.lengths - 1
    lists = top_candidates(model, dataset, user, position, ITEMS)
    ranks = target_ranks(model, dataset, user, position)
    for row in range(USERS):
        listed = lists.candidates[row][lists.candidates[row] >= 0].tolist()
        assert listed == sorted(listed)
    label = lists.label()
    np.testing.assert_array_equal(ranks[label >= 0], label[label >= 0] + 1)


def test_the_order_of_rows_changes_no_list(dataset: Dataset) -> None:
    model = random_model(dataset)
    order = np.random.default_rng(0).permutation(USERS)
    lists = top_candidates(model, dataset, np.arange(USERS), dataset.lengths - 1, 5)
    shuffled = top_candidates(model, dataset, order, dataset.lengths[order] - 1, 5)
    np.testing.assert_array_equal(shuffled.candidates, lists.candidates[order])


def test_catalogue_metrics_by_hand() -> None:
    metrics = catalogue_metrics(np.array([1, 3, 10, NOT_RANKED]))
    assert metrics["R@1"] == 0.25
    assert metrics["R@10"] == 0.75
    assert metrics["N@5"] == pytest.approx((1 + 0.5) / 4)
    assert metrics["N@10"] == pytest.approx((1 + 0.5 + 1 / np.log2(11)) / 4)
    assert catalogue_metrics(np.array([], dtype=np.int64)) == {}


def test_a_diverged_training_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30)
    with pytest.raises(Gr2Error, match=r"diverged: lower \[prerank\] learning_rate"):
        prerank.run(config, save_prepared(dataset, tmp_path), tmp_path / "prerank", 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_an_error(dataset: Dataset, value: float) -> None:
    model = random_model(dataset)
    with torch.no_grad():
        model.item.weight[3] = value
    user = np.arange(USERS)
    for ask in (target_ranks, lambda *row: top_candidates(*row, 5)):
        with pytest.raises(Gr2Error, match="scores are not finite"):
            ask(model, dataset, user, dataset.lengths - 1)


def test_nothing_to_train_on_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    short = Dataset(
        dataset.catalog,
        dataset.user_ids[:1],
        np.array([0, 3], dtype=np.int64),
        dataset.items[:3],
        dataset.timestamps[:3],
        dataset.tied[:1],
    )
    with pytest.raises(DataError, match="none of the 1 users that it trains on"):
        fit(short, np.arange(1), RECIPE, seed=(1,), checkpoint=tmp_path / "one.pt", description="one")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"folds": 1}, "folds must be at least 2"),
        ({"dim": 64, "heads": 3}, "dim 64 and heads 3"),
        ({"list_size": 0}, "list_size must be at least 1, got 0"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"precision": "float16"}, "must be one of 'auto', 'bfloat16', 'float32'"),
        ({"test_ranker": "sasrec"}, "test_lists, which is not set"),
        ({"train_ranker": "sasrec"}, "train_lists, which is not set"),
    ],
)
def test_configurations_that_cannot_work_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PrerankConfig, table, "prerank")
