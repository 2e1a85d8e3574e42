"""The evaluation of a real bundle: what it counts, and that nothing leaks through the order of the input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.evaluate import INPUTS, EvaluateConfig, engine_ranks, run
from gr2.metrics import METRICS, ranking_metrics
from gr2.report.tables import evaluation_table
from gr2.serving.engine import Engine


@pytest.fixture(scope="module")
def inputs(tiny_run: Path) -> dict[str, Artifact]:
    return {name: Artifact.load(tiny_run / name, name) for name in INPUTS}


@pytest.fixture(scope="module")
def evaluation(tiny_run: Path) -> Artifact:
    return Artifact.load(tiny_run / "evaluate", "evaluate")


@pytest.fixture(scope="module")
def slates(inputs: dict[str, Artifact]) -> CandidateLists:
    return CandidateLists.load(inputs["prerank"].file("test.parquet")).top(10).with_target()


def test_only_slates_with_their_target_count(
    evaluation: Artifact, inputs: dict[str, Artifact], slates: CandidateLists
) -> None:
    lists = CandidateLists.load(inputs["prerank"].file("test.parquet"))
    metrics = evaluation.metrics
    assert metrics["lists"] == len(lists)
    assert metrics["target_in_slate"] == metrics["all"]["slates"] == len(slates) > 0
    assert metrics["target_in_candidates"] == int((lists.label() >= 0).sum())


def test_incoming_metrics_are_those_of_the_lists(evaluation: Artifact, slates: CandidateLists) -> None:
    assert evaluation.metrics["all"]["incoming"] == pytest.approx(ranking_metrics(slates.label() + 1))


def test_student_metrics_are_those_of_the_engine(
    evaluation: Artifact, inputs: dict[str, Artifact], slates: CandidateLists
) -> None:
    dataset, engine = Dataset.load(inputs["prepare"].path), Engine(inputs["export"].path)
    ids = dataset.catalog.ids
    ranks = []
    for row in range(len(slates)):
        history = [ids[item] for item in dataset.events(int(slates.user[row]))[:-1]]
        candidates = [ids[item] for item in slates.candidates[row]]
        answer = engine.rerank(history, candidates, scores=slates.scores[row])
        ranks.append(1 + [item.item_id for item in answer.items].index(ids[int(slates.target[row])]))
    assert evaluation.metrics["all"]["student"] == pytest.approx(ranking_metrics(np.array(ranks)))
    assert pq.read_table(evaluation.file("ranks.parquet")).column("student").to_pylist() == ranks


def test_difference_and_interval_fit_the_two_rankings(evaluation: Artifact) -> None:
    figures = evaluation.metrics["all"]
    for name in METRICS:
        change = figures["difference"][name]
        assert change["mean"] == pytest.approx(figures["student"][name] - figures["incoming"][name])
        assert change["low"] <= change["mean"] <= change["high"]


def test_untied_slates_are_those_of_untied_users(
    evaluation: Artifact, inputs: dict[str, Artifact], slates: CandidateLists
) -> None:
    tied = Dataset.load(inputs["prepare"].path).tied[slates.user]
    assert 0 < evaluation.metrics["untied"]["slates"] == int((~tied).sum()) < len(slates)


def test_shuffling_the_input_changes_no_rank(evaluation: Artifact) -> None:
    assert evaluation.metrics["shuffled"]["slates_that_differ"] == 0
    assert evaluation.metrics["shuffled"]["student"] == evaluation.metrics["all"]["student"]


def test_a_short_list_is_asked_without_its_padding(inputs: dict[str, Artifact], slates: CandidateLists) -> None:
    dataset, engine = Dataset.load(inputs["prepare"].path), Engine(inputs["export"].path)
    row = slates.take(np.array([int(np.flatnonzero(slates.label() < 3)[0])]))
    short = row.top(3)
    padding = np.full((1, 2), -1, dtype=np.int32), np.full((1, 2), -np.inf, dtype=np.float32)
    padded = replace(
        short,
        candidates=np.concatenate([short.candidates, padding[0]], axis=1),
        scores=np.concatenate([short.scores, padding[1]], axis=1),
    )
    backwards = np.arange(5)[None, ::-1]
    expected = engine_ranks(engine, dataset, short, use_scores=True)
    assert engine_ranks(engine, dataset, padded, use_scores=True) == expected
    assert engine_ranks(engine, dataset, padded, use_scores=True, order=backwards) == expected


def test_validation_split_can_be_evaluated_without_scores(
    inputs: dict[str, Artifact], tmp_path: Path, evaluation: Artifact
) -> None:
    config = EvaluateConfig(split="val", use_scores=False, resamples=100)
    artifact = run(config, inputs, tmp_path / "evaluate", 0)
    metrics = artifact.metrics
    assert "untied" not in metrics
    assert pq.read_table(artifact.file("ranks.parquet")).column_names == ["user", "incoming", "student", "order"]
    table = evaluation_table(metrics)
    assert table.row_count == len(METRICS)
    assert table.title == "The top 10 of each validation list, re-ranked"
    assert "were fitted on these lists" in str(table.caption)
    assert metrics["all"]["student"] != evaluation.metrics["all"]["student"]


def test_the_same_run_gives_the_same_artefact(
    inputs: dict[str, Artifact], tmp_path: Path, evaluation: Artifact
) -> None:
    again = run(EvaluateConfig(resamples=500), inputs, tmp_path / "evaluate", 0)
    assert (again.digest, again.fingerprint) == (evaluation.digest, evaluation.fingerprint)


def test_lists_without_any_target_are_an_error(
    inputs: dict[str, Artifact], tmp_path: Path, slates: CandidateLists
) -> None:
    absent = slates.take(slates.label() > 0).top(1)
    folder = tmp_path / "prerank"
    folder.mkdir()
    absent.save(folder / "test.parquet")
    with pytest.raises(DataError, match=r"none of \d+ lists has its target among its top 10"):
        run(EvaluateConfig(), {**inputs, "prerank": replace(inputs["prerank"], path=folder)}, tmp_path / "out", 0)


@pytest.mark.parametrize("wrong", [{"slate": 1}, {"slate": 1025}, {"resamples": 10}])
def test_unusable_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluateConfig(**wrong)  # type: ignore[arg-type]


def test_the_table_has_a_row_a_metric_and_group(evaluation: Artifact) -> None:
    assert evaluation_table(evaluation.metrics).row_count == 2 * len(METRICS)
