"""The picture of rewards that are gamed: copies and ranking quality over the steps of a training."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["hacking_picture"]

INCHES, DOTS_PER_INCH = (13.0, 4.4), 90
# Steps that a point is the mean of.
SMOOTH = 15
LINES = ("-", "--", ":", "-.")


def hacking_picture(trainings: Mapping[str, pa.Table]) -> bytes:
    """A PNG of three parts over the steps: near copies, N@5 of the answers sampled, and how many of them are valid."""
    with style.context("default"):
        figure = Figure(figsize=INCHES, layout="constrained")
        parts = figure.subplots(1, 3)
        shown = {
            "near copies of the incoming order, share": lambda table: _column(table, "copies/near"),
            "N@5 of the answers sampled": _ndcg,
            "valid answers, share": lambda table: _column(table, "valid"),
        }
        for axes, (title, values) in zip(parts, shown.items(), strict=True):
            for number, (name, table) in enumerate(trainings.items()):
                colour = colormaps["viridis"](0.9 * number / max(1, len(trainings) - 1))
                smooth = _smoothed(values(table))
                steps = np.arange(len(smooth)) + 1
                axes.plot(steps, smooth, color=colour, linestyle=LINES[number % len(LINES)], label=name)
            axes.set(xlabel="step")
            axes.set_title(title, fontweight="bold", fontsize=10)
            axes.grid(visible=True, color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        parts[1].legend(fontsize=8, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _column(table: pa.Table, name: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return np.array(table[name].to_pylist(), dtype=np.float64)


def _ndcg(table: pa.Table) -> NDArray[np.float64]:
    """(steps,) N@5, of the shares of answers whose target went out at ranks 1 to 5."""
    ranks = [rank for rank in range(1, 6) if f"target/at_{rank}" in table.column_names]
    if not ranks:
        return np.full(len(table), np.nan)
    return np.sum([_column(table, f"target/at_{rank}") / np.log2(1 + rank) for rank in ranks], axis=0)


def _smoothed(values: Any) -> NDArray[np.float64]:
    """The mean of the last SMOOTH values that are numbers, or of as many as there are."""
    windows = [values[max(0, end - SMOOTH) : end] for end in range(1, len(values) + 1)]
    return np.array([np.nan if np.isnan(each).all() else np.nanmean(each) for each in windows])
