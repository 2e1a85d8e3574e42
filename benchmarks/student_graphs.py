"""What the exported graphs cost and keep: `python -m benchmarks.student_graphs SIZE...`, sizes as in SIZES.

Each size is trained on Beauty's lists from the artefacts of `make beauty`, shortly: how fast a graph is does not depend
on its weights, and rounding is compared with the same student unrounded. Stores student.int8 and student.graphs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import gr2
from benchmarks.results import ROOT, Figure, Record, store
from gr2.artifact import Artifact
from gr2.bundle import Bundle, write_bundle
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie, Codebook
from gr2.export.bundle import feature_spec, model_spec
from gr2.export.gate import Gate
from gr2.export.onnx import student_graph
from gr2.export.parity import Asked
from gr2.export.proof import export_variants, prove_variants, sample_lists
from gr2.features import candidate_features
from gr2.graphs import Graphs, GraphVariant, graph_file
from gr2.manifest import MEMORY
from gr2.serving.native_model import NativeModel, native_runtime
from gr2.serving.query import Query
from gr2.training.distill import load_memory, load_student

__all__ = ["main"]

SIZES = {
    "dim 64, 1 layer": {"dim": 64, "layers": 1, "epochs": 3},
    "dim 128, 2 layers": {"dim": 128, "layers": 2, "epochs": 2},
    "dim 256, 2 layers": {"dim": 256, "layers": 2, "epochs": 1},
}
DEFAULT, LARGEST = "dim 64, 1 layer", "dim 256, 2 layers"
FOLDER = Path("runs/student-graphs")
REQUESTS, CANDIDATES, EVENTS = 10_000, (10, 50, 100), 50
ROUNDS, WARM = 300, 20
OPEN = Gate(0.0, 0.0, 1.0)  # refuses nothing: what a variant costs is shown even where it would not be served
GATE = Gate(0.98, 0.98, 0.005)


@dataclass(frozen=True)
class Measured:
    """Of one size: the manifest's graphs, and the median CPU microseconds of a request by (candidates, way)."""

    graphs: Graphs
    times: dict[int, dict[str, float]]
    ratios: dict[int, dict[tuple[str, str], float]]


def train(name: str) -> Path:
    """The folder of a run whose student has the size."""
    folder = ROOT / FOLDER / name.replace(", ", "-").replace(" ", "")
    for stage in ("prepare", "prerank", "tokenize"):
        if not (folder / stage).exists():
            shutil.copytree(ROOT / "runs" / "beauty" / stage, folder / stage)
    overrides = {"run.out": folder.relative_to(ROOT), "distill.threads": 1}
    overrides |= {f"distill.{key}": value for key, value in SIZES[name].items()}
    settings = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    gr2("run", "configs/beauty.toml", *settings, "--only", "distill")
    return folder


def measure(folder: Path) -> Measured:
    """Every variant of a run's student: parity over REQUESTS requests, then the time of a request."""
    student = load_student(Artifact.load(folder / "distill", "distill"))
    memory = load_memory(Artifact.load(folder / "distill", "distill"))
    dataset, codes = Dataset.load(folder / "prepare"), np.load(folder / "tokenize" / "codes.npy")
    test, val = (CandidateLists.load(folder / "prerank" / f"{split}.parquet") for split in ("test", "val"))
    asked = Asked(student, dataset, codes, memory)
    with tempfile.TemporaryDirectory() as work:
        names = ("int8", "int8-static")
        made = export_variants(asked, names, Path(work), batched=False, calibrated_on=sample_lists(val, 512, 0))
        graphs = prove_variants(
            asked, made, test, requests=REQUESTS, tolerance=1e-3, gate=OPEN, arithmetic="fp32", seed=0
        )
        exported = Path(work) / "exported.onnx"
        exported.write_bytes(student_graph(student, memory, codes, pruned=False).SerializeToString())
        paths = {path.name: path for roles in made.values() for path in roles.values()}
        whole = graph_file("whole")
        bundles = {"exported": _bundle(folder, Path(work) / "a", asked, {whole: exported}, "fp32")}
        bundles["pruned"] = _bundle(folder, Path(work) / "b", asked, {whole: paths[whole]}, "fp32")
        for name in ("fp32", *names):
            files = {whole: paths[whole]} | {graph_file(role, name): made[name][role] for role in ("encoder", "scorer")}
            files[MEMORY] = Path(work) / MEMORY
            bundles[name] = _bundle(folder, Path(work) / name, asked, files, name)
        times, ratios = {}, {}
        for count in CANDIDATES:
            times[count], ratios[count] = _time(bundles, folder, codes, count, student.config.level_size)
    return Measured(graphs, times, ratios)


def _bundle(folder: Path, out: Path, asked: Asked, files: dict[str, Path], default: str) -> Bundle:
    """A bundle of these files that a CPU serves in `default`."""
    split = ("encoder", "scorer") if MEMORY in files else ()
    variants = {"fp32": GraphVariant(("whole", *split) if default == "fp32" else ("whole",))}
    if default != "fp32":
        variants[default] = GraphVariant(split)
    return write_bundle(
        out,
        graph=files[graph_file("whole")],
        others={name: path for name, path in files.items() if name != graph_file("whole")},
        codebook=folder / "tokenize" / "codebook.bin",
        catalog=asked.dataset.catalog,
        model=model_spec(asked.student),
        features=feature_spec(asked.student),
        graphs=Graphs(variants, default=default),
    )


def _time(
    bundles: dict[str, Bundle], folder: Path, codes: NDArray[np.uint16], count: int, size: int
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Median microseconds of this thread by way, and the median of the ratio of each two ways, round by round.

    A way is a bundle's name; with " hit", its history was encoded before.
    """
    runtime = native_runtime()
    assert runtime is not None, "the core cannot load onnxruntime"
    codebook = Codebook(str(folder / "tokenize" / "codebook.bin"))
    models = {name: NativeModel(bundle, codebook, runtime) for name, bundle in bundles.items()}
    kept = {
        f"{name} hit": NativeModel(bundle, codebook, runtime, cache_bytes=1 << 30)
        for name, bundle in bundles.items()
        if bundle.graph_pair()
    }
    rng, spent = np.random.default_rng(count), []
    for number in range(ROUNDS + WARM):
        query = _query(codes, rng, count, size)
        for model in kept.values():
            model.score(query)
        row, answers = {}, {}
        for name, model in {**models, **kept}.items():
            began = time.thread_time_ns()
            answers[name] = model.score(query)
            row[name] = (time.thread_time_ns() - began) / 1000
        for name in ("pruned", "fp32", "fp32 hit"):
            np.testing.assert_allclose(answers[name].scores, answers["exported"].scores, atol=1e-3)
        if number >= WARM:
            spent.append(row)
    median = {name: float(np.median([row[name] for row in spent])) for name in spent[0]}
    ratios = {
        (slow, fast): float(np.median([row[slow] / row[fast] for row in spent])) for slow in median for fast in median
    }
    return median, ratios


def _query(codes: NDArray[np.uint16], rng: np.random.Generator, count: int, size: int) -> Query:
    drawn = rng.choice(len(codes), EVENTS + count, replace=False)
    own, known = np.ascontiguousarray(codes[drawn[EVENTS:]]), np.ones(count, dtype=np.bool_)
    features = candidate_features(count, scores=-np.arange(count, dtype=np.float32), dense=None)
    return Query(codes[drawn[:EVENTS]], own, known, features, CandidateTrie(own, known, size))


def int8_record(measured: dict[str, Measured], command: str) -> Record:
    """int8 against float32."""
    figures, rows = [], []
    for name, each in measured.items():
        for variant in ("int8", "int8-static"):
            real, random = (each.graphs.variants[variant].parity["split"][part] for part in ("real", "random"))
            exact = each.graphs.variants["fp32"].parity["split"]["real"]["ndcg"]
            lost = abs(1 - real["ndcg"] / exact) * 100
            cold, hit = (each.ratios[50][f"fp32{way}", f"{variant}{way}"] for way in ("", " hit"))
            if variant == "int8":
                what = f"{name}: N@5 of int8 beside fp32, {real['labelled']} test lists"
                figures.append(Figure.judge(what, lost, 0.5, at_most=True, unit=" %"))
                figures.append(Figure.judge(f"{name}: fp32's time over int8's, 50 candidates", cold, 1.5, unit="x"))
            rows.append(
                [
                    f"{name}, {variant}",
                    f"{exact:.4f}",
                    f"{real['ndcg']:.4f}",
                    f"{real['top1']:.4f}",
                    f"{real['tau']:.4f}",
                    f"{random['top1']:.4f}",
                    f"{random['tau']:.4f}",
                    *(f"{each.ratios[count]['fp32', variant]:.2f}" for count in CANDIDATES),
                    f"{hit:.2f}",
                ]
            )
    columns = ["", "N@5 fp32", "N@5", "top-1 real", "tau real", "top-1 random", "tau random"]
    columns += [f"x, {count} candidates" for count in CANDIDATES] + ["x, 50, history kept"]
    title = f"int8 beside fp32 over {REQUESTS:,} requests; x is fp32's CPU time over its own"
    notes = [
        "7-bit weights by column, 8-bit rows; attention, norms, the memory's look-ups and the head stay in float32, "
        "and at small widths take most of the time: export serves int8 by default from dim 128 on",
        "one thread, rounds interleaved, CPU time of the thread, medians of the rounds' ratios; students trained short",
    ]
    table = {"title": title, "columns": columns, "rows": rows}
    return Record("student.int8", "The student in int8", command, figures, [table], notes)


def graphs_record(measured: dict[str, Measured], command: str) -> Record:
    """The graphs that are served against the one that is exported as it is."""
    figures, rows = [], []
    for name, each in measured.items():
        served = "int8" if SIZES[name]["dim"] >= 128 else "fp32"
        ratios = {count: each.ratios[count] for count in CANDIDATES}
        figures.append(
            Figure.judge(
                f"{name}: default graphs over the graph as exported", ratios[50]["exported", served], 2.5, unit="x"
            )
        )
        hit = ratios[50]["exported", f"{served} hit"]
        figures.append(Figure.judge(f"{name}: the same with the history kept", hit, 4.0, unit="x"))
        for way in ("exported", "pruned", "fp32", "fp32 hit", "int8", "int8 hit"):
            cells = [f"{each.times[count][way]:.0f} ({ratios[count]['exported', way]:.2f}x)" for count in CANDIDATES]
            rows.append([name, way, *cells])
    worst = max(
        part["max_abs_difference"]
        for each in measured.values()
        for way in each.graphs.variants["fp32"].parity.values()
        for part in way.values()
    )
    what = f"scores of the fp32 graphs beside torch, {REQUESTS:,} requests a size"
    figures.append(Figure.judge(what, worst, 1e-3, at_most=True))
    columns = ["student", "graphs", *(f"{count} candidates, us" for count in CANDIDATES)]
    table = {
        "title": f"CPU time of a request, {EVENTS} events, and how often it fits into the first",
        "columns": columns,
    }
    notes = [
        "exported: one graph, the last layer for every row; pruned: for the candidates' rows; fp32, int8: encoder and "
        "scorer; hit: the encoded history was kept",
        "from codes to the ranking, in the C++ core, one thread, rounds interleaved, CPU time of the thread",
    ]
    return Record("student.graphs", "What the served graphs cost", command, figures, [{**table, "rows": rows}], notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure the sizes that were named, by default all, and store the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=list(SIZES))
    sizes: list[Any] = parser.parse_args(arguments).sizes
    measured = {name: measure(train(name)) for name in sizes}
    command = "make student-graphs"
    for record in (int8_record(measured, command), graphs_record(measured, command)):
        print(store(record).relative_to(ROOT))


if __name__ == "__main__":
    main()
