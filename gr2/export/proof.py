"""Every variant of the graphs, written, compared with the student on the same requests, and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gr2.data.candidates import CandidateLists
from gr2.decoding import CoreStudent, ItemMemory
from gr2.errors import BundleError
from gr2.export.agreement import Agreement
from gr2.export.gate import Gate, choose, choose_batch, judge
from gr2.export.memory_file import write_memory
from gr2.export.parity import Asked, measure_parity, queries_of, random_lists
from gr2.export.served import Scorer, batch_scorer, core_scorer, pair_scorer, whole_scorer
from gr2.export.variants import export_variant, find_ranges
from gr2.graphs import WEIGHTS, Graphs
from gr2.manifest import MEMORY
from gr2.models.student import StudentConfig

__all__ = ["export_variants", "prove_variants", "sample_lists"]

Paths = dict[str, Path]  # by role


def export_variants(
    asked: Asked, names: Sequence[str], folder: Path, *, batched: bool, calibrated_on: CandidateLists
) -> dict[str, Paths]:
    """Write the memory, fp32 and the variants in `names` to `folder`; fp16 has a graph for batches alone."""
    made: dict[str, Paths] = {}
    write_memory(folder / MEMORY, asked.memory, asked.codes)
    for name in ("fp32", *names):
        ranges = None
        if name == "int8-static":
            queries = queries_of(asked, calibrated_on, asked.features(calibrated_on))
            ranges = find_ranges(asked.student, ItemMemory(folder / MEMORY), queries)
        made[name] = export_variant(
            name, asked.student, asked.memory, asked.codes, folder, batched=batched, ranges=ranges
        )
    return made


def prove_variants(
    asked: Asked,
    made: Mapping[str, Paths],
    lists: CandidateLists,
    *,
    requests: int,
    tolerance: float,
    gate: Gate,
    arithmetic: str,
    gpu_arithmetic: str = "fp32",
    seed: int,
) -> Graphs:
    """What the manifest says of the graphs, after `requests` requests, half of them drawn from `lists` if it has them.

    Raises BundleError if a graph in fp32 is not the student.
    """
    real = sample_lists(lists, requests // 2, seed)
    random = random_lists(asked.dataset, requests - len(real), lists, seed + 1)
    ways = _ways(made, asked.student.config)
    found = [
        measure_parity(asked, part, ways, tolerance=tolerance, labelled=labelled)
        for part, labelled in ((real, True), (random, False))
    ]
    figures = {way: (found[0][way].result(), found[1][way].result()) for way in ways}
    variants = {}
    for name, paths in made.items():
        own = {way.partition(" ")[2]: pair for way, pair in figures.items() if way.startswith(f"{name} ")}
        if name == "fp32":
            _check(own, tolerance)
        variants[name] = judge(gate, tuple(paths), own)
    default, why = choose(arithmetic, variants, asked.student.config.dim)
    batch, also = choose_batch(gpu_arithmetic, variants)
    return Graphs(variants, default=default, batch=batch, why=why + also)


def sample_lists(lists: CandidateLists, count: int, seed: int) -> CandidateLists:
    """A seeded sample of the lists that have candidates, or all of these if there are fewer."""
    usable = np.flatnonzero((lists.candidates >= 0).any(1))
    drawn = np.random.default_rng(seed).permutation(usable)[:count]
    return lists.take(np.sort(drawn))


def _ways(made: Mapping[str, Paths], config: StudentConfig) -> dict[str, Scorer]:
    """Every way to run the graphs, by "variant way"."""
    ways: dict[str, Scorer] = {}
    for name, paths in made.items():
        if "whole" in paths:
            ways[f"{name} whole"] = whole_scorer(paths["whole"])
        if "encoder" in paths:
            memory = ItemMemory(paths["encoder"].with_name(MEMORY))
            ways[f"{name} split"] = pair_scorer(paths["encoder"], paths["scorer"], memory)
            if WEIGHTS in paths:
                ways[f"{name} core"] = core_scorer(CoreStudent(paths[WEIGHTS], name, config.encoding), memory)
        if "batch" in paths:
            ways[f"{name} batch"] = batch_scorer(paths["batch"], longest=config.max_history)
    return ways


def _check(figures: Mapping[str, tuple[Agreement, Agreement]], tolerance: float) -> None:
    for way, pair in figures.items():
        worst = max(part.max_abs_difference for part in pair)
        broken = max(part.broken_order for part in pair)
        if not worst <= tolerance or broken:
            requests = " and ".join(str(part.requests) for part in pair)
            raise BundleError(
                f"the ONNX graph ({way}) does not rank as the student: on {requests} real and random requests scores "
                f"differ by up to {worst:.2g} (tolerance {tolerance:g}), and {broken:.2%} of orders differ"
            )
