"""The picture of what decoding costs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps, style
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.decoding.cost import CatalogCost, RequestCost

__all__ = ["cost_picture"]

INCHES, DOTS_PER_INCH = (12.0, 9.0), 90
# The kinds of a panel are told apart by line and mark, the level sizes by colour.
LINES = [("-", "o"), ("--", "s"), (":", "^")]


def cost_picture(requests: Sequence[RequestCost], catalogs: Sequence[CatalogCost]) -> bytes:
    """A PNG of four log-log parts: time and memory of a request over K, and of a catalogue over N, for each V."""
    with style.context("default"):
        figure = Figure(figsize=INCHES, layout="constrained")
        parts = figure.subplots(2, 2)
        of_request: list[dict[str, Callable[[Any], float]]] = [
            {"score": lambda c: c.score, "generate all": lambda c: c.generate, "trie": lambda c: c.trie},
            {"trie": lambda c: c.trie_bytes, "state": lambda c: c.state_bytes},
        ]
        of_catalog: list[dict[str, Callable[[Any], float]]] = [
            {"build": lambda c: 1e3 * c.build, "open": lambda c: 1e3 * c.open, "search": lambda c: c.search},
            {"index": lambda c: c.index_bytes},
        ]
        for column, (time_kind, title) in enumerate([("microseconds", "time"), ("bytes", "memory")]):
            draw(parts[0, column], requests, lambda c: c.size, of_request[column])
            label(parts[0, column], f"A request: {title}", "candidates, K", time_kind)
            draw(parts[1, column], catalogs, lambda c: c.items, of_catalog[column])
            label(parts[1, column], f"A catalogue: {title}", "items, N", time_kind)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()


def draw(
    axes: Axes, costs: Sequence[Any], place: Callable[[Any], float], kinds: dict[str, Callable[[Any], float]]
) -> None:
    """One line for each kind and level size."""
    level_sizes = sorted({each.level_size for each in costs})
    for number, level_size in enumerate(level_sizes):
        colour = colormaps["viridis"](0.87 * number / max(1, len(level_sizes) - 1))
        chosen = [each for each in costs if each.level_size == level_size]
        for (name, value), (line, mark) in zip(kinds.items(), LINES, strict=False):
            axes.plot(
                [place(each) for each in chosen],
                [value(each) for each in chosen],
                color=colour,
                linestyle=line,
                marker=mark,
                markersize=4,
                label=f"{name}, V = {level_size}",
            )


def label(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    """Logarithmic axes with their names."""
    axes.set(xscale="log", yscale="log", xlabel=horizontal, ylabel=vertical)
    axes.set_title(title, fontweight="bold")
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
