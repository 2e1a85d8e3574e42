"""Searches of catalogues by the kernels, beside STATIC's retrieval in PyTorch: valid, and timed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.kernels.csr import CsrIndex, csr_search
from benchmarks.kernels.plan import LEVELS, Plan
from benchmarks.kernels.timing import Call, Timer
from benchmarks.kernels.valid import Beams, worst_error
from benchmarks.results import Figure
from gr2.decoding import CatalogTrie
from gr2.kernels.device_catalog import DeviceCatalog
from gr2.kernels.device_retriever import DeviceRetriever

__all__ = ["COMPARED", "Index", "retrieval"]

# What the ratios of the tables are of, where a column does not say otherwise.
COMPARED = "theirs called from Python over the replay of our graph"


def catalogue(items: int, level_size: int, device: str) -> CatalogTrie:
    """Uniform codes, sorted on the device."""
    generator = torch.Generator(device).manual_seed(0)
    keys = torch.randint(level_size**LEVELS, (items,), device=device, generator=generator).sort().values
    powers = [level_size**power for power in reversed(range(LEVELS))]
    codes = torch.stack([keys // power % level_size for power in powers], dim=1).to(torch.int16)
    return CatalogTrie(codes.cpu().numpy().view(np.uint16), level_size)


@dataclass(frozen=True)
class Index:
    """A catalogue as either side searches it."""

    items: int
    level_size: int
    ours: DeviceCatalog
    theirs: CsrIndex

    @classmethod
    def build(cls, items: int, level_size: int, device: str) -> Index:
        """Of uniform codes."""
        trie = catalogue(items, level_size, device)
        return cls(items, level_size, DeviceCatalog(trie, device), CsrIndex.build(trie, torch.device(device)))


@dataclass(frozen=True)
class Search:
    """A shape of the search and what it is done on."""

    index: Index
    batch: int
    beams: int

    def inputs(self, rotated: int) -> list[list[torch.Tensor]]:
        """Sets of logits, of a level each: of `rotated` bytes, or one."""
        widths, device = [1, *[self.beams] * (LEVELS - 1)], self.index.ours.device
        sets = max(1, min(16, rotated // self.bytes()))
        return [
            [2 * torch.randn((self.batch, width, self.index.level_size), device=device) for width in widths]
            for _ in range(sets)
        ]

    def bytes(self) -> int:
        """Of the logits of one search of the batch."""
        return 4 * self.batch * self.index.level_size * (1 + (LEVELS - 1) * self.beams)

    def cells(self) -> list[Any]:
        """The shape, as tables show it."""
        return [f"{self.index.items:.0e}".replace("e+0", "e"), self.index.level_size, self.batch, self.beams]


def valid(search: Search, logits: list[torch.Tensor], ours: list[Beams], theirs: list[Beams]) -> float:
    """Asserts that both are searches, every row at every level, and says which share of rows they differ in."""
    code, *rest = theirs
    first = (~search.index.theirs.never_first).cumsum(0) - 1  # the node of each code
    for beams in (ours, [(code[0], first[code[1]], code[2]), *rest]):
        assert worst_error(search.index.ours, logits, beams) < 1e-4
    same = (ours[-1][1] == theirs[-1][1]) & ((ours[-1][2] - theirs[-1][2]).abs() < 1e-4)
    return 1.0 - float(same.all(dim=1).float().mean())


def measure_search(search: Search, plan: Plan, rate: float, compile_it: bool) -> tuple[list[Any], dict[str, float]]:
    """The row of the table, and the ratios."""
    sets, timer = search.inputs(plan.rotated), Timer(plan.device)
    retriever = DeviceRetriever(search.beams)

    def ours(logits: Sequence[torch.Tensor]) -> list[Beams]:
        retriever.start(search.index.ours, search.batch)
        found = []
        for level, values in enumerate(logits, 1):
            parents, _, scores = retriever.step(values)
            found.append((parents, retriever._nodes[level], scores))
        return found

    def theirs(logits: Sequence[torch.Tensor]) -> list[Beams]:
        return csr_search(search.index.theirs, logits, search.beams)

    def over_sets(search_once: Callable[[Sequence[torch.Tensor]], Any]) -> Call:
        def call() -> None:
            for logits in sets:
                search_once(logits)

        return call

    differing = valid(search, sets[0], ours(sets[0]), theirs(sets[0]))
    count = len(sets)
    ours(sets[-1])
    ends = retriever._nodes[-1], retriever._scores[-1]
    expected = [each.clone() for each in ends]
    replay = timer.graphed(over_sets(ours))
    for each in ends:
        each.fill_(-7)
    replay()
    assert all(map(torch.equal, ends, expected)), "a graph's replay is another search"
    mine = timer.seconds(replay) / count
    times = {
        "python": timer.seconds(over_sets(ours)) / count,
        "eager": timer.seconds(over_sets(theirs)) / count,
        "graph": timer.seconds(timer.graphed(over_sets(theirs))) / count,
    }
    if compile_it:
        torch._dynamo.reset()
        compiled = torch.compile(csr_search, dynamic=False, fullgraph=True, backend=plan.backend)
        once = over_sets(lambda logits: compiled(search.index.theirs, logits, search.beams))
        times["compiled"] = timer.seconds(once) / count
        times["compiled graph"] = timer.seconds(timer.graphed(once)) / count
    floor = search.bytes() / rate
    shown = [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("eager", "graph")]
    shown += [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("compiled", "compiled graph")]
    ratios = {name: value / mine for name, value in times.items()}
    compared = [f"{ratios[name]:.1f}" if name in ratios else "" for name in ("eager", "compiled", "compiled graph")]
    row = [*search.cells(), f"{1e6 * mine:.1f}", f"{1e6 * times['python']:.0f}", *shown, *compared]
    return [*row, f"{1e6 * floor:.2f}", f"{mine / floor:.1f}", f"{differing:.1%}"], ratios


def retrieval(
    plan: Plan, indices: list[Index], rate: float, began: float
) -> Iterator[tuple[list[Figure], list[dict[str, Any]]]]:
    """The figures and tables of the searches so far, after each of the whole grid."""
    rows: list[list[Any]] = []
    steps: list[list[Any]] = []
    ratios: list[dict[str, float]] = []
    grid = list(itertools.product(indices, plan.batches, plan.beams))
    for index, batch, beams in grid:
        search = Search(index, batch, beams)
        wanted = (index.items, index.level_size, batch, beams) in plan.compiled
        wanted &= time.monotonic() - began < plan.seconds
        row, ratio = measure_search(search, plan, rate, wanted)
        rows.append(row)
        ratios.append(ratio)
        if batch != 32:
            steps.append(step_times(search, plan, rate))
        print(row, f"at {time.monotonic() - began:.0f} s", flush=True)
        yield _figures(ratios, len(grid), len(plan.compiled)), _tables(rows, steps)


def _figures(ratios: list[dict[str, float]], searches: int, compiled: int) -> list[Figure]:
    """The least ratios, which are not measured while some are missing, but may be short already."""
    what = "retrieval, a graph's replay: times faster than CSR called from Python"
    figures = []
    for name, bar, total in (("eager", 3.0, searches), ("compiled", 1.5, compiled)):
        found = [each[name] for each in ratios if name in each]
        least = f"{what}, {name}, the least of {len(found)}" + (f" of {total}" if len(found) < total else "")
        figure = Figure.judge(least, min(found, default=0.0), bar)
        missing = not found or (len(found) < total and figure.status == "ok")
        figures.append(replace(figure, status="not-measured") if missing else figure)
    return figures


def _tables(rows: list[list[Any]], steps: list[list[Any]]) -> list[dict[str, Any]]:
    columns = ["items", "V", "batch", "beams", "ours us", "ours from Python us", "CSR eager us", "CSR graph us"]
    columns += ["CSR compiled us", "CSR compiled, graph us", "x eager", "x compiled", "x compiled, graph to graph"]
    titles = [f"a search of four levels, whole batch; x: {COMPARED}", "each level alone: us, and times its floor"]
    levels = ["items", "V", "batch", "beams", *(f"level {level}" for level in range(LEVELS))]
    return [
        {"title": titles[0], "columns": [*columns, "floor us", "ours / floor", "rows that differ"], "rows": rows},
        {"title": titles[1], "columns": levels, "rows": steps},
    ]


def step_times(search: Search, plan: Plan, rate: float) -> list[Any]:
    """Each level of one search, of a graph of ten times it."""
    logits, cells, timer = search.inputs(0)[0], [], Timer(plan.device)
    times = 1 if plan.dry else 10
    retriever = DeviceRetriever(search.beams)
    retriever.start(search.index.ours, search.batch)
    for level, values in enumerate(logits):

        def step(level: int = level, values: torch.Tensor = values) -> None:
            for _ in range(times):
                retriever.level = level
                retriever.step(values)

        taken = timer.seconds(timer.graphed(step), batches=3) / times
        cells.append(f"{1e6 * taken:.1f} ({taken * rate / values.nbytes:.1f})")
    return [*search.cells(), *cells]
