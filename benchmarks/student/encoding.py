"""A history of one token an item against one of one token a code: `python -m benchmarks.student.encoding`.

Both students train on Beauty and the SASRec's lists, seed by seed; path and head are kept in runs/quality/, where those
of `make quality` are. Times are of students of random weights, as in student.graphs. Stores student.encoding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.student.baselines import ranks_by
from benchmarks.student.graphs import ITEMS, SPREAD, draw_query
from benchmarks.student.lists import Lists, load_source
from benchmarks.student.quality import CONFIG, SHOWN, part_weights, train_student, trunk_of, values_of
from gr2.artifact import write_json
from gr2.bundle import Bundle
from gr2.export.random_bundle import write_random_bundle
from gr2.metrics import paired_bootstrap
from gr2.models.student import Encoding
from gr2.serving.models.host_model import HostModel
from gr2.serving.models.native_model import NativeModel, native_runtime
from gr2.training.distill import student_parts

__all__ = ["main"]

SOURCE = "beauty-sasrec"
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
WHAT = {"item": "one token an item", "code": "one token a code"}
SIZES = {"dim 64, 1 layer": (64, 1), "dim 128, 2 layers": (128, 2)}
EVENTS, CANDIDATES = (10, 50), 50
ROUNDS, WARM = 200, 20

# Only the path reads the encoding: what it tells beside the head, beside the prior alone, and alone.
ALONE = "its path alone"
JUDGED = ("student", "student without its head", ALONE)

Ranks = dict[str, list[NDArray[np.int64]]]  # by who ranks, one a seed


def rank(lists: Lists, encoding: Encoding, seeds: Sequence[int]) -> Ranks:
    """The ranks of the test targets by the student and by parts of it."""
    held, found = lists.tests[SOURCE], Ranks({who: [] for who in JUDGED})
    for seed in seeds:
        began, trunk = time.process_time(), trunk_of(lists, seed, encoding)
        known = trunk.exists()
        student = train_student(lists, seed, encoding)
        if not known:
            write_json(trunk.with_suffix(".json"), {"seconds": time.process_time() - began})
        parts = student_parts(student, lists.dataset, lists.codes, held, lists.seen[SOURCE])
        weights = part_weights(student, lists) | {ALONE: (1.0, 0.0, 0.0)}
        for who in JUDGED:
            path, prior, head = weights[who]
            found[who].append(ranks_by(held, path * parts.path + prior * parts.prior + head * parts.head))
        print(encoding, seed, flush=True)
    return found


def measure(dim: int, layers: int, events: int, folder: Path) -> dict[str, list[float]]:
    """Microseconds of the core's thread by way, one a round: an encoding, with " kept" where the history was kept."""
    runtime = native_runtime()
    assert runtime is not None, "the core cannot load onnxruntime"
    models, whole = {}, {}
    for encoding in ENCODINGS:
        path = write_random_bundle(
            folder / encoding, items=ITEMS, dim=dim, layers=layers, encoding=encoding, spread=SPREAD, batched=False
        )
        bundle = Bundle.load(path)
        codebook, whole[encoding] = bundle.codebook(), HostModel(bundle)
        models[encoding] = NativeModel(bundle, codebook, runtime)
        models[f"{encoding} kept"] = NativeModel(bundle, codebook, runtime, cache_bytes=1 << 30)
    codes, rng = codebook.lookup(np.arange(ITEMS))[0], np.random.default_rng(0)
    spent: dict[str, list[float]] = {way: [] for way in models}
    for _ in range(ROUNDS + WARM):
        query = draw_query(codes, rng, CANDIDATES, events=events)
        expected = {encoding: whole[encoding].score(query).scores for encoding in ENCODINGS}
        for way, model in models.items():
            if way.endswith(" kept"):
                model.score(query)
            began = time.thread_time_ns()
            scores = model.score(query).scores
            spent[way].append((time.thread_time_ns() - began) / 1000)
            np.testing.assert_allclose(scores, expected[way.split()[0]], atol=1e-4)
    return {way: each[WARM:] for way, each in spent.items()}


def quality_figures(found: dict[Encoding, Ranks]) -> list[Figure]:
    """What a token a code gains over one an item."""
    figures = []
    for who in JUDGED:
        values = [values_of(found[encoding][who]) for encoding in ENCODINGS]
        gain = paired_bootstrap(*values, 0)["N@5"]
        value = f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        figures.append(Figure(f"{SOURCE}: N@5 of {who}, a token a code minus one an item", value, "measured", "ok"))
    return figures


def quality_table(lists: Lists, found: dict[Encoding, Ranks], seeds: Sequence[int]) -> dict[str, Any]:
    """Means over users and seeds, the deviation over seeds, and what the training took."""
    rows = []
    for encoding, ranks in found.items():
        seconds = [json.loads(trunk_of(lists, seed, encoding).with_suffix(".json").read_text()) for seed in seeds]
        spent = np.median([each["seconds"] for each in seconds])
        for who, each in ranks.items():
            means = {name: values.mean() for name, values in values_of(each).items()}
            spread = np.std([values_of([one])["N@5"].mean() for one in each], ddof=1)
            cells = [f"{means[name]:.4f}" for name in SHOWN]
            rows.append([WHAT[encoding], who, *cells, f"{spread:.4f}", f"{spent:.0f}" if who == "student" else ""])
    columns = ["history", "", *SHOWN, "N@5, deviation over seeds", "core-seconds of a training"]
    title = f"{SOURCE}: {len(found['item']['student'][0])} test users, {len(seeds)} seeds"
    return {"title": title, "columns": columns, "rows": rows}


def times() -> tuple[list[Figure], dict[str, Any]]:
    """How much longer a token a code takes, and the table of all sizes."""
    figures, rows = [], []
    for name, (dim, layers) in SIZES.items():
        for events in EVENTS:
            with tempfile.TemporaryDirectory() as work:
                spent = measure(dim, layers, events, Path(work))
            rows.append([name, str(events), *(f"{np.median(each):.0f}" for each in spent.values())])
            for kept in ("", " kept"):
                ratio = float(np.median(np.divide(spent[f"code{kept}"], spent[f"item{kept}"])))
                what = (
                    f"{name}, {events} events{', history kept' if kept else ''}: time, a token a code over one an item"
                )
                figures.append(Figure(what, f"{ratio:.2f}x", "measured", "ok"))
    columns = ["student", "events", *(f"a token {way.replace(' kept', ', history kept')}" for way in spent)]
    return figures, {
        "title": f"CPU microseconds of a request, {CANDIDATES} candidates",
        "columns": columns,
        "rows": rows,
    }


def encoding_record(lists: Lists, seeds: Sequence[int]) -> Record:
    """Quality and times as one record."""
    found = {encoding: rank(lists, encoding, seeds) for encoding in ENCODINGS}
    figures, table = times()
    notes = [
        "the weights of both are the same in number and shape; both train with the same settings, the defaults",
        "quality: differences of the mean over seeds for each user, with intervals over users",
        "times: medians of requests from codes to the ranking, fp32, in the C++ core, one thread, rounds interleaved; "
        "scores were the whole graph's to 1e-4",
    ]
    return Record(
        "student.encoding",
        "One token an item of the history, or one a code",
        "make student-encoding",
        [*quality_figures(found), *figures],
        [quality_table(lists, found, seeds), table],
        notes,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, and store the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(store(encoding_record(load_source(SOURCE, CONFIG), chosen.seeds)).relative_to(ROOT))


if __name__ == "__main__":
    main()
