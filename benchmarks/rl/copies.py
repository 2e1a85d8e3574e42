"""Traces of a teacher that, every other time, keeps the order it was given.

Rewards for format are collected by whoever can write a valid answer without thought; a model of a few million
parameters must be shown how to copy first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gr2.artifact import Artifact, open_stage
from gr2.training.tracing.table import load_traces, save_traces

__all__ = ["write_copies"]


@dataclass(frozen=True)
class Copies:
    """Nothing to choose."""

    copies: int = 1


def write_copies(source: Path, out: Path) -> Artifact:
    """The artefact `traces` in `out`: each trace of `source`, and after it the same with the incoming order."""
    before = Artifact.load(source, "traces")
    made = []
    for trace in load_traces(before.file("traces.parquet")):
        made += [trace, replace(trace, ranking=tuple(range(len(trace.candidates))))]
    with open_stage(out, "traces", Copies(), before.parents, 0) as work:
        save_traces(work.path / "traces.parquet", made)
        work.metrics |= {"accepted": len(made), "lists": before.metrics["lists"]}
    return Artifact.load(out, "traces")
