"""Where the student helps and where it does not: its N@5 on slices of the judged slates, with intervals over users."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.metrics import paired_bootstrap
from gr2.report.quality import student_values
from gr2.report.run import Run

__all__ = ["slice_facts"]

METRIC = "N@5"
CATEGORIES = 8
COLD = "0: cold"


def slice_facts(run: Run, *, seed: int, resamples: int) -> list[dict[str, Any]]:
    """The slices in groups: a title, what they are of, and rows with their slates, both means and the difference."""
    before, after = student_values(run)
    facts = []
    for title, labels in _groups(run).items():
        rows = []
        for label in dict.fromkeys(labels.tolist()):
            own = np.flatnonzero(labels == label)
            change = paired_bootstrap(
                {METRIC: before[METRIC][own]},
                {METRIC: after[METRIC][own]},
                seed,
                resamples=resamples,
                users=run.judged.slates.user[own],
            )[METRIC]
            means = {"incoming": float(before[METRIC][own].mean()), "student": float(after[METRIC][own].mean())}
            rows.append({"label": label, "slates": len(own), **means, **asdict(change)})
        facts.append({"title": title, "metric": METRIC, "rows": _in_order(title, rows)})
    return facts


def _groups(run: Run) -> dict[str, NDArray[np.str_]]:
    """The label of each slate, (R,), in each group."""
    slates = run.judged.slates
    label = np.maximum(slates.label(), 0)
    target = slates.candidates[np.arange(len(slates)), label]
    groups = {
        "events in the history": _banded(slates.position, (1, 3, 5, 10, 20)),
        "training events of the target": _banded(run.popularity[target], (0, 5, 20, 100, 500), zero=COLD),
        "category of the target": _categories(run, target),
        "incoming rank of the target": _banded(run.judged.ranks["incoming"], (1, 2, 3, 5, 10)),
    }
    if "untied" in run.judged.ranks:
        groups["last day"] = np.where(run.judged.ranks["untied"], "target alone", "shared with other events")
    if slates.grades is not None:
        groups["positives of the slate"] = _banded((slates.grades > 0).sum(axis=1), (1, 2, 3, 5))
    return groups


def _banded(values: NDArray[np.integer], edges: tuple[int, ...], *, zero: str = "0") -> NDArray[np.str_]:
    """The label of the band of each value: up to the first edge, to the second, ..., above the last."""
    lows = (0, *(edge + 1 for edge in edges))
    names = [
        zero if high == 0 else str(high) if low == high or (low == 0 and high == 1) else f"{low}\u2013{high}"
        for low, high in zip(lows, edges, strict=False)
    ]
    return np.array([*names, f"above {edges[-1]}"])[np.searchsorted(edges, values)]


def _categories(run: Run, target: NDArray[np.int32]) -> NDArray[np.str_]:
    """The second level of the target's category path, or the first; rare ones are `other`."""
    paths = run.dataset.catalog.categories
    names = [path[min(1, len(path) - 1)] if (path := paths[item]) else "none" for item in target.tolist()]
    kept = {name for name, _ in Counter(names).most_common(CATEGORIES)}
    return np.array([name if name in kept else "other" for name in names])


def _in_order(title: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if title.startswith(("category", "last")):
        return sorted(rows, key=lambda row: (row["label"] == "other", -row["slates"]))
    return sorted(rows, key=lambda row: _first_number(row["label"]))


def _first_number(label: str) -> float:
    """Where a band begins; `above N` begins after N."""
    above = label.startswith("above ")
    digits = label.removeprefix("above ").split("\u2013")[0].split(":")[0]
    return float(digits) + (0.5 if above else 0.0)
