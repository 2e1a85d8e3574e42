"""The picture of a load test: latency over the rate offered, and how latencies are spread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps, style
from matplotlib.figure import Figure

from gr2.load.summary import CURVE, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["load_picture"]

NOTHING = "no step has latencies to show"
INCHES, DOTS_PER_INCH = (12.0, 4.8), 90


def load_picture(summaries: Sequence[Summary]) -> bytes:
    """A PNG of one part, and another if there are open loops; steps without latencies are left out."""
    shown = [each for each in summaries if each.curve and not each.refused]
    opened = [each for each in shown if each.step.rate is not None]
    with style.context("default"):
        figure = Figure(figsize=INCHES, layout="constrained")
        parts = figure.subplots(1, 2 if opened else 1, squeeze=False)[0]
        if opened:
            _over_rate(parts[0], opened)
        _spread(parts[-1], shown)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def _over_rate(axes: Axes, summaries: list[Summary]) -> None:
    rates = [each.step.rate or 0.0 for each in summaries]
    for number, name in enumerate(["p50", "p95", "p99", "p99.9"]):
        colour = colormaps["viridis"](0.87 * number / 3)
        axes.plot(rates, [each.latency[name] for each in summaries], marker="o", markersize=4, color=colour, label=name)
    axes.axhline(1e3 * summaries[0].step.deadline, color="#888888", linestyle=":", label="deadline")
    axes.set(yscale="log")
    axes.legend(fontsize=8, frameon=False)
    _label(axes, "Open loop: latency from when a request was due", "requests offered a second", "milliseconds")


def _spread(axes: Axes, summaries: list[Summary]) -> None:
    # The share of slower requests, on a logarithmic axis, shows the tail that a linear one hides.
    slower = 1 - CURVE / 100
    for number, each in enumerate(summaries):
        colour = colormaps["viridis"](0.87 * number / max(1, len(summaries) - 1))
        line = "-" if each.step.rate is not None else "--"
        axes.plot(np.maximum(each.curve, 1e-3), slower, color=colour, linestyle=line, label=each.step.name)
    if summaries:
        axes.set(xscale="log")
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", va="center")
    axes.set(yscale="log", ylim=(1e-4, 1.0))
    _label(axes, "Share of requests that took longer", "milliseconds", "share")


def _label(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.set_title(title, fontweight="bold")
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
