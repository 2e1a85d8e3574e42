"""Impressions with several positives on the whole way: lists, student, bundle, evaluation, engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.impressions import read_impressions
from gr2.data.synthetic import write_synthetic
from gr2.data.synthetic_clicks import Clicks
from gr2.metrics import graded_values
from gr2.pipeline import STAGES, execute, load_plan
from gr2.report.page import report_page, run_report
from gr2.report.run import Run
from gr2.report.tables import evaluation_table
from gr2.serving.engine import Engine
from gr2.training.prerank import PrerankConfig

SLATE = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    items, interactions, impressions, _ = write_synthetic(
        folder, users=300, items=60, seed=2, clicks=Clicks(slate=SLATE, bias=0.0)
    )
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


def test_the_order_of_every_slate_is_kept(run: Path, evaluation: Artifact) -> None:
    slates = CandidateLists.load(run / "prerank" / "test.parquet").with_target()
    ranks = pq.read_table(evaluation.file("ranks.parquet")).to_pydict()
    for order, rank, label in zip(ranks["order"], ranks["student"], slates.label(), strict=True):
        assert sorted(order) == list(range(SLATE))
        assert order[rank - 1] == label


def test_the_bundle_names_the_features_of_the_impressions(run: Path) -> None:
    assert Engine(run / "export").bundle.manifest.features.names == ("taste",)


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


def test_impressions_and_lists_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave val_lists out"):
        PrerankConfig(impressions="shown.parquet", val_lists="lists.parquet")
