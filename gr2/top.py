"""A live server in the terminal, from two readings of its `/metrics`."""

from __future__ import annotations

import math
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from gr2.errors import ConfigError, Gr2Error
from gr2.serving.observing.exposition import Sample, parse

__all__ = ["Reading", "Screen", "quantile", "read_metrics", "watch"]

TIMEOUT = 5.0
HINT = "was the server started with --metrics-port?"
LONGEST = 4_000_000  # bytes of a page of metrics
BARS = "▁▂▃▄▅▆▇█"
KEPT = 60
PHASES = "gr2_phase_duration_seconds"
UNRANKED = {
    "full": "queue full",
    "late": "too late for the deadline",
    "expired": "expired",
    "cancelled": "cancelled",
    "fallback": "incoming order",
}
DURATION = "gr2_request_duration_seconds"


@dataclass(frozen=True)
class Reading:
    """The metrics at a moment, `at` in seconds of the monotonic clock."""

    at: float
    samples: Sequence[Sample]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels; NaN if there are none."""
        found = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        return sum(found) if found else math.nan

    def values(self, name: str, label: str) -> dict[str, float]:
        """The samples of that name, by one of their labels."""
        return {each.labels.get(label, ""): each.value for each in self.samples if each.name == name}


def read_metrics(url: str) -> Reading:
    """The metrics of a server at a URL of http. Raises ConfigError for another URL, and Gr2Error if none can be had."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"the metrics are at a URL like http://127.0.0.1:9090/metrics, got {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:  # noqa: S310
            text = reply.read(LONGEST).decode()
        reading = Reading(time.monotonic(), parse(text))
    except (OSError, ValueError, HTTPException, Gr2Error) as error:
        # What answers may be anything: the port of gRPC, another program.
        reason = "no HTTP" if isinstance(error, HTTPException) else getattr(error, "reason", None) or error
        raise Gr2Error(f"{url}: no metrics ({reason}); {HINT}") from error
    if math.isnan(reading.value("gr2_requests_total")):
        raise Gr2Error(f"{url}: metrics, but none of gr2; {HINT}")
    return reading


def quantile(buckets: dict[float, float], share: float) -> float:
    """Where that share of the durations is, from cumulative counts by upper edge; as Prometheus interpolates."""
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0
    if not total:
        return math.nan
    low, below = 0.0, 0.0
    for edge in edges:
        if buckets[edge] >= share * total:
            if math.isinf(edge):
                return low
            inside = buckets[edge] - below
            return low + (edge - low) * ((share * total - below) / inside if inside else 1.0)
        low, below = edge, buckets[edge]
    return low


@dataclass
class Screen:
    """What is shown; the rates of the last readings are kept for a line of bars."""

    url: str
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def show(self, old: Reading, new: Reading) -> RenderableType:
        """The change from one reading to the next. A server that started anew between them counts from zero."""
        if new.value("gr2_requests_total") < old.value("gr2_requests_total"):
            old = Reading(old.at, ())
        seconds = max(1e-9, new.at - old.at)
        codes = {code: _grown(old, new, "gr2_requests_total", status=code) for code in _codes(new)}
        self.rates.append(sum(codes.values()) / seconds)
        return Group(
            self._head(old, new, seconds),
            self._requests(old, new, codes),
            self._phases(old, new),
            _refused(old, new),
            _bundles(new),
        )

    def _head(self, old: Reading, new: Reading, seconds: float) -> Table:
        table = _plain()
        served = "SERVING" if new.value("gr2_serving") else "NOT_SERVING"
        version = next(iter(new.values("gr2_build_info", "version")), "")
        up = time.time() - new.value("process_start_time_seconds")
        cores = _grown(old, new, "process_cpu_seconds_total") / seconds
        memory = new.value("process_resident_memory_bytes") / 1e6
        table.add_row(f"[bold]gr2 {version}[/] {escape(self.url)}", served, f"up {up:,.0f} s")
        table.add_row(_bars(self.rates), f"{cores:.2f} cores", f"{memory:,.0f} MB")
        return table

    def _requests(self, old: Reading, new: Reading, codes: dict[str, float]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("requests/s", "errors", "p50 ms", "p95 ms", "p99 ms", "waiting", "cache hits"):
            table.add_column(name, justify="right", no_wrap=True)
        buckets = _buckets(old, new)
        failed = ", ".join(f"{count:.0f} {code}" for code, count in codes.items() if code != "OK" and count)
        table.add_row(
            f"{self.rates[-1]:.1f}",
            failed or "none",
            *(_ms(quantile(buckets, share)) for share in (0.5, 0.95, 0.99)),
            f"{new.value('gr2_requests_pending'):.0f}/{new.value('gr2_requests_capacity'):.0f}",
            _share(*(_grown(old, new, f"gr2_cache_{name}_total") for name in ("hits", "misses"))),
        )
        return table

    @staticmethod
    def _phases(old: Reading, new: Reading) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        means = []
        for phase in new.values(f"{PHASES}_count", "phase"):
            count = _grown(old, new, f"{PHASES}_count", phase=phase)
            mean = _grown(old, new, f"{PHASES}_sum", phase=phase) / count if count else math.nan
            table.add_column(f"{phase} us", justify="right", no_wrap=True)
            means.append("-" if math.isnan(mean) else f"{1e6 * mean:.0f}")
        table.add_row(*means)
        return table


def _refused(old: Reading, new: Reading) -> RenderableType:
    """What became of requests that were not ranked, and why; in the time between two readings."""
    grown = {name: _grown(old, new, "gr2_outcomes_total", outcome=name) for name in UNRANKED}
    counts = ", ".join(f"{count:.0f} {UNRANKED[name]}" for name, count in grown.items() if count)
    return f"not ranked: {counts or 'none'}"


def watch(url: str, interval: float, rounds: int | None = None) -> Iterator[RenderableType]:
    """A screen every `interval` seconds, `rounds` times or for ever. A server that is away is said, and tried again.

    Raises Gr2Error if there is none at the beginning.
    """
    screen, old = Screen(url), read_metrics(url)
    while rounds is None or rounds > 0:
        time.sleep(interval)
        try:
            new = read_metrics(url)
        except Gr2Error as error:
            yield f"[bold]{escape(str(error))}[/]"
        else:
            yield screen.show(old, new)
            old = new
        rounds = None if rounds is None else rounds - 1


def _grown(old: Reading, new: Reading, name: str, **labels: str) -> float:
    before, after = old.value(name, **labels), new.value(name, **labels)
    return after - (0.0 if math.isnan(before) else before)


def _codes(reading: Reading) -> list[str]:
    return list(reading.values("gr2_requests_total", "status"))


def _buckets(old: Reading, new: Reading) -> dict[float, float]:
    before = old.values(f"{DURATION}_bucket", "le")
    return {
        float(edge): count - before.get(edge, 0.0) for edge, count in new.values(f"{DURATION}_bucket", "le").items()
    }


def _bundles(reading: Reading) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("bundle", "label", "version", "device", "served for"):
        table.add_column(name)
    ages = reading.values("gr2_bundle_served_seconds", "bundle")
    behind = reading.values("gr2_bundle_behind", "bundle")
    for each in reading.samples:
        if each.name == "gr2_bundle_info":
            name = each.labels.get("bundle", "")
            note = " (another version is wanted)" if behind.get(name) else ""
            cells = [each.labels.get(key, "") for key in ("label", "version", "device")]
            table.add_row(name, *cells, f"{ages.get(name, math.nan):,.0f} s{note}")
    return table


def _share(hits: float, misses: float) -> str:
    return f"{100 * hits / (hits + misses):.0f} %" if hits + misses > 0 else "-"


def _plain() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0))


def _bars(rates: Sequence[float]) -> str:
    most = max(rates, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(rate / most * len(BARS)))] for rate in rates)


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.2f}"
