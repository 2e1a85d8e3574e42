"""The report on a whole run: its figures are those of the run, what is missing is said, and the page needs nothing."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from gr2.artifact import Artifact, open_stage
from gr2.cli.app import app
from gr2.data.candidates import CandidateLists
from gr2.errors import ArtifactError
from gr2.metrics import metric_values
from gr2.pipeline import STAGES
from gr2.prompts.answer import answer_text
from gr2.report.curves import training_curves
from gr2.report.examples import explanations
from gr2.report.page import report_page, run_report
from gr2.report.quality import reasoner_facts
from gr2.report.run import Run
from gr2.tokenizer.tokenize import TokenizeConfig

SETTINGS = {"seed": 3, "resamples": 200, "requests": 10}


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return Run.load(tiny_run, tuple(STAGES))


@pytest.fixture(scope="module")
def report(run: Run) -> dict[str, Any]:
    found = run_report(run, **SETTINGS)
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def test_quality_is_that_of_the_evaluation(run: Run, report: dict[str, Any]) -> None:
    evaluation = run.stages["evaluate"].metrics["all"]
    assert report["quality"]["slates"] == evaluation["slates"]
    assert report["quality"]["student"] == pytest.approx(evaluation["student"])
    incoming = report["quality"]["rankers"][0]
    assert incoming["name"] == "incoming order"
    assert incoming["means"] == pytest.approx(evaluation["incoming"])
    for metric, change in incoming["difference"].items():
        assert change["mean"] == pytest.approx(evaluation["difference"][metric]["mean"])
        assert change["low"] <= change["mean"] <= change["high"]


def test_baselines_rank_by_what_they_count(run: Run, report: dict[str, Any]) -> None:
    dataset = run.dataset
    slates = CandidateLists.load(run.stages["prerank"].file("test.parquet")).top(10).with_target()
    events = [dataset.events(user)[:-2].tolist() for user in range(dataset.users)]
    counted: dict[str, list[int]] = {"popularity": [], "co-purchases with the last item": []}
    for row, (user, position) in enumerate(zip(slates.user.tolist(), slates.position.tolist(), strict=True)):
        items = [item for item in slates.candidates[row].tolist() if item >= 0]
        last = int(dataset.history(user, position)[-1])
        scores = {
            "popularity": [sum(own.count(item) for own in events) for item in items],
            "co-purchases with the last item": [sum(item in own and last in own for own in events) for item in items],
        }
        for name, values in scores.items():
            order = sorted(range(len(items)), key=lambda column: -values[column])
            counted[name].append(1 + order.index(int(slates.label()[row])))
    for ranker in report["quality"]["rankers"][1:]:
        expected = metric_values(np.array(counted[ranker["name"]]))
        assert ranker["means"]["MRR"] == pytest.approx(expected["MRR"].mean())


def test_a_ranking_that_the_evaluation_holds_is_a_baseline(run: Run, tmp_path: Path) -> None:
    table = pq.read_table(run.stages["evaluate"].file("ranks.parquet"))
    with open_stage(tmp_path / "evaluate", "evaluate", TokenizeConfig(), {}, 0) as work:
        work.metrics |= run.stages["evaluate"].metrics
        pq.write_table(table.append_column("lambdamart", table.column("student")), work.path / "ranks.parquet")
    other = Run(run.path, {**run.stages, "evaluate": Artifact.load(tmp_path / "evaluate")})
    quality = run_report(other, **SETTINGS)["quality"]
    assert quality["rankers"][-1]["name"] == "lambdamart"
    assert quality["rankers"][-1]["difference"]["N@5"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_every_group_of_slices_has_every_slate_once(report: dict[str, Any]) -> None:
    titles = [group["title"] for group in report["slices"]]
    assert len(titles) == 5
    for group in report["slices"]:
        assert sum(row["slates"] for row in group["rows"]) == report["quality"]["slates"]
        mean = sum(row["slates"] * row["student"] for row in group["rows"]) / report["quality"]["slates"]
        assert mean == pytest.approx(report["quality"]["student"]["N@5"])


def test_slices_hold_what_their_labels_say(run: Run, report: dict[str, Any]) -> None:
    dataset, judged = run.dataset, run.judged
    trained = [item for user in range(dataset.users) for item in dataset.events(user)[:-2].tolist()]
    targets, ends = judged.slates.target.tolist(), zip(judged.slates.user, judged.slates.position, strict=True)
    counted = {
        "events in the history": [len(dataset.history(int(user), int(position))) for user, position in ends],
        "training events of the target": [trained.count(item) for item in targets],
        "incoming rank of the target": [
            own.tolist().index(item) + 1 for own, item in zip(judged.slates.candidates, targets, strict=True)
        ],
    }
    groups = {group["title"]: {row["label"]: row["slates"] for row in group["rows"]} for group in report["slices"]}
    for title, values in counted.items():
        for label, slates in groups[title].items():
            first, _, last = label.removesuffix(": cold").removeprefix("above ").partition("\u2013")
            low, high = int(first), int(last or first)
            inside = [value > low if label.startswith("above") else low <= value <= high for value in values]
            assert sum(inside) == slates
    tied = int(dataset.tied[judged.slates.user].sum())
    assert groups["last day"].get("shared with other events", 0) == tied
    paths = [dataset.catalog.categories[item] for item in targets]
    named = [path[min(1, len(path) - 1)] if path else "none" for path in paths]
    for name, slates in groups["category of the target"].items():
        assert name == "other" or named.count(name) == slates


def test_examples_show_the_order_that_the_ranks_say(report: dict[str, Any]) -> None:
    assert report["examples"]
    for slate in report["examples"]:
        for order, rank in (("before", "incoming"), ("after", "student")):
            assert slate[order][slate[rank] - 1]["grade"] == 1
        assert sorted(item["title"] for item in slate["before"]) == sorted(item["title"] for item in slate["after"])
        assert [slate["before"][place + item["moved"]]["title"] for place, item in enumerate(slate["after"])] == [
            item["title"] for item in slate["after"]
        ]


def test_latency_is_measured_by_phase(report: dict[str, Any]) -> None:
    phases = report["latency"]["phases"]
    assert set(phases) == {"parse", "lookup", "trie", "model", "rank", "total"}
    for quantiles in phases.values():
        assert 0 < quantiles["p50"] <= quantiles["p95"] <= quantiles["p99"]
    assert phases["model"]["p50"] < phases["total"]["p50"]


def test_what_the_run_has_not_made_is_left_out_and_said(run: Run) -> None:
    early = Run(run.path, {name: run.stages[name] for name in ("prepare", "tokenize")})
    found = run_report(early, **SETTINGS)
    assert found["quality"] is found["examples"] is found["latency"] is None
    assert found["left_out"]["quality"] == "the run has no prerank and no evaluate"
    assert found["data"]["users"] == run.dataset.users
    page = report_page(found, {}).decode()
    assert "Left out: the run has no prerank and no evaluate." in page
    assert "Left out: the run has no prerank and no evaluate and no export." in page


def test_a_folder_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a run: no stage has finished here"):
        Run.load(tmp_path, tuple(STAGES))


def test_curves_are_found_wherever_a_stage_left_losses(tmp_path: Path) -> None:
    metrics = {
        "midtrain": {"training": {"losses": [3.0, 2.0]}, "seconds": 4.0},
        "distill": {
            "losses": [{"path": 7.0, "head": 5.0}, {"path": 6.0, "head": 4.0}],
            "pruned_losses": [{"path": 0.5}, {"path": 0.25}],
        },
        "sft": {"losses": [{"ranking": 1.0}]},
    }
    for name, values in metrics.items():
        with open_stage(tmp_path / name, name, TokenizeConfig(), {}, 0) as work:
            work.metrics |= values
    found = training_curves(Run.load(tmp_path, tuple(STAGES)))
    assert [(curve["stage"], curve["name"], curve["values"]) for curve in found] == [
        ("midtrain", "training loss", [3.0, 2.0]),
        ("distill", "head loss", [5.0, 4.0]),
        ("distill", "path loss", [7.0, 6.0]),
        ("distill", "pruned path loss", [0.5, 0.25]),
    ]


def with_reasoner(run: Run, folder: Path) -> Run:
    """The run with a stage `rl` whose answers keep the incoming order and cite the first candidate."""
    judged, codes = run.judged, run.stages["tokenize"].array("codes.npy").tolist()
    slates = judged.slates
    answers = [
        answer_text("Goes with it: {}.", [tuple(codes[item]) for item in row if item >= 0])
        for row in slates.candidates.tolist()
    ]
    cited = [json.loads(answer)["recommendations"][0] for answer in answers]
    columns = {
        "user": slates.user,
        "position": slates.position,
        "incoming": judged.ranks["incoming"],
        "reasoner": judged.ranks["incoming"],
        "refused": pa.array([None] * len(slates), pa.string()),
        "answer": [answer.replace("{}", sid) for answer, sid in zip(answers, cited, strict=True)],
    }
    test = {"all": {**run.stages["evaluate"].metrics["all"], "reasoner": {"N@5": 0.5, "R@1": 0.2}}, "valid": 1.0}
    with open_stage(folder / "rl", "rl", TokenizeConfig(), {}, 0) as work:
        work.metrics |= {"test": {**test, "copied": 1.0, "kendall_tau": 1.0, "slate": 10}}
        pq.write_table(pa.table(columns), work.path / "ranks.parquet")
        pq.write_table(
            pa.table({"step": [1, 2], "valid": [1.0, 1.0], "reward": [0.1, 0.3], "target/at_1": [0.1, 0.2],
                      "reward/from_1": [0.1, 0.2], "first/from_1": [0.5, 0.4]}),
            work.path / "steps.parquet",
        )  # fmt: skip
    return Run(run.path, {**run.stages, "rl": Artifact.load(folder / "rl")})


def test_what_a_reasoner_says_is_shown_with_titles(run: Run, tmp_path: Path) -> None:
    found = explanations(with_reasoner(run, tmp_path), seed=0)
    assert len(found) == 4
    for answer in found:
        assert answer["explanation"] == f"Goes with it: \u201c{answer['order'][0]}\u201d."
        assert answer["order"][answer["incoming"] - 1] == answer["target"]


def test_a_reasoner_of_the_same_slates_is_compared_with_the_student(run: Run, tmp_path: Path) -> None:
    (fact,) = reasoner_facts(with_reasoner(run, tmp_path), seed=0, resamples=200)
    evaluation = run.stages["evaluate"].metrics["all"]
    assert fact["student"]["slates"] == evaluation["slates"]
    assert fact["student"]["difference"]["N@5"]["mean"] == pytest.approx(evaluation["difference"]["N@5"]["mean"])


def test_the_page_needs_nothing_from_outside(run: Run, tmp_path: Path) -> None:
    made = with_reasoner(run, tmp_path)
    page = report_page(run_report(made, **SETTINGS), {"rl": b"picture"}).decode()
    assert "<script" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(http" not in page
    assert set(re.findall(r"https?://[^\s\"<]+", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    anchors = re.findall(r'\bid="([^"]+)"', page)
    assert len(anchors) == len(set(anchors))
    assert "prefers-color-scheme: dark" in page
    assert 'aria-label="rl"' in page


def test_text_of_others_is_escaped_everywhere(report: dict[str, Any]) -> None:
    hostile = copy.deepcopy(report)
    bomb = '</svg></p><script>alert("$x^2$")</script>\x1b[2J'
    for slate in hostile["examples"]:
        slate["history"] = [bomb]
        for item in (*slate["before"], *slate["after"]):
            item["title"] = bomb
    hostile["data"]["categories"] = [[bomb, 3], ["\u65e5\u672c\u8a9e \u05e2\u05d1 \x1b[2J \ud800", 2]]
    hostile["slices"][2]["rows"][0]["label"] = bomb
    hostile["run"] = bomb
    page = report_page(hostile, {}).decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\u65e5\u672c\u8a9e" in page


def test_an_incoming_order_that_never_hits_is_reported(report: dict[str, Any]) -> None:
    missed = copy.deepcopy(report)
    missed["quality"]["rankers"][0]["means"] = dict.fromkeys(missed["quality"]["metrics"], 0.0)
    assert b"from <b>0.0000</b> to" in report_page(missed, {})


def test_figures_of_other_inputs_are_said_to_be(run: Run, report: dict[str, Any], tmp_path: Path) -> None:
    assert not any(stage["outdated"] for stage in report["stages"])
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    record = json.loads((folder / "evaluate" / "artifact.json").read_text())
    record["parents"]["export"] = "0" * 64
    (folder / "evaluate" / "artifact.json").write_text(json.dumps(record))
    arguments = ["report", str(folder), "--requests", "5", "--resamples", "100"]
    answer = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments, catch_exceptions=False)
    assert "evaluate was made from another export; `gr2 run` makes it anew" in answer.stderr
    assert "made from another export" in (folder / "report" / "report.html").read_text()


def test_a_damaged_file_is_refused_with_its_stage(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "prepare", tmp_path / "prepare")
    items = tmp_path / "prepare" / "items.npy"
    whole = items.read_bytes()
    for damaged in (b"damaged", whole[:-1] + bytes([whole[-1] ^ 1])):
        items.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="run prepare again"):
            Run.load(tmp_path, tuple(STAGES))


def test_the_command_writes_page_and_figures(tiny_run: Path, tiny_shop: Path, tmp_path: Path) -> None:
    for number, target in enumerate((str(tiny_run), str(tiny_shop))):
        out = tmp_path / str(number)
        arguments = ["report", target, "--out", str(out), "--requests", "5", "--resamples", "100"]
        if target.endswith(".toml"):
            arguments += ["--set", f"run.out={tiny_run}"]
        answer = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments, catch_exceptions=False)
        assert answer.exit_code == 0
        assert "popularity" in answer.stdout
        assert json.loads((out / "report.json").read_text())["quality"]["slate"] == 10
        assert (out / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")
