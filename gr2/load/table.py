"""A load test as tables on a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from gr2.load.summary import PERCENTILES, Summary

__all__ = ["load_table", "phase_table"]

CROWDED = 0.01


def load_table(summaries: Sequence[Summary], target: str) -> Table:
    """Latencies, goodput and processor time, a row a step; lines below say what else there is to know of a step."""
    table = Table(title=f"{target}: ms from when a request was due", title_justify="left")
    names = [f"p{percent:g}" for percent in PERCENTILES]
    table.add_column("load", no_wrap=True)
    for name in ("ok/s", "in time/s", *names, "failed", "cpu us"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in summaries:
        failed = sum(count for code, count in each.codes.items() if code != "OK")
        figures = [f"{each.throughput:.0f}", f"{each.goodput:.0f}", *(_ms(each.latency[name]) for name in names)]
        figures += [f"{failed}", _us(each.server_cpu)]
        table.add_row(each.step.name, *(["-"] * len(figures) if each.refused else figures))
    remarks = [f"{each.step.name}: {remark}" for each in summaries if (remark := _remark(each))]
    if remarks:
        table.caption = "\n".join(remarks)
        table.caption_justify = "left"
    return table


def phase_table(summaries: Sequence[Summary]) -> Table | None:
    """Where the server's time goes, a row a step; None if no reply said."""
    told = [each for each in summaries if each.phases and not each.refused]
    if not told:
        return None
    table = Table(title="Phases: shares of the time inside the server, and that time", title_justify="left")
    table.add_column("load", no_wrap=True)
    for name in (*told[0].phases, "p50 ms"):
        table.add_column(name, justify="right")
    for each in told:
        table.add_row(each.step.name, *(f"{100 * share:.1f} %" for share in each.phases.values()), _ms(each.inside))
    return table


def _remark(summary: Summary) -> str:
    parts = [summary.refused]
    if not summary.refused and summary.step.rate is not None and summary.crowded > CROWDED:
        parts.append(f"saturated: {100 * summary.crowded:.0f} % waited for a free slot")
    parts.append(", ".join(f"{count} {code}" for code, count in summary.codes.items() if code != "OK"))
    return "; ".join(filter(None, parts))


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _us(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.0f}"
