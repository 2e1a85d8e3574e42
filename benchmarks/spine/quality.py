"""Ranking quality on real data, stored in docs/results/: `python -m benchmarks.spine.quality beauty|games18|sasrec`.

Each takes long on two cores; a run that was killed goes on where it was, as `gr2 run` does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import ROOT, Figure, Record, store
from gr2.metrics import METRICS

__all__ = ["main"]

# The literature's protocol for Amazon Beauty; the bars are what a well-trained SASRec must reach there.
SASREC_BARS = {"R@10": 0.078, "N@10": 0.044}
SASREC_PAPERS = {"R@5": 0.0402, "R@10": 0.0607, "N@5": 0.0254, "N@10": 0.0320}


def gr2(*arguments: str) -> str:
    """Run the command line as a user would, and return the command as text."""
    subprocess.run([sys.executable, "-m", "gr2.cli", *arguments], cwd=ROOT, check=True)
    return " ".join(["gr2", *arguments])


def artifact(folder: Path, stage: str) -> dict[str, Any]:
    """The metrics of a finished stage."""
    record: dict[str, Any] = json.loads((ROOT / folder / stage / "artifact.json").read_text(encoding="utf-8"))
    metrics: dict[str, Any] = record["metrics"]
    return metrics


def rerank(name: str, title: str) -> Record:
    """The whole path of configs/NAME.toml: student against the incoming order, with intervals."""
    command = gr2("run", f"configs/{name}.toml")
    evaluation = artifact(Path("runs") / name, "evaluate")
    figures = []
    for metric in ("N@5", "R@1"):
        difference = evaluation["all"]["difference"][metric]
        value = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference)
        status = "ok" if difference["low"] > 0 else "short"
        figures.append(Figure(f"{name}: {metric}, student minus incoming order", value, "interval above 0", status))
    tables = [quality_table(part, evaluation[part]) for part in ("all", "untied") if evaluation[part]]
    lists = f"{evaluation['target_in_slate']} of {evaluation['lists']} test lists hold the target in their top 10"
    shuffled = f"shuffling the slates changed {evaluation['shuffled']['slates_that_differ']} of the target's ranks"
    stages = {stage: artifact(Path("runs") / name, stage) for stage in ("prerank", "distill")}
    tables.append(parts_table(stages["distill"]))
    spent = f"prerank {stages['prerank']['total_seconds']:.0f} s, distill {stages['distill']['total_seconds']:.0f} s"
    notes = [lists, shuffled, f"wall time beside other work on the machine: {spent}"]
    return Record(f"spine.{name}", title, command, figures, tables, notes)


def parts_table(distill: dict[str, Any]) -> dict[str, Any]:
    """What each part of the score is worth on the validation lists, which the weights of the parts are fitted to."""
    rows = [
        [part, *(f"{distill[part][name]:.4f}" for name in ("R@1", "N@5"))]
        for part in ("incoming", "path", "prior", "head", "path+prior", "student")
    ]
    title = f"parts of the score on {distill['validation_lists']} validation lists, which also fit their weights"
    return {"title": title, "columns": ["", "R@1", "N@5"], "rows": rows}


def quality_table(part: str, values: dict[str, Any]) -> dict[str, Any]:
    """Both rankings and their difference as a table."""
    title = {"all": "all test users with the target in the slate", "untied": "untied targets only"}[part]
    names = list(METRICS)
    rows = [[who, *(f"{values[who][name]:.4f}" for name in names)] for who in ("incoming", "student")]
    differences = [values["difference"][name] for name in names]
    rows.append(["difference", *("{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**each) for each in differences)])
    relative = (f"{values['student'][name] / values['incoming'][name] - 1:+.1%}" for name in names)
    rows.append(["relative", *relative])
    return {"title": f"{title} ({values['slates']})", "columns": ["", *names], "rows": rows}


def sasrec() -> Record:
    """The pre-ranker alone on Beauty, ties as stored, seen items removed, full catalogue."""
    overrides = ["run.out=runs/beauty-stored", "prepare.ties=stored", "prerank.folds=2"]
    settings = [text for override in overrides for text in ("--set", override)]
    command = gr2("run", "configs/beauty.toml", *settings, "--only", "prepare", "--only", "prerank")
    metrics = artifact(Path("runs/beauty-stored"), "prerank")
    test = metrics["test"]
    figures = [
        Figure.judge(f"SASRec on Beauty, ties as stored: test {metric}", test[metric], bar)
        for metric, bar in SASREC_BARS.items()
    ]
    names = ["R@5", "R@10", "N@5", "N@10"]
    rows = [
        ["SASRec as papers quote it", *(f"{SASREC_PAPERS[name]:.4f}" for name in names)],
        ["ours", *(f"{test[name]:.4f}" for name in names)],
    ]
    table = {"title": "full catalogue, next item", "columns": ["", *names], "rows": rows}
    notes = [f"{metrics['epochs']} epochs in {metrics['train_seconds']:.0f} s, stopped by validation N@10"]
    return Record(
        "spine.sasrec", "The pre-ranker on Beauty, the literature's protocol", command, figures, [table], notes
    )


RUNS: dict[str, Callable[[], Record]] = {
    "sasrec": sasrec,
    "beauty": lambda: rerank("beauty", "Re-ranking SASRec's lists on Beauty"),
    "games18": lambda: rerank("games18", "Re-ranking imported SASRec lists on games18"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was named and store its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=sorted(RUNS))
    path = store(RUNS[parser.parse_args(arguments).run]())
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
