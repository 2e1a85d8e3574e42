"""Tables of reinforcement learning on Beauty: rewards that are gamed, the papers' recipes, and ranking unexplained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.reasoner.quality import BASE, METRICS, VARIANTS, difference, means, shown, verdict
from benchmarks.rl.jobs import Job
from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import metric_values, paired_bootstrap

__all__ = [
    "Ranked", "bypass_table", "findings_table", "first_to_last", "hacking_table", "popularity", "quality_table",
    "ranked", "together", "tuned",
]  # fmt: skip

# The share of a training's steps that "first" and "last" are means of.
ENDS = 0.1
# Of GR2 (arXiv 2602.07774), as it gives them.
PAPER = {
    "pre-rank": {"R@1": 0.2892, "R@5": 0.7227, "N@5": 0.5101},
    "SFT targeted, KP": {"R@1": 0.2006, "R@5": 0.7250, "N@5": 0.4759},
    "SFT rejection, KP": {"R@1": 0.2784, "R@5": 0.7091, "N@5": 0.4970},
    "RL targeted, KP": {"R@1": 0.2898, "R@5": 0.7221, "N@5": 0.5101},
    "RL rejection, KP": {"R@1": 0.2977, "R@5": 0.7460, "N@5": 0.5234},
}
Ranked = tuple[NDArray[np.int64], NDArray[np.int64]]  # the target's rank before and after, each (R,)


def ranked(stage: Artifact, file: str = "ranks.parquet") -> Ranked:
    """The target's rank in each test list, in the order that came in and in the reasoner's."""
    table = pq.read_table(stage.file(file))
    incoming, ranks = (table[name].to_numpy() for name in ("incoming", "reasoner"))
    return incoming, ranks


def tuned() -> dict[str, Ranked]:
    """What the four models of `make reasoner` make of the test lists, by their names."""
    return {f"SFT {each.name}": ranked(Artifact.load(each.folder / "sft", "sft")) for each in VARIANTS}


def popularity(size: int = 10) -> Ranked:
    """The test lists of `size` sorted by how often an item was bought in training: an order that reads no history."""
    dataset = Dataset.load(BASE / "prepare")
    events = np.concatenate([dataset.events(user)[:-2] for user in range(dataset.users)])
    counts = np.bincount(events, minlength=len(dataset.catalog.ids))
    held = CandidateLists.load(BASE / "midtrain" / "test.parquet").top(size).with_target()
    order = np.argsort(-np.where(held.candidates < 0, -1, counts[held.candidates]), axis=1, kind="stable")
    found = np.take_along_axis(held.candidates, order, 1) == held.target[:, None]
    return held.label() + 1, found.argmax(1) + 1


def hacking_table(origin: str, jobs: Sequence[Job], baselines: Mapping[str, Ranked]) -> dict[str, Any]:
    """What each reward makes of one model, of which `origin` tells: its answers in training and to test lists."""
    rows = [
        [name, "", "", "", "", "", *means(ranks), *_changes(incoming, ranks), ""]
        for name, (incoming, ranks) in baselines.items()
    ]
    for job in jobs:
        stage = job.stage("rl")
        steps = pq.read_table(stage.file("steps.parquet"))
        incoming, ranks = ranked(stage)
        test = stage.metrics["test"]
        parts = [
            str(stage.metrics["steps"]),
            *(first_to_last(steps, name) for name in ("reward", "valid", "copies/near", "format_only")),
        ]
        copied = f"{test['copied']:.1%}, {test['valid']:.1%} valid"
        rows.append([job.title, *parts, *means(ranks), *_changes(incoming, ranks), copied])
    return {
        "title": f"{origin}: trained by each reward; first to last tenth of the steps, then the test "
        "lists. Copies are "
        "near copies of the incoming order; unpaid are answers with a positive reward whose target did not rise",
        "columns": [
            "", "steps", "reward", "valid", "copies", "unpaid", *METRICS, "R@1 to incoming", "N@5 to incoming",
            "test answers copied",
        ],
        "rows": rows,
    }  # fmt: skip


def quality_table(found: Mapping[str, Ranked], befores: Mapping[str, str]) -> dict[str, Any]:
    """Models on the test lists, with differences to the incoming order and to the model that they were trained from."""
    incoming = next(iter(found.values()))[0]
    rows = [["pre-rank (midtrain's beam search)", *means(incoming), "", "", "", ""]]
    for name, (came, ranks) in found.items():
        own = ["", ""]
        if name in befores:
            changes = difference(found[befores[name]][1], ranks)
            own = [shown(changes[metric]) for metric in ("R@1", "N@5")]
        rows.append([name, *means(ranks), *_changes(came, ranks), *own])
    for name, paper in PAPER.items():
        cells = (f"{paper[metric]:.4f}" if metric in paper else "" for metric in METRICS)
        rows.append([f"the paper, {name}", *cells, "", "", "", ""])
    return {
        "title": f"re-ranking the {len(incoming)} test lists of ten that hold their target; differences with 95 % "
        "intervals over users",
        "columns": ["", *METRICS, "R@1 to incoming", "N@5 to incoming", "R@1 to its start", "N@5 to its start"],
        "rows": rows,
    }


def findings_table(found: Mapping[str, Ranked], claims: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Whether what the papers find is found here: `claims` are a finding, the worse model and the better one."""
    incoming = next(iter(found.values()))[0]
    rows = []
    for claim, before, after in claims:
        changes = difference(found[before][1] if before in found else incoming, found[after][1])
        for metric in ("R@1", "N@5"):
            paper = [PAPER.get(name, {}).get(metric) for name in (before, after)]
            theirs = "not given" if None in paper else f"{paper[1] - paper[0]:+.4f}"  # type: ignore[operator]
            ours = changes[metric]
            rows.append([claim, f"{after} minus {before}", metric, theirs, shown(ours), verdict(ours, 1)])
    columns = ["finding", "compared", "metric", "the paper", "ours", ""]
    return {"title": "the papers' findings on reinforcement learning", "columns": columns, "rows": rows}


def together(name: str, found: Mapping[str, Ranked], befores: Mapping[str, str]) -> list[list[str]]:
    """Rows for `findings_table`: what RL does on average to several models; a list counts once, not once a model."""

    def mean(names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
        values = [metric_values(found[each][1]) for each in names]
        return {metric: np.mean([each[metric] for each in values], axis=0) for metric in values[0]}

    changes = paired_bootstrap(mean(befores.values()), mean(befores), 0)
    return [
        ["RL helps", name, metric, "not given", shown(changes[metric]), verdict(changes[metric], 1)]
        for metric in ("R@1", "N@5")
    ]


def bypass_table(model: str, reasoned: Artifact, bypassed: Artifact) -> dict[str, Any]:
    """What dropping the explanation costs, and what a second pass without it brings back."""
    incoming, full = ranked(reasoned)
    _, dropped = ranked(bypassed, "start-ranks.parquet")
    _, again = ranked(bypassed)
    metrics = (reasoned.metrics["test"], bypassed.metrics["start"]["test"], bypassed.metrics["test"])
    rows = [["pre-rank", *means(incoming), "", "", "", ""]]
    compared = ((full, incoming), (dropped, full), (again, dropped))
    names = (f"{model}, with reasoning", "the same model, reasoning dropped", "after the second pass")
    for name, (ranks, before), test in zip(names, compared, metrics, strict=True):
        changes = difference(before, ranks)
        relative = means_of(ranks, "R@1") / means_of(before, "R@1") - 1
        parts = [shown(changes["R@1"]), f"{relative:+.1%}", shown(changes["N@5"]), f"{test['answer_tokens']:.0f}"]
        rows.append([name, *means(ranks), *parts])
    changes = difference(full, again)
    last = ["after the second pass, to the model with reasoning", *[""] * len(METRICS), shown(changes["R@1"])]
    rows.append([*last, f"{means_of(again, 'R@1') / means_of(full, 'R@1') - 1:+.1%}", shown(changes["N@5"]), ""])
    return {
        "title": f"{model}: ranking without the explanation, each row against the one above; the technical report "
        "loses 6-7 % of R@1 on hard traffic and recovers it",
        "columns": ["", *METRICS, "R@1", "R@1, relative", "N@5", "tokens"],
        "rows": rows,
    }


def means_of(ranks: NDArray[np.int64], metric: str) -> float:
    """The mean of one metric of the table's."""
    return float(means(ranks)[METRICS.index(metric)])


def _changes(incoming: NDArray[np.int64], ranks: NDArray[np.int64]) -> list[str]:
    changes = difference(incoming, ranks)
    return [shown(changes[metric]) for metric in ("R@1", "N@5")]


def first_to_last(steps: pa.Table, name: str) -> str:
    """The means of a column over the first and the last tenth of the steps."""
    found = steps[name].to_pylist() if name in steps.column_names else []
    values = np.array([value for value in found if value is not None])
    if not len(values):
        return "none"
    count = max(1, round(ENDS * len(values)))
    return f"{values[:count].mean():.3f} to {values[-count:].mean():.3f}"
