"""How long the bundle takes on this machine: the judged slates, one after the other, in process."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Any

import numpy as np

from gr2.data.candidates import PADDING
from gr2.report.run import Run
from gr2.serving.engine import Engine

__all__ = ["PHASES", "latency_facts"]

PHASES = ("parse", "lookup", "trie", "model", "rank", "total")
QUANTILES = (50, 95, 99)
WARM_UP = 20


def latency_facts(run: Run, *, requests: int, seed: int) -> dict[str, Any]:
    """Milliseconds by phase at p50, p95 and p99, over `requests` judged slates drawn with `seed`, on one thread."""
    engine, dataset, slates = Engine(run.stages["export"].path), run.dataset, run.judged.slates
    ids, longest = dataset.catalog.ids, engine.bundle.manifest.limits.max_history
    rows = np.random.default_rng(seed).integers(0, len(slates), WARM_UP + requests)
    spent = []
    for row in rows.tolist():
        items = slates.candidates[row][slates.candidates[row] != PADDING]
        history = dataset.history(int(slates.user[row]), int(slates.position[row]))[-longest:]
        ranking = engine.rerank(
            [ids[item] for item in history],
            [ids[item] for item in items],
            scores=slates.scores[row, : len(items)],
            features=None if slates.features is None else slates.features[row, : len(items)],
        )
        spent.append(asdict(ranking.timings))
    engine.close()
    milliseconds = {name: np.array([each[f"{name}_ns"] for each in spent[WARM_UP:]]) / 1e6 for name in PHASES}
    folder = run.stages["export"].path
    return {
        "requests": requests,
        "candidates": slates.width,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "version": engine.version,
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "phases": {
            name: {f"p{share}": float(np.percentile(values, share)) for share in QUANTILES}
            for name, values in milliseconds.items()
        },
        "totals": np.percentile(milliseconds["total"], np.arange(0, 100)).tolist(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
