"""What the served student costs beside the graph as it is exported: `python -m benchmarks.student.graphs`.

Students of random weights: how fast a graph is does not depend on them. Stores student.graphs.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from gr2.bundle import Bundle
from gr2.decoding import CandidateTrie
from gr2.export.gate import INT8_PAYS
from gr2.export.random_bundle import write_random_bundle
from gr2.features import candidate_features
from gr2.serving.models.native_model import NativeModel, native_runtime
from gr2.serving.models.query import Query

__all__ = ["ITEMS", "SPREAD", "draw_query", "graphs", "main"]

SIZES = {
    "dim 32, 1 layer": (32, 1),
    "dim 64, 1 layer": (64, 1),
    "dim 128, 2 layers": (128, 2),
    "dim 256, 2 layers": (256, 2),
}
# The smallest shows from where on int8 pays.
JUDGED = tuple(SIZES)[1:]
ITEMS, EVENTS, CANDIDATES = 12_000, 50, (10, 50, 100)
ROUNDS, WARM = 100, 10
# What a bundle holds, by the name in the tables: with wider spread, attention is so sharp that numbers become denormal.
BUNDLES: dict[str, dict[str, Any]] = {
    "exported": {"split": False, "pruned": False},
    "pruned": {"split": False},
    "two graphs": {"native": False},
    "two graphs, int8": {"native": False, "arithmetic": "int8"},
    "fp32": {},
    "int8": {"arithmetic": "int8"},
}
SPREAD = 0.03


@dataclass(frozen=True)
class Times:
    """Medians: microseconds of a request by way, and the ratio of two ways, taken round by round."""

    spent: dict[str, float]
    ratios: dict[tuple[str, str], float]


def measure(dim: int, layers: int, folder: Path) -> dict[int, Times]:
    """The times by the number of candidates. A way is a bundle's name, with " hit" where the history was kept."""
    runtime = native_runtime()
    assert runtime is not None, "the core cannot load onnxruntime"
    bundles = {
        name: Bundle.load(
            write_random_bundle(
                folder / name, items=ITEMS, dim=dim, layers=layers, spread=SPREAD, batched=False, **settings
            )
        )
        for name, settings in BUNDLES.items()
    }
    codebooks = {name: bundle.codebook() for name, bundle in bundles.items()}
    codes = codebooks["fp32"].lookup(np.arange(ITEMS))[0]
    models = {name: NativeModel(bundle, codebooks[name], runtime) for name, bundle in bundles.items()}
    kept = {
        f"{name} hit": NativeModel(bundle, codebooks[name], runtime, cache_bytes=1 << 30)
        for name, bundle in bundles.items()
        if bundle.graph_pair()
    }
    return {count: _time(models, kept, codes, count) for count in CANDIDATES}


def _time(models: dict[str, NativeModel], kept: dict[str, NativeModel], codes: NDArray[np.uint16], count: int) -> Times:
    rng, rows = np.random.default_rng(count), []
    for number in range(ROUNDS + WARM):
        query = draw_query(codes, rng, count)
        for model in kept.values():
            model.score(query)
        row, scores = {}, {}
        for name, model in {**models, **kept}.items():
            began = time.thread_time_ns()
            answer = model.score(query)
            row[name], scores[name] = (time.thread_time_ns() - began) / 1000, answer.scores
        for name in ("pruned", "two graphs", "fp32", "fp32 hit"):
            np.testing.assert_allclose(scores[name], scores["exported"], atol=1e-4)
        if number >= WARM:
            rows.append(row)
    spent = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    ratios = {(a, b): float(np.median([row[a] / row[b] for row in rows])) for a in spent for b in spent}
    return Times(spent, ratios)


def draw_query(codes: NDArray[np.uint16], rng: np.random.Generator, count: int, *, events: int = EVENTS) -> Query:
    """A request of `count` candidates after `events` others, all of different items."""
    drawn = rng.choice(len(codes), events + count, replace=False)
    own, known = np.ascontiguousarray(codes[drawn[events:]]), np.ones(count, dtype=np.bool_)
    features = candidate_features(count, scores=-np.arange(count, dtype=np.float32), dense=None)
    return Query(codes[drawn[:events]], own, known, features, CandidateTrie(own, known, 256))


def graphs_record(measured: dict[str, dict[int, Times]]) -> Record:
    """The figures and tables of all sizes."""
    figures, rows = [], []
    for name, each in measured.items():
        for way in each[50].spent:
            times = [each[count] for count in CANDIDATES]
            cells = [f"{part.spent[way]:.0f} ({part.ratios['exported', way]:.2f}x)" for part in times]
            rows.append([name, way, *cells])
        if name not in JUDGED:
            continue
        served = "int8" if SIZES[name][0] >= INT8_PAYS else "fp32"
        ratios = each[50].ratios
        cold, hit = (ratios["exported", way] for way in (served, f"{served} hit"))
        what = f"{name}, 50 candidates: time of the graph as exported over that of the default"
        figures.append(Figure.judge(what, cold, 2.5, unit="x"))
        figures.append(Figure.judge(f"{name}: the same with the history kept", hit, 4.0, unit="x"))
        figures.append(Figure.judge(f"{name}: fp32's time over int8's", ratios["fp32", "int8"], 1.5, unit="x"))
    columns = ["student", "graphs", *(f"{count} candidates, us" for count in CANDIDATES)]
    title = f"CPU time of a request, {EVENTS} events, and how often it fits into the first"
    notes = [
        "exported: one graph, the last layer for every row; pruned: for the candidates' rows; two graphs: encoder and "
        "scorer; fp32 and int8: the core's own code; hit: the history was kept; export serves int8 by default from dim "
        f"{INT8_PAYS} on",
        "int8 changes the products with weights alone; the look-up of pairs, attention, norms and the ranking stay as "
        "they are, and are most of a request at dim 64",
        "from codes to the ranking, in the C++ core, one thread, rounds interleaved, CPU time of the thread; scores "
        "in float32 were equal to 1e-4",
    ]
    table = {"title": title, "columns": columns, "rows": rows}
    return Record("student.graphs", "What the served graphs cost", "make student-graphs", figures, [table], notes)


def graphs() -> Record:
    """The times of every size, as one record."""
    measured = {}
    for name, (dim, layers) in SIZES.items():
        with tempfile.TemporaryDirectory() as work:
            measured[name] = measure(dim, layers, Path(work))
    return graphs_record(measured)


def main() -> None:
    """Measure every size and store the record."""
    print(store(graphs()).relative_to(ROOT))


if __name__ == "__main__":
    main()
