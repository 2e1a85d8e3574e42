"""Impressions with several positives on the whole way: lists, student, bundle, evaluation, engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.impressions import read_impressions
from gr2.data.synthetic import write_synthetic
from gr2.data.synthetic_clicks import Clicks
from gr2.features import SCORE_FEATURES
from gr2.manifest import CARD
from gr2.metrics import graded_values, paired_bootstrap
from gr2.models.student import Student
from gr2.pipeline import STAGES, execute, load_plan
from gr2.report.page import report_page, run_report
from gr2.report.quality import student_values
from gr2.report.run import Run
from gr2.report.tables import evaluation_table
from gr2.serving.engine import Engine
from gr2.training.distill import DistillConfig, distill, remember
from gr2.training.prerank import PrerankConfig
from gr2.training.student.propensity import place_propensities

SLATE = 8


def show_again(path: Path) -> None:
    """Show each user's last slate a second time, a minute later."""
    shown = pq.read_table(path)
    last = dict(zip(shown["user_id"].to_pylist(), shown["request_id"].to_pylist(), strict=True))
    again = shown.filter(pc.is_in(shown["request_id"], pa.array(list(last.values()))))
    again = again.set_column(0, "request_id", pc.binary_join_element_wise(again["request_id"], "again", "-"))
    moment = again.column_names.index("timestamp")
    again = again.set_column(moment, "timestamp", pc.add(again["timestamp"], 60))
    pq.write_table(pa.concat_tables([shown, again]), path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    items, interactions, impressions, _ = write_synthetic(
        folder, users=300, items=60, seed=2, clicks=Clicks(slate=SLATE, bias=0.0)
    )
    show_again(impressions)
    ids = Catalog.load(items).ids
    vectors = np.random.default_rng(0).normal(size=(len(ids), 8)).astype(np.float32)
    np.savez(folder / "vectors.npz", item_id=np.array(ids), vector=vectors)
    config = folder / "clicks.toml"
    config.write_text(
        f"""
[run]
out = "{folder / "run"}"
[prepare]
items = "{items}"
interactions = "{interactions}"
core = 0
[prerank]
impressions = "{impressions}"
[tokenize]
vectors = "{folder / "vectors.npz"}"
levels = 3
level_size = 8
[distill]
dim = 16
layers = 1
epochs = 1
batch = 64
threads = 1
propensity = "given"
propensities = [1.0, 0.5]
[export]
requests = 30
batched = false
[evaluate]
resamples = 500
"""
    )
    execute(load_plan(config))
    return folder / "run"


@pytest.fixture(scope="module")
def evaluation(run: Path) -> Artifact:
    return Artifact.load(run / "evaluate", "evaluate")


def test_lists_are_those_of_the_file_and_the_rest_is_counted(run: Path) -> None:
    prerank, dataset = Artifact.load(run / "prerank"), Dataset.load(run / "prepare")
    source = read_impressions(run.parent / "impressions.parquet", dataset)
    kept = sum(len(CandidateLists.load(prerank.file(f"{split}.parquet"))) for split in ("train", "val", "test"))
    counts = prerank.metrics["impressions"]
    assert counts["without_positive"] > 0
    assert kept + counts["without_positive"] + counts["without_negative"] == counts["requests"] == len(source.lists)
    assert prerank.metrics["models"] == 0


def test_a_student_of_clicks_beats_the_incoming_order(evaluation: Artifact) -> None:
    figures = evaluation.metrics["all"]
    assert evaluation.metrics["graded"]["positives"] > 1
    assert figures["difference"]["AUC"]["low"] > 0
    assert figures["difference"]["N@5"]["low"] > 0
    assert "AUC" in str(evaluation_table(evaluation.metrics).columns[1]._cells)


def test_evaluation_grades_what_the_engine_answers(run: Path, evaluation: Artifact) -> None:
    dataset, engine = Dataset.load(run / "prepare"), Engine(run / "export")
    slates = CandidateLists.load(run / "prerank" / "test.parquet").with_target()
    assert slates.features is not None
    assert slates.grades is not None
    ids, grades = dataset.catalog.ids, np.zeros(slates.candidates.shape, dtype=np.int8)
    for row in range(len(slates)):
        items = slates.candidates[row]
        answer = engine.rerank(
            [ids[item] for item in dataset.history(int(slates.user[row]), int(slates.position[row]))],
            [ids[item] for item in items],
            scores=slates.scores[row],
            features=slates.features[row],
        )
        grades[row] = slates.grades[row, [item.index for item in answer.items]]
    expected = graded_values(grades, np.ones(grades.shape, dtype=np.bool_))
    for name in ("N@5", "AUC", "R@1", "MRR"):
        assert evaluation.metrics["all"]["student"][name] == pytest.approx(expected[name].mean())
    assert evaluation.metrics["shuffled"]["slates_that_differ"] == 0


def test_clicks_that_were_weighed_to_learn_are_weighed_to_judge(run: Path, evaluation: Artifact) -> None:
    slates = CandidateLists.load(run / "prerank" / "test.parquet").with_target()
    orders = pq.read_table(evaluation.file("ranks.parquet")).column("order").to_pylist()
    assert slates.grades is not None
    assert slates.places is not None
    weighed = (2.0**slates.grades - 1) / np.where(slates.places == 1, 1.0, 0.5)
    first = sum(float(weighed[row, order[0]]) for row, order in enumerate(orders))
    found = evaluation.metrics["weighed"]
    assert found["student"]["R@1"] == pytest.approx(first / weighed.sum())
    assert found["difference"]["D@5"]["low"] > 0
    assert "weighed" in str(evaluation_table(evaluation.metrics).columns[0]._cells)


def distilled(run: Path, **settings: Any) -> tuple[Student, dict[str, Any]]:
    """The student of the run's lists without any training of path and head."""
    config = DistillConfig(dim=8, layers=1, epochs=0, threads=1, **settings)
    dataset, tokenize = Dataset.load(run / "prepare"), Artifact.load(run / "tokenize")
    train, val = (CandidateLists.load(run / "prerank" / f"{split}.parquet") for split in ("train", "val"))
    student, _, metrics = distill(config, dataset, tokenize.array("codes.npy"), 8, train, val, seed=0)
    return student, metrics


def test_propensities_weigh_training_and_validation_clicks(run: Path) -> None:
    given: dict[str, Any] = {"propensity": "given", "propensities": (1.0, 0.1)}
    for changed, epochs in (("prior", 1), ("weights", 0)):  # without passes over the lists, the prior is untrained
        plain, _ = distilled(run, prior_epochs=epochs)
        level, _ = distilled(run, prior_epochs=epochs, propensity="given", propensities=(1.0,))
        weighed, _ = distilled(run, prior_epochs=epochs, **given)
        values = [each.prior.linear.weight if changed == "prior" else each.weights for each in (plain, level, weighed)]
        assert torch.allclose(values[0], values[1], rtol=1e-4)
        assert not torch.allclose(values[0], values[2], rtol=1e-2)


def test_em_is_not_told_where_the_scores_put_a_candidate(run: Path) -> None:
    _, metrics = distilled(run, propensity="em", prior_epochs=0)
    dataset, codes = Dataset.load(run / "prepare"), Artifact.load(run / "tokenize").array("codes.npy")
    lists = CandidateLists.load(run / "prerank" / "train.parquet").top(10).with_target()
    features, _ = remember(DistillConfig(dim=8, layers=1), dataset, codes, lists, seed=0)
    expected = place_propensities("em", lists, features[:, :, len(SCORE_FEATURES) :], least=0.02)
    np.testing.assert_allclose(metrics["propensities"], expected)


def test_the_order_of_every_slate_is_kept(run: Path, evaluation: Artifact) -> None:
    slates = CandidateLists.load(run / "prerank" / "test.parquet").with_target()
    ranks = pq.read_table(evaluation.file("ranks.parquet")).to_pydict()
    for order, rank, label in zip(ranks["order"], ranks["student"], slates.label(), strict=True):
        assert sorted(order) == list(range(SLATE))
        assert order[rank - 1] == label


def test_the_bundle_names_the_features_of_the_impressions(run: Path) -> None:
    assert Engine(run / "export").bundle.manifest.features.names == ("taste",)


def test_the_card_says_what_was_left_out_and_how_clicks_count(run: Path) -> None:
    text, shown = (run / "export" / CARD).read_text(), Artifact.load(run / "prerank").metrics["impressions"]
    left = shown["without_positive"] + shown["without_negative"] + shown["unknown_users"]
    assert f"| slates left out | {left:,}: without a positive" in text
    assert "| lists come from | impressions |" in text
    assert "the first of the best grade is its target" in text
    assert "Clicks count as they are here, which favours what was shown on top" in text


def test_the_report_grades_its_slices_and_examples(run: Path, evaluation: Artifact) -> None:
    report = run_report(Run.load(run, tuple(STAGES)), seed=0, resamples=200, requests=5)
    quality = report["quality"]
    assert quality["graded"]
    assert quality["student"] == pytest.approx(evaluation.metrics["all"]["student"])
    assert "AUC" in quality["metrics"]
    assert "positives of the slate" in [group["title"] for group in report["slices"]]
    assert {item["grade"] for slate in report["examples"] for item in slate["before"]} >= {0, 1}
    page = report_page(report, {})
    assert b"AUC" in page
    assert b"By clicks that weigh one over how likely their place is looked at" in page


def test_intervals_of_the_report_are_over_users(run: Path) -> None:
    loaded = Run.load(run, tuple(STAGES))
    report = run_report(loaded, seed=0, resamples=200, requests=5)
    before, after = student_values(loaded)
    users = loaded.judged.slates.user
    assert len(np.unique(users)) < len(users)
    wanted = paired_bootstrap(before, after, 0, resamples=200, users=users)
    assert report["quality"]["rankers"][0]["difference"]["N@5"] == asdict(wanted["N@5"])
    group = next(each for each in report["slices"] if each["title"] == "incoming rank of the target")
    own = np.flatnonzero(loaded.judged.ranks["incoming"] == 1)
    parts = ({"N@5": values["N@5"][own]} for values in (before, after))
    found = paired_bootstrap(*parts, 0, resamples=200, users=users[own])["N@5"]
    assert {name: group["rows"][0][name] for name in ("mean", "low", "high")} == asdict(found)


def test_intervals_of_the_evaluation_are_over_users(run: Path, evaluation: Artifact) -> None:
    before, after = student_values(Run.load(run, tuple(STAGES)))
    users = CandidateLists.load(run / "prerank" / "test.parquet").with_target().user
    wanted = paired_bootstrap(before, after, evaluation.seed, resamples=500, users=users)
    assert evaluation.metrics["all"]["difference"]["AUC"] == pytest.approx(asdict(wanted["AUC"]))


def test_impressions_and_lists_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave val_lists out"):
        PrerankConfig(impressions="shown.parquet", val_lists="lists.parquet")
