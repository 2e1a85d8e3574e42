"""The Triton kernels on a GPU: checked, then timed beside PyTorch: `python -m benchmarks.kernels_gpu`.

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
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kernels_check import check_generate, check_retrieve, check_score, slate
from benchmarks.kernels_csr import CsrIndex, csr_search, generate_by_operations
from benchmarks.kernels_first import first_launches
from benchmarks.results import Figure, Record, store
from gr2.decoding import CatalogTrie
from gr2.kernels import CandidateTables
from gr2.kernels.device_decoder import DeviceDecoder
from gr2.kernels.device_retriever import DeviceRetriever

__all__ = ["main"]

LEVELS = 4
ITEMS, LEVEL_SIZES, BATCHES, BEAMS = (1_000_000, 20_000_000), (256, 2048), (1, 32, 256), (10, 70)
# What torch.compile is asked for: it takes seconds each.
COMPILED = {(1, 10), (1, 70), (32, 70), (256, 10), (256, 70)}
# Logits are taken from so many bytes in turn, so that they are not in the cache before.
ROTATED = 100_000_000
SECONDS = 165  # after which torch.compile is not asked any more

Call = Callable[[], Any]


def seconds(call: Call, *, batches: int = 7) -> float:
    """The median of `batches` times of a call, each of as many calls as take some milliseconds."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def time_of(count: int) -> float:
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / count

    call()
    count = max(1, min(200, int(4e-3 / time_of(2))))
    return median(time_of(count) for _ in range(batches))


def graphed(call: Call) -> Call:
    """A replay of what the call starts, as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def bandwidth() -> float:
    """Bytes a second, read and written, of a copy on the device."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))


def catalogue(items: int, level_size: int) -> CatalogTrie:
    """Uniform codes, sorted on the device."""
    generator = torch.Generator("cuda").manual_seed(0)
    keys = torch.randint(level_size**LEVELS, (items,), device="cuda", generator=generator).sort().values
    powers = [level_size**power for power in reversed(range(LEVELS))]
    codes = torch.stack([keys // power % level_size for power in powers], dim=1).to(torch.int16)
    return CatalogTrie(codes.cpu().numpy().view(np.uint16), level_size)


@dataclass(frozen=True)
class Search:
    """A shape of the search and what it is done on."""

    items: int
    trie: CatalogTrie
    catalog: Any
    index: CsrIndex
    batch: int
    beams: int

    def inputs(self) -> list[list[torch.Tensor]]:
        """Sets of logits, of a level each."""
        widths = [1, *[self.beams] * (LEVELS - 1)]
        sets = max(1, min(16, ROTATED // self.bytes()))
        return [
            [2 * torch.randn((self.batch, width, self.trie.level_size), device="cuda") for width in widths]
            for _ in range(sets)
        ]

    def bytes(self) -> int:
        """Of the logits of one search of the batch."""
        return 4 * self.batch * self.trie.level_size * (1 + (LEVELS - 1) * self.beams)


def measure_search(search: Search, rate: float, compile_it: bool) -> tuple[list[Any], dict[str, float]]:
    """The row of the table, and the ratios."""
    sets = search.inputs()
    retriever = DeviceRetriever(search.beams)

    def ours(logits: Sequence[torch.Tensor]) -> torch.Tensor:
        retriever.start(search.catalog, search.batch)
        for values in logits:
            _, _, scores = retriever.step(values)
        return scores

    def theirs(logits: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return csr_search(search.index, logits, search.beams)

    def over_sets(search_once: Callable[[Sequence[torch.Tensor]], Any]) -> Call:
        def call() -> None:
            for logits in sets:
                search_once(logits)

        return call

    leaves, scores = theirs(sets[0])
    torch.testing.assert_close(ours(sets[0]), scores, rtol=1e-5, atol=1e-4)
    apart = scores.diff(dim=1, append=scores[:, :1] * 0 - torch.inf) < -1e-4
    settled = apart & apart.roll(1, dims=1)
    assert torch.equal(retriever._nodes[-1].long()[settled], leaves[settled])
    count = len(sets)
    mine = seconds(graphed(over_sets(ours))) / count
    times = {
        "python": seconds(over_sets(ours)) / count,
        "eager": seconds(over_sets(theirs)) / count,
        "graph": seconds(graphed(over_sets(theirs))) / count,
    }
    if compile_it:
        torch._dynamo.reset()
        compiled = torch.compile(csr_search, dynamic=False, fullgraph=True)
        once = over_sets(lambda logits: compiled(search.index, logits, search.beams))
        times["compiled"] = seconds(once) / count
        times["compiled graph"] = seconds(graphed(once)) / count
    floor = search.bytes() / rate
    shape = [f"{search.items:.0e}".replace("e+0", "e"), search.trie.level_size, search.batch, search.beams]
    shown = [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("eager", "graph")]
    shown += [f"{1e6 * times[name]:.0f}" if name in times else "" for name in ("compiled", "compiled graph")]
    ratios = {name: value / mine for name, value in times.items()}
    compared = [f"{ratios[name]:.1f}" if name in ratios else "" for name in ("eager", "compiled", "compiled graph")]
    row = [*shape, f"{1e6 * mine:.1f}", f"{1e6 * times['python']:.0f}", *shown, *compared]
    return [*row, f"{1e6 * floor:.2f}", f"{mine / floor:.1f}"], ratios


def retrieval(rate: float, began: float) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The searches of the whole grid."""
    rows, steps, ratios = [], [], []
    for items, level_size in itertools.product(ITEMS, LEVEL_SIZES):
        trie = catalogue(items, level_size)
        decoder = DeviceDecoder("cuda")
        catalog, index = decoder.catalog(trie), CsrIndex.build(trie, torch.device("cuda"))
        for batch, beams in itertools.product(BATCHES, BEAMS):
            wanted = (batch, beams) in COMPILED and time.monotonic() - began < SECONDS
            search = Search(items, trie, catalog, index, batch, beams)
            row, ratio = measure_search(search, rate, wanted and (items == ITEMS[0] or batch == 32))
            rows.append(row)
            ratios.append(ratio)
            print(row, f"at {time.monotonic() - began:.0f} s", flush=True)
            steps.append(step_times(search, rate))
            torch.cuda.empty_cache()
        del catalog, index, search
    eager, compiled = (min(each[name] for each in ratios if name in each) for name in ("eager", "compiled"))
    count = sum("compiled" in each for each in ratios)
    figures = [
        Figure.judge(f"retrieval: times faster than CSR in eager PyTorch, the least of {len(ratios)}", eager, 3.0),
        Figure.judge(f"retrieval: times faster than CSR under torch.compile, the least of {count}", compiled, 1.5),
    ]
    columns = ["items", "V", "batch", "beams", "ours us", "ours from Python us", "CSR eager us", "CSR graph us"]
    columns += ["CSR compiled us", "CSR compiled, graph us", "x eager", "x compiled", "x compiled, graph"]
    titles = ["a search of four levels, whole batch", "each level alone: us, and times its floor"]
    levels = ["items", "V", "batch", "beams", *(f"level {level}" for level in range(LEVELS))]
    return figures, [
        {"title": titles[0], "columns": [*columns, "floor us", "ours / floor"], "rows": rows},
        {"title": titles[1], "columns": levels, "rows": steps},
    ]


def step_times(search: Search, rate: float) -> list[Any]:
    """Each level of one search, of a graph of ten times it."""
    logits, cells = search.inputs()[0], []
    retriever = DeviceRetriever(search.beams)
    retriever.start(search.catalog, search.batch)
    for level, values in enumerate(logits):

        def step(level: int = level, values: torch.Tensor = values) -> None:
            for _ in range(10):
                retriever.level = level
                retriever.step(values)

        taken = seconds(graphed(step), batches=3) / 10
        cells.append(f"{1e6 * taken:.1f} ({taken * rate / values.nbytes:.1f})")
    shape = [f"{search.items:.0e}".replace("e+0", "e"), search.trie.level_size, search.batch, search.beams]
    return [*shape, *cells]


def scoring(rate: float) -> dict[str, Any]:
    """Scores of batches of requests of 100 candidates, beside the same in PyTorch operations."""
    rng, rows = np.random.default_rng(0), []
    decoder = DeviceDecoder("cuda")
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

        times = [seconds(graphed(ours)), seconds(ours), seconds(by_operations), seconds(graphed(by_operations))]
        floor = logits.nbytes / rate
        name = str(dtype).removeprefix("torch.")
        shown = [f"{1e6 * each:.1f}" for each in times]
        row = [requests, size, name, *shown, f"{times[2] / times[0]:.1f}", f"{1e6 * floor:.2f}"]
        rows.append([*row, f"{times[0] / floor:.1f}"])
    columns = ["requests", "V", "logits", "ours us", "ours from Python us", "PyTorch eager us", "PyTorch graph us"]
    return {
        "title": "trie_score of 100 candidates a request",
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
    ours = DeviceDecoder("cuda").candidates(tables).generate()
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

    assert torch.equal(ours.order.long(), by_operations())
    mine = seconds(graphed(permutation))
    python = seconds(permutation)
    eager = seconds(by_operations, batches=3)
    replayed = seconds(graphed(by_operations), batches=3)
    figures = [Figure.judge("a permutation of 100, batch 64: times faster than PyTorch operations", eager / mine, 3.0)]
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
        sys.exit("benchmarks.kernels_gpu needs a CUDA device, and torch sees none")
    torch.manual_seed(0)
    began = time.monotonic()
    decoder = DeviceDecoder("cuda")
    kernels = (("constrained_step", check_retrieve), ("trie_score", check_score), ("rank_step", check_generate))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        first = pool.submit(first_launches, folder)
        checks = [[name, check(decoder)] for name, check in kernels]
        print(checks, f"at {time.monotonic() - began:.0f} s", flush=True)
        first_figures, first_table = first.result()
    print(first_table["rows"], f"at {time.monotonic() - began:.0f} s", flush=True)
    rate = bandwidth()
    figures = [Figure("kernels equal to the C++ core on the device", str(len(checks)), "3", "ok"), *first_figures]
    generated, permutations = generation()
    searched, searches = retrieval(rate, began)
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
        "called from Python, and shown as graphs, too",
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
