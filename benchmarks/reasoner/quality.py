"""The reasoner on Beauty, from scratch: mid-training, the lists it makes, and fine-tuning by four sets of traces.

`python -m benchmarks.reasoner.quality`. A run that was killed goes on where it was, as `gr2 run` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.metrics import Difference, metric_values, paired_bootstrap

__all__ = ["main"]

CONFIG = "configs/beauty-reasoner.toml"
BASE, FOLDER = ROOT / "runs" / "beauty-reasoner", ROOT / "runs" / "reasoner-sft"
SHARED = ("prepare", "tokenize", "midtrain")
STAGE_SECONDS = 2400
PROCESSES = 2
# Targeted sampling accepts about twice as many lists: as many steps for both.
EPOCHS = {"targeted": 2, "rejection": 4}
METRICS = ("R@1", "R@3", "R@5", "N@5")
NEXT = ("R@5", "R@10", "N@5", "N@10")
# Of the papers, as their authors give them (GR2, arXiv 2602.07774; OneRec-Think, arXiv 2510.11639).
NEXT_ITEM = {
    "SASRec": (0.0402, 0.0607, 0.0254, 0.0320),
    "TIGER": (0.0405, 0.0623, 0.0267, 0.0337),
    "HSTU": (0.0424, 0.0652, 0.0280, 0.0353),
    "OneRec-Think": (0.0563, 0.0791, 0.0398, 0.0471),
    "GR2, one task": (0.0564, None, 0.0406, None),
    "GR2, several tasks": (None, 0.0774, 0.0396, None),
}
RERANKED = {
    "pre-rank": {"R@1": 0.2892, "R@5": 0.7227, "N@5": 0.5101},
    "targeted, KP": {"R@1": 0.2006, "R@5": 0.7250, "N@5": 0.4759},
    "rejection, KP": {"R@1": 0.2784, "R@5": 0.7091, "N@5": 0.4970},
}


@dataclass(frozen=True)
class Variant:
    """How traces are sampled, and whether prompts prime with domain knowledge (KP)."""

    sampling: str
    knowledge: bool

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.sampling}, {'KP' if self.knowledge else 'no KP'}"

    @property
    def folder(self) -> Path:
        """Of its run."""
        return FOLDER / f"{self.sampling}-{'kp' if self.knowledge else 'plain'}"


VARIANTS = [Variant(sampling, knowledge) for sampling in ("targeted", "rejection") for knowledge in (True, False)]


@dataclass(frozen=True)
class Result:
    """A variant's stages, and the target's rank in each test list before and after."""

    traces: Artifact
    sft: Artifact
    incoming: NDArray[np.int64]  # (R,)
    ranks: NDArray[np.int64]  # (R,)


def base() -> Artifact:
    """The mid-trained model that all variants start from, made by two processes as the configuration advises."""
    gr2("run", CONFIG, "--only", "prepare", "--only", "tokenize")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(PROCESSES)]
    command = [sys.executable, *launch, "-m", "gr2.cli", "midtrain", CONFIG]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    return Artifact.load(BASE / "midtrain", "midtrain")


def run(variant: Variant, stage: str) -> None:
    """Run a stage of the variant, unless that was done."""
    options = {
        "run.out": variant.folder,
        "traces.sampling": variant.sampling,
        "sft.knowledge": str(variant.knowledge).lower(),
        "sft.epochs": EPOCHS[variant.sampling],
    }
    settings = [text for name, value in options.items() for text in ("--set", f"{name}={value}")]
    gr2("run", CONFIG, *settings, "--only", stage)


def measure() -> dict[Variant, Result]:
    """Make all traces and models, two at a time, unless they are there."""
    for variant in VARIANTS:
        link(BASE, variant.folder, SHARED)
    first = [variant for variant in VARIANTS if variant.knowledge]
    with ThreadPoolExecutor(PROCESSES) as pool:
        list(pool.map(lambda variant: run(variant, "traces"), first))
        # Traces do not depend on KP: the evidence teacher reads no prompt.
        for variant in first:
            link(variant.folder, Variant(variant.sampling, False).folder, ("traces",))
        list(pool.map(lambda variant: run(variant, "sft"), VARIANTS))
    return {variant: result(variant) for variant in VARIANTS}


def result(variant: Variant) -> Result:
    """What the variant's stages found."""
    sft = Artifact.load(variant.folder / "sft", "sft")
    table = pq.read_table(sft.file("ranks.parquet"))
    incoming, ranks = (table[name].to_numpy() for name in ("incoming", "reasoner"))
    return Result(Artifact.load(variant.folder / "traces", "traces"), sft, incoming, ranks)


def link(source: Path, target: Path, stages: tuple[str, ...]) -> None:
    """Take over finished stages without copying their bytes."""
    for stage in stages:
        if not (target / stage).exists():
            shutil.copytree(source / stage, target / stage, copy_function=os.link)


def difference(before: NDArray[np.int64], after: NDArray[np.int64]) -> dict[str, Difference]:
    """`after` minus `before` on the same lists, with the 95 % intervals."""
    return paired_bootstrap(metric_values(before), metric_values(after), 0)


def shown(value: Difference) -> str:
    """The difference with its interval."""
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]"


def means(ranks: NDArray[np.int64]) -> list[str]:
    """The table's metrics of the target's ranks."""
    values = metric_values(ranks)
    return [f"{values[metric].mean():.4f}" for metric in METRICS]


def next_item_table(midtrain: Artifact) -> dict[str, Any]:
    """The mid-trained model's next item beside the papers'."""

    def row(name: str, values: tuple[float | None, ...]) -> list[str]:
        return [name, *("" if value is None else f"{value:.4f}" for value in values)]

    lists = midtrain.metrics["lists"]
    ours = [row(f"ours, {split}", tuple(lists[split][name] for name in NEXT)) for split in ("val", "test")]
    return {
        "title": "next item, full catalogue, by constrained beam search; the papers' figures as they give them",
        "columns": ["", *NEXT],
        "rows": [*(row(name, values) for name, values in NEXT_ITEM.items()), *ours],
    }


def rerank_table(results: Mapping[Variant, Result]) -> dict[str, Any]:
    """The four models on the test lists, with their differences to the incoming order."""
    first = next(iter(results.values()))
    rows = [["pre-rank (midtrain's beam search)", *means(first.incoming), "", "", ""]]
    for variant, result in results.items():
        found = difference(result.incoming, result.ranks)
        untied = Difference(**result.sft.metrics["test"]["untied"]["difference"]["N@5"])
        changes = [shown(each) for each in (found["R@1"], found["N@5"], untied)]
        rows.append([f"SFT {variant.name}", *means(result.ranks), *changes])
    for name, paper in RERANKED.items():
        cells = (f"{paper[metric]:.4f}" if metric in paper else "" for metric in METRICS)
        rows.append([f"the paper, {'' if name == 'pre-rank' else 'SFT '}{name}", *cells, "", "", ""])
    return {
        "title": f"re-ranking the {len(first.incoming)} test lists of ten that hold their target; differences to the "
        "incoming order with 95 % intervals over users",
        "columns": ["", *METRICS, "R@1 difference", "N@5 difference", "N@5 difference, untied targets"],
        "rows": rows,
    }


def behaviour_table(results: Mapping[Variant, Result]) -> dict[str, Any]:
    """What the traces were, and how the models answer."""
    rows = []
    for variant, result in results.items():
        traces, sft = result.traces.metrics, result.sft.metrics
        last, test = sft["losses"][-1], sft["test"]
        rows.append(
            [
                variant.name,
                f"{traces['accepted']:,} of {traces['lists']:,}",
                *(f"{last[part]:.3f}" for part in ("reasoning", "ranking")),
                f"{test['copied']:.1%}",
                f"{test['kendall_tau']:.2f}",
                f"{test['answer_tokens']:.0f}",
                f"{result.traces.metrics['total_seconds']:.0f}",
                f"{sft['total_seconds']:.0f}",
            ]
        )
    columns = ["", "traces", "loss, reasoning", "loss, ranking", "copies", "tau", "tokens", "traces, s", "sft, s"]
    title = (
        "traces, final training losses in nats a token, and answers: copies of the incoming order, Kendall's tau to it"
    )
    return {"title": title, "columns": columns, "rows": rows}


def findings_table(results: Mapping[Variant, Result]) -> dict[str, Any]:
    """Where the paper's findings hold: it calls for a sign, and the interval must lie on that side of zero."""
    ranks = {variant.name: result.ranks for variant, result in results.items()}
    incoming = next(iter(results.values())).incoming
    compared = [
        ("SFT alone hurts", "pre-rank", "targeted, KP", -1),
        ("SFT alone hurts", "pre-rank", "rejection, KP", -1),
        ("rejection beats targeted", "targeted, KP", "rejection, KP", 1),
        ("rejection beats targeted", "targeted, no KP", "rejection, no KP", 1),
        ("KP beats no KP", "targeted, no KP", "targeted, KP", 1),
        ("KP beats no KP", "rejection, no KP", "rejection, KP", 1),
    ]
    rows = []
    for claim, before, after, sign in compared:
        found = difference(ranks.get(before, incoming), ranks[after])
        for metric in ("R@1", "N@5"):
            paper = [RERANKED.get(name, {}).get(metric) for name in (before, after)]
            theirs = "not given" if None in paper else f"{paper[1] - paper[0]:+.4f}"  # type: ignore[operator]
            rows.append(
                [claim, f"{after} minus {before}", metric, theirs, shown(found[metric]), verdict(found[metric], sign)]
            )
    return {
        "title": "the paper's findings on fine-tuning alone",
        "columns": ["finding", "compared", "metric", "the paper", "ours", ""],
        "rows": rows,
    }


def verdict(found: Difference, sign: int) -> str:
    """Whether a difference has the sign that a finding calls for."""
    low, high = sorted((sign * found.low, sign * found.high))
    return "holds" if low > 0 else "does not hold" if high < 0 else "cannot be told"


def main() -> None:
    """Run everything and store the record."""
    midtrain = base()
    results = measure()
    seconds = {"midtrain": midtrain.metrics["total_seconds"]}
    seconds |= {
        stage: max(getattr(result, stage).metrics["total_seconds"] for result in results.values())
        for stage in ("traces", "sft")
    }
    figures = [
        Figure.judge(f"Beauty from scratch: {stage}, the longest run", spent, STAGE_SECONDS, at_most=True, unit=" s")
        for stage, spent in seconds.items()
    ]
    figures += [
        Figure(f"SFT {variant.name}: {metric}, minus incoming order", shown(found[metric]), "measured", "ok")
        for variant, result in results.items()
        for found in [difference(result.incoming, result.ranks)]
        for metric in ("R@1", "N@5")
    ]
    tables = [
        next_item_table(midtrain),
        rerank_table(results),
        findings_table(results),
        behaviour_table(results),
    ]
    random_order = metric_values(np.arange(1, 11))["N@5"].mean()
    notes = [
        "one seed; the intervals are over users and do not hold the spread over seeds",
        f"the model has {midtrain.metrics['parameters']:,} parameters; traces are the evidence teacher's",
        "our beam search removes items that the user has had already",
        f"a random order has R@1 .1000, R@5 .5000 and N@5 {random_order:.4f}: at this size, fine-tuning on few traces "
        "teaches the answer's form before it teaches which candidate fits",
        "targeted and rejection traces train for as many steps: 2 epochs of the first, 4 of the second",
    ]
    path = store(
        Record("reasoner.quality", "The reasoner on Beauty, from scratch", "make reasoner", figures, tables, notes)
    )
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
