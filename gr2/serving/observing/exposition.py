"""Prometheus' text format, version 0.0.4: written for a server's metrics, and read back by `gr2 top`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gr2.errors import Gr2Error
from gr2.serving.observing.histogram import BUCKETS, Histogram, upper

__all__ = ["CONTENT_TYPE", "Family", "Labels", "Sample", "parse", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Buckets from 16 microseconds to 17 seconds are shown; the others are in their neighbours.
FIRST, LAST = 28, 69

Labels = Mapping[str, str]
SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: -?\d+)?$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)",?')
UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """One value, of the metric `name` with `labels`."""

    name: str
    labels: Labels
    value: float


@dataclass
class Family:
    """A metric with its samples; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> Family:
        """Add a value."""
        self.samples.append(Sample(self.name, labels, value))
        return self

    def histogram(self, given: Histogram, **labels: str) -> Family:
        """Add durations, in seconds."""
        running = sum(given.counts[:FIRST])
        for index in range(FIRST, LAST + 1):
            running += given.counts[index]
            edge = f"{upper(index) / 1e9:.12g}"
            self.samples.append(Sample(f"{self.name}_bucket", {**labels, "le": edge}, running))
        total = running + sum(given.counts[LAST + 1 : BUCKETS])
        self.samples.append(Sample(f"{self.name}_bucket", {**labels, "le": "+Inf"}, total))
        self.samples.append(Sample(f"{self.name}_sum", labels, given.sum_ns / 1e9))
        self.samples.append(Sample(f"{self.name}_count", labels, total))
        return self


def render(families: Iterable[Family]) -> str:
    """The families as text."""
    lines = []
    for family in families:
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
        for sample in family.samples:
            pairs = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels.items())
            lines.append(f"{sample.name}{'{' + pairs + '}' if pairs else ''} {sample.value:.17g}")
    return "\n".join(lines) + "\n"


def parse(text: str) -> list[Sample]:
    """The samples of a text. Raises Gr2Error for a line that is none."""
    samples = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = SAMPLE.match(line)
        if match is None:
            raise Gr2Error(f"not a Prometheus metric: {line[:80]!r}")
        name, pairs, value = match.groups()
        labels = {key: _unescape(text) for key, text in LABEL.findall(pairs or "")}
        try:
            samples.append(Sample(name, labels, float(value)))
        except ValueError as error:
            raise Gr2Error(f"not a Prometheus metric: {line[:80]!r}") from error
    return samples


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unescape(text: str) -> str:
    return re.sub(r'\\[\\"n]', lambda match: UNESCAPED[match.group()], text)
