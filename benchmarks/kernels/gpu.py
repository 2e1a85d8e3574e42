"""The Triton kernels on a GPU: checked, then timed beside PyTorch: `python -m benchmarks.kernels.gpu`.

Times are medians of replays of CUDA graphs, and of calls from Python where the column says so.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kernels.check import check_generate, check_retrieve, check_score, slate
from benchmarks.kernels.csr import CsrIndex, csr_search, generate_by_operations
from benchmarks.kernels.first import compile_searches, first_launches
from benchmarks.kernels.timing import Call, bandwidth, graphed, seconds
from benchmarks.kernels.valid import Beams, worst_error
from benchmarks.results import Figure, Record, store
from gr2.decoding import CatalogTrie
from gr2.kernels import CandidateTables, make_decoder
from gr2.kernels.device_catalog import DeviceCatalog
from gr2.kernels.device_retriever import DeviceRetriever

__all__ = ["main"]

LEVELS = 4
ITEMS, LEVEL_SIZES, BATCHES, BEAMS = (1_000_000, 20_000_000), (256, 2048), (1, 32, 256), (10, 70)
# What torch.compile is asked for: it takes seconds each.
COMPILED = {
    *((ITEMS[0], 256, batch, beams) for batch in (1, 256) for beams in BEAMS),
    *((ITEMS[0], 2048, batch, 70) for batch in (1, 256)),
    *((ITEMS[1], level_size, 32, 70) for level_size in LEVEL_SIZES),
}
# Logits are taken from so many bytes in turn, so that they are not in the cache before.
ROTATED = 100_000_000
SECONDS = 110  # after which torch.compile is not asked any more

# What the ratios of the tables are of, where a column does not say otherwise.
COMPARED = "theirs called from Python over the replay of our graph"


def catalogue(items: int, level_size: int) -> CatalogTrie:
    """Uniform codes, sorted on the device."""
    generator = torch.Generator("cuda").manual_seed(0)
    keys = torch.randint(level_size**LEVELS, (items,), device="cuda", generator=generator).sort().values
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
    def build(cls, items: int, level_size: int) -> Index:
        """Of uniform codes."""
        trie = catalogue(items, level_size)
        return cls(items, level_size, DeviceCatalog(trie, "cuda"), CsrIndex.build(trie, torch.device("cuda")))


@dataclass(frozen=True)
class Search:
    """A shape of the search and what it is done on."""

    index: Index
    batch: int
    beams: int

    def inputs(self) -> list[list[torch.Tensor]]:
        """Sets of logits, of a level each."""
        widths = [1, *[self.beams] * (LEVELS - 1)]
        sets = max(1, min(16, ROTATED // self.bytes()))
        return [
            [2 * torch.randn((self.batch, width, self.index.level_size), device="cuda") for width in widths]
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


def measure_search(search: Search, rate: float, compile_it: bool) -> tuple[list[Any], dict[str, float]]:
    """The row of the table, and the ratios."""
    sets = search.inputs()
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
    replay = graphed(over_sets(ours))
    for each in ends:
        each.fill_(-7)
    replay()
    assert all(map(torch.equal, ends, expected)), "a graph's replay is another search"
    mine = seconds(replay) / count
    times = {
        "python": seconds(over_sets(ours)) / count,
        "eager": seconds(over_sets(theirs)) / count,
        "graph": seconds(graphed(over_sets(theirs))) / count,
    }
    if compile_it:
        torch._dynamo.reset()
        compiled = torch.compile(csr_search, dynamic=False, fullgraph=True)
        once = over_sets(lambda logits: compiled(search.index.theirs, logits, search.beams))
        times["compiled"] = seconds(once) / count
        times["compiled graph"] = seconds(graphed(once)) / count
    floor = search.bytes() / rate
    shown = [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("eager", "graph")]
    shown += [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("compiled", "compiled graph")]
    ratios = {name: value / mine for name, value in times.items()}
    compared = [f"{ratios[name]:.1f}" if name in ratios else "" for name in ("eager", "compiled", "compiled graph")]
    row = [*search.cells(), f"{1e6 * mine:.1f}", f"{1e6 * times['python']:.0f}", *shown, *compared]
    return [*row, f"{1e6 * floor:.2f}", f"{mine / floor:.1f}", f"{differing:.1%}"], ratios


def retrieval(indices: list[Index], rate: float, began: float) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The searches of the whole grid."""
    rows, steps, ratios = [], [], []
    for index, batch, beams in itertools.product(indices, BATCHES, BEAMS):
        search = Search(index, batch, beams)
        wanted = (index.items, index.level_size, batch, beams) in COMPILED and time.monotonic() - began < SECONDS
        row, ratio = measure_search(search, rate, wanted)
        rows.append(row)
        ratios.append(ratio)
        if batch != 32:
            steps.append(step_times(search, rate))
        print(row, f"at {time.monotonic() - began:.0f} s", flush=True)
    eager, compiled = (
        min((each[name] for each in ratios if name in each), default=0.0) for name in ("eager", "compiled")
    )
    count = sum("compiled" in each for each in ratios)
    what = "retrieval, a graph's replay: times faster than CSR called from Python"
    figures = [
        Figure.judge(f"{what}, eager, the least of {len(ratios)}", eager, 3.0),
        Figure.judge(f"{what}, compiled, the least of {count}", compiled, 1.5),
    ]
    columns = ["items", "V", "batch", "beams", "ours us", "ours from Python us", "CSR eager us", "CSR graph us"]
    columns += ["CSR compiled us", "CSR compiled, graph us", "x eager", "x compiled", "x compiled, graph to graph"]
    titles = [f"a search of four levels, whole batch; x: {COMPARED}", "each level alone: us, and times its floor"]
    levels = ["items", "V", "batch", "beams", *(f"level {level}" for level in range(LEVELS))]
    return figures, [
        {"title": titles[0], "columns": [*columns, "floor us", "ours / floor", "rows that differ"], "rows": rows},
        {"title": titles[1], "columns": levels, "rows": steps},
    ]


def step_times(search: Search, rate: float) -> list[Any]:
    """Each level of one search, of a graph of ten times it."""
    logits, cells = search.inputs()[0], []
    retriever = DeviceRetriever(search.beams)
    retriever.start(search.index.ours, search.batch)
    for level, values in enumerate(logits):

        def step(level: int = level, values: torch.Tensor = values) -> None:
            for _ in range(10):
                retriever.level = level
                retriever.step(values)

        taken = seconds(graphed(step), batches=3) / 10
        cells.append(f"{1e6 * taken:.1f} ({taken * rate / values.nbytes:.1f})")
    return [*search.cells(), *cells]


def scoring(rate: float) -> dict[str, Any]:
    """Scores of batches of requests of 100 candidates, beside the same in PyTorch operations."""
    rng, rows = np.random.default_rng(0), []
    decoder = make_decoder("cuda")
    for requests, size, dtype in itertools.product((1, 64), (256, 2048), (torch.float32, torch.bfloat16)):
        codes, _ = slate(rng, requests, 100, LEVELS, size)
        tables = CandidateTables.build(codes, np.ones((requests, 100), np.bool_), size)
        batch = decoder.candidates(tables)
        logits = torch.randn((requests, tables.nodes, size), device="cuda").to(dtype)
        prior = torch.randn((requests, 100), device="cuda")
        nodes, paths = (on_device(each).transpose(1, 2) for each in (tables.path_nodes, tables.path_codes))
        positions = on_device(tables.positions)

        def by_operations(
            logits: torch.Tensor = logits,
            prior: torch.Tensor = prior,
            nodes: torch.Tensor = nodes,
            paths: torch.Tensor = paths,
            positions: torch.Tensor = positions,
            requests: int = requests,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            likely = torch.log_softmax(logits.float(), dim=-1)
            which = torch.arange(requests, device="cuda")[:, None, None]
            scores = torch.empty_like(prior).scatter_(1, positions, likely[which, nodes, paths].sum(-1)) + prior
            return scores.argsort(dim=1, descending=True, stable=True), scores

        _, scores = batch.score(logits, prior)
        torch.testing.assert_close(scores, by_operations()[1], rtol=1e-4, atol=1e-4)

        def ours(batch: Any = batch, logits: torch.Tensor = logits, prior: torch.Tensor = prior) -> None:
            batch.score(logits, prior)

        replay = graphed(ours)
        scores.fill_(torch.nan)
        replay()
        torch.testing.assert_close(scores, by_operations()[1], rtol=1e-4, atol=1e-4)
        times = [seconds(replay), seconds(ours), seconds(by_operations), seconds(graphed(by_operations))]
        floor = logits.nbytes / rate
        name = str(dtype).removeprefix("torch.")
        shown = [f"{1e6 * each:.1f}" for each in times]
        row = [requests, size, name, *shown, f"{times[2] / times[0]:.1f}", f"{1e6 * floor:.2f}"]
        rows.append([*row, f"{times[0] / floor:.1f}"])
    columns = ["requests", "V", "logits", "ours us", "ours from Python us", "PyTorch eager us", "PyTorch graph us"]
    return {
        "title": f"trie_score of 100 candidates a request; x: {COMPARED}",
        "columns": [*columns, "x eager", "floor us", "ours / floor"],
        "rows": rows,
    }


def on_device(values: NDArray[Any]) -> torch.Tensor:
    """The table's numbers as PyTorch indexes with."""
    return torch.from_numpy(values.astype(np.int64)).to("cuda")


def generation() -> tuple[list[Figure], dict[str, Any]]:
    """A whole permutation of 100 candidates for 64 requests, beside the same loop of PyTorch operations."""
    requests, candidates, size = 64, 100, 256
    rng = np.random.default_rng(0)
    codes, _ = slate(rng, requests, candidates, LEVELS, size)
    tables = CandidateTables.build(codes, np.ones((requests, candidates), np.bool_), size)
    table = 2 * torch.randn((requests, candidates * LEVELS, size), device="cuda")
    ours = make_decoder("cuda").candidates(tables).generate()
    rows = []
    while bool((ours.node >= 0).any()):
        places = ours.lengths.long().clamp(max=candidates * LEVELS - 1)
        rows.append(table[torch.arange(requests, device="cuda"), places])
        ours.push(rows[-1])

    def permutation() -> None:
        ours.reset()
        for values in rows:
            ours.push(values)

    nodes, paths, positions = map(on_device, (tables.path_nodes, tables.path_codes, tables.positions))

    def by_operations() -> torch.Tensor:
        return generate_by_operations(nodes, paths, positions, table)

    expected = by_operations()
    assert torch.equal(ours.order.long(), expected)
    mine = seconds(graphed(permutation))
    assert torch.equal(ours.order.long(), expected), "a graph's replay is another permutation"
    python = seconds(permutation)
    eager = seconds(by_operations, batches=3)
    replayed = seconds(graphed(by_operations), batches=3)
    what = "a permutation of 100, batch 64, a graph's replay: times faster than PyTorch operations from Python"
    figures = [Figure.judge(what, eager / mine, 3.0)]
    cells = [
        len(rows),
        *(f"{1e3 * each:.2f}" for each in (mine, python, eager, replayed)),
        f"{1e6 * mine / len(rows):.1f}",
    ]
    columns = [
        "decisions",
        "ours ms",
        "ours from Python ms",
        "PyTorch eager ms",
        "PyTorch graph ms",
        "ours us a decision",
    ]
    return figures, {"title": "rank_step: 64 requests of 100 candidates", "columns": columns, "rows": [cells]}


def main() -> None:
    """Check, measure and store; exit with 1 if a figure is short."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.kernels.gpu needs a CUDA device, and torch sees none")
    torch.manual_seed(0)
    began = time.monotonic()
    decoder = make_decoder("cuda")
    kernels = (("constrained_step", check_retrieve), ("trie_score", check_score), ("rank_step", check_generate))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        ahead = pool.submit(compile_searches, LEVEL_SIZES, BEAMS)
        building = [pool.submit(Index.build, *each) for each in itertools.product(ITEMS, LEVEL_SIZES)]
        checks = [[name, check(decoder)] for name, check in kernels]
        print(checks, f"at {time.monotonic() - began:.0f} s", flush=True)
        indices = [each.result() for each in building]
        ahead.result()
        pool.shutdown()
        first_figures, first_table = first_launches(folder)
    print(first_table["rows"], f"at {time.monotonic() - began:.0f} s", flush=True)
    rate = bandwidth()
    figures = [Figure("kernels equal to the C++ core on the device", str(len(checks)), "3", "ok"), *first_figures]
    generated, permutations = generation()
    searched, searches = retrieval(indices, rate, began)
    tables = [
        {"title": "checked against the C++ core before any time is taken", "columns": ["kernel", ""], "rows": checks},
        *searches,
        scoring(rate),
        permutations,
        first_table,
    ]
    notes = [
        f"bandwidth: {rate / 1e9:.0f} GB/s, read and written, of a copy of 1 GiB; the floor reads the logits once",
        f"torch {torch.__version__}; logits float32 unless said otherwise, {ROTATED / 1e6:.0f} MB in turn or one set",
        "ours is a replay of a CUDA graph; from Python, launches are what takes the time. CSR eager and compiled are "
        "called from Python, which the ratios compare with, and shown as graphs, too",
        "both searches are checked at every level of every row against float64; rows differ where scores nearer than "
        "rounding change places, as logits come by rank",
    ]
    record = Record(
        "kernels.gpu", "Kernels on a GPU", "make kernels-gpu", [*figures, *searched, *generated], tables, notes
    )
    store(record)
    for figure in record.figures:
        print(figure, flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")
    sys.exit(any(figure.status == "short" for figure in record.figures))


if __name__ == "__main__":
    main()
