"""The demo: a synthetic shop through every stage, a real server, and one request over gRPC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from gr2.artifact import Artifact
from gr2.catalog import ItemId
from gr2.client import Client
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.data.synthetic import write_synthetic
from gr2.errors import Gr2Error
from gr2.pipeline import execute, load_plan, show, summarize
from gr2.report.tables import slate_table

__all__ = ["Example", "pick_example", "run_demo", "served"]

USERS, ITEMS, SEED = 2_000, 300, 0
STOP_SECONDS = 15


def run_demo(
    out: Path, *, users: int = USERS, items: int = ITEMS, seed: int = SEED, overrides: Sequence[str] = ()
) -> None:
    """Run the demo with everything it writes below `out`; tables go to stdout, progress to stderr.

    Raises Gr2Error if a stage, the server or the request fails. The server is stopped in any case.
    """
    began = time.monotonic()
    console = Console()
    console.print(f"[bold]A synthetic shop[/]: {users:,} users, {items:,} items; everything goes to {out}")
    data = out / "data"
    write_synthetic(data, users=users, items=items, seed=seed)
    paths = [
        f"{key}={json.dumps(str(path))}"
        for key, path in (
            ("run.out", out),
            ("prepare.items", data / "items.parquet"),
            ("prepare.interactions", data / "interactions.parquet"),
        )
    ]
    with resources.as_file(resources.files("gr2") / "demo.toml") as config:
        plan = load_plan(config, overrides=[*paths, *overrides])
    outcomes = execute(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    summarize(plan, outcomes)
    show(outcomes, console)
    made = {outcome.stage: outcome.artifact for outcome in outcomes if outcome.artifact}
    example = pick_example(made["prepare"], made["prerank"], made["evaluate"])
    console.print(f"\n[bold]gr2 serve[/] --bundle {made['export'].path}")
    with served(made["export"].path) as address, Client(address) as client:
        ranking = client.rerank(example.history, example.candidates, scores=example.scores, timeout=10.0)
    console.print(slate_table(example.candidates, ranking, example.titles, target=example.target))
    console.print(
        f"One slate that the student improves: it moves the target up in {example.better:,} of {example.slates:,} and "
        f"down in {example.worse:,}. Answered by {address} in {ranking.timings.total_ns / 1e6:.2f} ms.\n"
        f"Done in {time.monotonic() - began:.0f} s. All of it on one page: gr2 report {out}\n"
        f"Serve it yourself: gr2 serve --bundle {made['export'].path}"
    )


@dataclass(frozen=True)
class Example:
    """A test slate to show, with the counts that say how typical it is."""

    history: list[ItemId]
    candidates: list[ItemId]
    scores: list[float]
    target: ItemId
    titles: dict[ItemId, str]
    slates: int
    better: int
    worse: int


def pick_example(prepare: Artifact, prerank: Artifact, evaluate: Artifact) -> Example:
    """The first test slate in which re-ranking moves the target up; the very first slate if there is none."""
    dataset = Dataset.load(prepare.path)
    lists = CandidateLists.load(prerank.file("test.parquet")).top(int(evaluate.metrics["slate"])).with_target()
    ranks = pq.read_table(evaluate.file("ranks.parquet"))
    incoming, student = ranks.column("incoming").to_numpy(), ranks.column("student").to_numpy()
    row = int(np.argmax(student < incoming))
    ids, titles = dataset.catalog.ids, dataset.catalog.title
    items = [int(item) for item in lists.candidates[row] if item != PADDING]
    return Example(
        history=[ids[item] for item in dataset.history(int(lists.user[row]), int(lists.position[row]))],
        candidates=[ids[item] for item in items],
        scores=lists.scores[row, : len(items)].tolist(),
        target=ids[int(lists.target[row])],
        titles={ids[item]: title for item in items if (title := titles[item])},
        slates=len(incoming),
        better=int((student < incoming).sum()),
        worse=int((student > incoming).sum()),
    )


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The address of a `gr2 serve` process that serves `bundle` on a free port; it is gone when the block ends."""
    command = [sys.executable, "-m", "gr2.cli", "serve", "--bundle", str(bundle), "--port", "0"]
    # The server must be the gr2 that runs here, and not whatever sources the current folder may hold.
    found = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(found)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise Gr2Error(f"the server ended with exit code {process.wait()} before it was ready")
            yield str(json.loads(line)["address"])
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
