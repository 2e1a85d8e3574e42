"""The pictures of a report as inline SVG: text and axes take the page's own colour, in light and in dark."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gr2.errors import MissingExtraError
from gr2.interrupts import interrupts_wait

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curves_picture", "data_picture", "latency_picture", "quality_picture", "slices_picture", "usage_picture"]

# Stands for `currentColor`, which matplotlib does not know.
INK = "#010203"
UNDRAWN = ("Cc", "Cs")  # control characters and lone surrogates
BETTER, WORSE, PLAIN, OTHER = "#1f9d72", "#d1495b", "#3d7edb", "#e09f3e"
SHADES = ("#3d7edb", "#e09f3e", "#1f9d72", "#a05fc4", "#d1495b")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,
}
NOISE = re.compile(r"<metadata>.*?</metadata>|<\?xml[^>]*>|<!DOCTYPE[^>]*>|<!--.*?-->", re.DOTALL)


def data_picture(data: Mapping[str, Any]) -> str:
    """History lengths, how popularity is spread, and the most frequent categories."""
    with _figure("data", 11.0, 3.2, 3) as parts:
        lengths, popularity, categories = parts
        lengths.bar(range(len(data["lengths"])), data["lengths"], color=PLAIN, width=0.9)
        lengths.set(title="Events of a user", xlabel="events (longer ones in the last bar)", ylabel="users")
        popularity.plot(data["popularity_ranks"], [max(each, 0.5) for each in data["popularity"]], color=PLAIN, lw=2)
        popularity.set(xscale="log", yscale="log", title="Popularity", xlabel="items, most popular first")
        popularity.set_ylabel("training events (0 drawn at 0.5)")
        for axis in (popularity.xaxis, popularity.yaxis):
            axis.set_major_formatter("{x:,.6g}")
            axis.set_minor_formatter("")
        names = [_short(name, 24) for name, _ in data["categories"]][::-1]
        categories.barh(range(len(names)), [count for _, count in data["categories"]][::-1], color=PLAIN)
        categories.set_yticks(range(len(names)), names)
        categories.set(title="Categories", xlabel="items")
        return _svg(lengths, "data")


def usage_picture(levels: Sequence[Mapping[str, Any]], bits: float) -> str:
    """The entropy of each level of the semantic IDs, alone and given the codes before."""
    with _figure("usage", 5.2, 2.8, 1) as (axes,):
        places = range(1, len(levels) + 1)
        axes.axhline(bits, color=INK, lw=1, ls="--", alpha=0.5, label=f"even use: {bits:.3g} bits")
        axes.bar(places, [level["entropy_bits"] for level in levels], color=PLAIN, alpha=0.35, label="alone")
        axes.bar(places, [level["added_bits"] for level in levels], color=PLAIN, width=0.5, label="given those before")
        axes.set(title="What each level tells apart", ylabel="bits", ylim=(0, 1.45 * bits))
        axes.set_xticks(list(places), [f"level {place}" for place in places])
        axes.legend(ncols=3, fontsize=8, loc="upper center")
        return _svg(axes, "usage")


def curves_picture(stage: str, curves: Sequence[Mapping[str, Any]]) -> str:
    """A stage's curves, each in a part of its own: they share no unit."""
    with _figure(stage, 3.1 * len(curves), 2.4, len(curves)) as parts:
        for axes, curve in zip(parts, curves, strict=True):
            marker = "o" if len(curve["x"]) <= 30 else None
            axes.plot(curve["x"], curve["values"], color=PLAIN, lw=2, marker=marker, ms=3.5)
            axes.set(title=curve["name"], xlabel=curve["axis"])
            axes.grid(visible=True, alpha=0.2, color=INK, lw=0.6)
            axes.locator_params(axis="x", integer=True)
        return _svg(parts[0], stage)


def quality_picture(quality: Mapping[str, Any], metric: str) -> str:
    """Each ranker's mean, and the student minus it with its interval."""
    rankers = quality["rankers"][::-1]
    with _figure("quality", 10.5, 1.3 + 0.42 * len(rankers), 2) as (means, gains):
        rows = range(len(rankers) + 1)
        values = [*(ranker["means"][metric] for ranker in rankers), quality["student"][metric]]
        names = [*(ranker["name"] for ranker in rankers), "student"]
        bars = means.barh(rows, values, color=[OTHER] * len(rankers) + [BETTER], height=0.65)
        means.bar_label(bars, fmt="%.3f", padding=3, color=INK)
        means.set_yticks(list(rows), names)
        means.set(title=f"{metric} on {quality['slates']:,} slates", xlim=(0, 1.15 * max(values)))
        _forest(gains, [ranker["difference"][metric] for ranker in rankers], [ranker["name"] for ranker in rankers])
        gains.set_title("student minus each")
        return _svg(means, "quality")


def slices_picture(groups: Sequence[Mapping[str, Any]]) -> str:
    """The student minus the incoming order on each slice, with its interval."""
    columns = 2
    deep = [
        max(len(group["rows"]) for group in groups[first : first + columns]) for first in range(0, len(groups), columns)
    ]
    heights = [1.1 + 0.26 * rows for rows in deep]
    with _figure("slices", 11.0, sum(heights), columns, heights) as parts:
        for axes, group in zip(parts, groups, strict=False):
            names = [f"{_short(row['label'], 26)} ({row['slates']:,})" for row in group["rows"]]
            _forest(axes, group["rows"][::-1], names[::-1])
            axes.set_title(group["title"])
        for axes in parts[len(groups) :]:
            axes.set_visible(False)
        return _svg(parts[0], "slices")


def latency_picture(latency: Mapping[str, Any]) -> str:
    """Where the median request spends its time, and the distribution of the totals."""
    with _figure("latency", 10.0, 2.4, 2) as (shares, totals):
        left, inner = 0.0, [name for name in latency["phases"] if name != "total"]
        for name, colour in zip(inner, SHADES, strict=True):
            spent = latency["phases"][name]["p50"]
            shares.barh([0], [spent], left=left, color=colour, label=f"{name} {spent:.3f}", height=0.5)
            left += spent
        shares.set(title="the median of each phase", xlabel="ms", yticks=[], ylim=(-0.5, 1.4))
        shares.spines["left"].set_visible(False)
        shares.legend(ncols=3, fontsize=8, loc="upper center")
        totals.plot(latency["totals"], range(len(latency["totals"])), color=PLAIN, lw=2)
        for share in ("p50", "p95", "p99"):
            place = latency["phases"]["total"][share]
            totals.axvline(place, color=INK, lw=0.8, ls=":", alpha=0.7)
            totals.text(place, 2, f" {share}", fontsize=8)
        totals.set(title="whole requests", xlabel="ms", ylabel="% answered by then", xlim=(0, None))
        return _svg(shares, "latency")


def _forest(axes: Axes, changes: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    """Differences as points with intervals: green above 0, red below, blue where 0 is inside."""
    axes.axvline(0.0, color=INK, lw=1, alpha=0.5)
    for row, change in enumerate(changes):
        colour = BETTER if change["low"] > 0 else WORSE if change["high"] < 0 else PLAIN
        axes.plot([change["low"], change["high"]], [row, row], color=colour, lw=2.5, solid_capstyle="round")
        axes.plot([change["mean"]], [row], "o", color=colour, ms=6)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=True, axis="x", alpha=0.2, color=INK, lw=0.6)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter("{x:+.2g}")


@contextmanager
def _figure(
    name: str, width: float, height: float, columns: int, heights: Sequence[float] = (1.0,)
) -> Iterator[list[Axes]]:
    try:
        with interrupts_wait():
            from matplotlib import rc_context, style
            from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the pictures of the report", "train", error) from error
    # A person's own style could ask for LaTeX. The salt keeps the IDs of one page's pictures apart.
    own: Any = {**STYLE, "svg.hashsalt": name}
    with style.context("default"), rc_context(own):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield list(figure.subplots(len(heights), columns, squeeze=False, height_ratios=list(heights)).flat)


def _svg(axes: Axes, name: str) -> str:
    """The axes' whole figure."""
    assert axes.figure is not None
    draw: Callable[..., None] = axes.figure.savefig  # type: ignore[union-attr]
    file = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text: letters that matplotlib's own font lacks are the browser's to draw.
        warnings.filterwarnings("ignore", message="Glyph |Matplotlib currently does not support")
        draw(file, format="svg", transparent=True, metadata={"Date": None})
    text = NOISE.sub("", file.getvalue()).replace(INK, "currentColor").strip()
    # A picture's own style sheet would hold for the whole page, and its groups' IDs come again in the next.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" style="stroke-linejoin:round" ', 1)


def _short(text: str, length: int) -> str:
    text = "".join(" " if unicodedata.category(letter) in UNDRAWN else letter for letter in text)
    return text if len(text) <= length else text[: length - 1] + "\u2026"
