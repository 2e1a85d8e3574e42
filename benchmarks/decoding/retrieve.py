"""Retrieval from a million items: ours against the published STATIC approach in eager PyTorch, one thread each.

STATIC (arXiv 2602.22647) keeps the catalogue's trie as dense tables for the first two codes and as CSR rows of codes
and next states below, gathers every beam's children padded to the level's widest node, and ranks beam x children of the
whole batch at once. Its own loop takes the best of each beam before those of all; one selection is faster here.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import Figure, Record
from gr2.decoding import CatalogTrie, Retriever

__all__ = ["catalogue", "our_search", "requests", "retrieve"]

ITEMS, LEVELS, BEAMS = 1_000_000, 4, 10
LEVEL_SIZES, SHAPES = (256, 2048), ("uniform", "skewed")
REQUESTS, ROUNDS, BUILD_ROUNDS = {1: 64, 32: 6}, 31, 9

Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class StaticIndex:
    """The published index: V x V tables for the first two codes, and CSR rows of codes and next states below.

    A state is a prefix of at least one code: 1 + code at depth 1, numbers behind those in lexicographic order below.
    """

    never_first: torch.Tensor  # (V,) bool: not a child of the root
    never_second: torch.Tensor  # (V, V) bool: not a prefix of two codes
    states: torch.Tensor  # (V, V) int32
    rows: torch.Tensor  # (states + 1,) int32
    codes: torch.Tensor  # (e + V,) int32, V of padding behind
    following: torch.Tensor  # (e + V,) int32: the next states
    widest: list[int]  # the most children of a node at each level

    @classmethod
    def build(cls, codes: NDArray[np.uint16], level_size: int) -> StaticIndex:
        """From the sorted codes (N, L) of the items, by the published steps: a state for each row and depth first."""
        items, levels = codes.shape
        differs = codes[1:] != codes[:-1]
        changed = np.where(differs.any(axis=1), differs.argmax(axis=1), levels)
        fresh = np.ones((items, levels), dtype=bool)  # row i is the first with its prefix of d + 1 codes
        fresh[1:] = changed[:, None] <= np.arange(levels)
        state = np.zeros((items, levels), np.int32)  # the last column stays 0: no state follows a whole path
        state[:, 0] = codes[:, 0].astype(np.int32) + 1
        bounds = [1, level_size + 1]
        for depth in range(1, levels - 1):
            chosen = fresh[:, depth]
            bounds.append(bounds[-1] + int(chosen.sum()))
            state[chosen, depth] = np.arange(bounds[-2], bounds[-1], dtype=np.int32)
            np.maximum.accumulate(state[:, depth], out=state[:, depth])
        parents = np.concatenate([state[fresh[:, level], level - 1] for level in range(1, levels)])
        degrees = np.bincount(parents, minlength=bounds[-1])
        rows = np.zeros(len(degrees) + 1, np.int32)
        np.cumsum(degrees, out=rows[1:])
        padding = np.zeros(level_size, np.int32)
        edges = [
            np.concatenate([*(table[fresh[:, level], level].astype(np.int32) for level in range(1, levels)), padding])
            for table in (codes, state)
        ]
        widest = [level_size, *(int(degrees[low:high].max()) for low, high in itertools.pairwise(bounds))]
        arrays = (*cls._tables(codes, state[:, 1], level_size), rows, *edges)
        return cls(*map(torch.from_numpy, arrays), widest)

    @staticmethod
    def _tables(
        codes: NDArray[np.uint16], state: NDArray[np.int32], level_size: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int32]]:
        never_first = np.ones(level_size, dtype=bool)
        never_second = np.ones((level_size, level_size), dtype=bool)
        states = np.zeros((level_size, level_size), np.int32)
        first, second = codes[:, 0].astype(np.int32), codes[:, 1].astype(np.int32)
        never_first[first], never_second[first, second], states[first, second] = False, False, state
        return never_first, never_second, states

    def byte_size(self) -> int:
        """Bytes of all its tensors."""
        tensors = (self.never_first, self.never_second, self.states, self.rows, self.codes, self.following)
        return sum(each.numel() * each.element_size() for each in tensors)


@torch.inference_mode()
def static_search(index: StaticIndex, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The code rows (B, M, L) and scores (B, M) of a beam search over the index; `logits[d]` is (B, M, V)."""
    batch, _, level_size = logits[0].shape
    likely = torch.log_softmax(logits[0][:, 0], dim=-1).masked_fill_(index.never_first, -torch.inf)
    scores, codes = torch.topk(likely, BEAMS, dim=-1)  # (B, M)
    paths = codes.unsqueeze(-1)
    state = codes
    for level in range(1, len(logits)):
        likely = torch.log_softmax(logits[level], dim=-1)
        if level == 1:
            likely.masked_fill_(index.never_second[codes], -torch.inf)
        else:
            begin, end = index.rows[state], index.rows[state + 1]
            places = begin.unsqueeze(-1) + torch.arange(index.widest[level], dtype=torch.int32)
            children = index.codes[places].long()
            likely = likely.gather(2, children).masked_fill_(places >= end.unsqueeze(-1), -torch.inf)
        width = likely.shape[-1]
        scores, chosen = torch.topk(likely.add_(scores.unsqueeze(-1)).view(batch, -1), BEAMS, dim=-1)
        parents = chosen // width
        if level == 1:
            above, codes = codes.gather(1, parents), chosen % level_size
            state = index.states[above, codes]
        else:
            codes = children.view(batch, -1).gather(1, chosen)
            state = index.following[places.view(batch, -1).gather(1, chosen)]
        kept = paths.gather(1, parents.unsqueeze(-1).expand(-1, -1, level))
        paths = torch.cat([kept, codes.unsqueeze(-1)], dim=-1)
    return paths, scores


def our_search(retriever: Retriever, trie: CatalogTrie, logits: Logits) -> tuple[Any, Any]:
    """The same by Retriever."""
    retriever.start(trie, len(logits[0]))
    for values in logits:
        _, _, scores = retriever.step(values)
    return retriever.paths(), scores


def catalogue(shape: str, level_size: int, *, items: int = ITEMS) -> NDArray[np.uint16]:
    """Sorted codes (items, LEVELS), uniform, or by Zipf's law with exponent 1 at each level."""
    rng = np.random.default_rng(0)
    weights = np.ones(level_size) if shape == "uniform" else 1 / np.arange(1, level_size + 1)
    columns = [
        rng.permutation(level_size)[rng.choice(level_size, items, p=weights / weights.sum())] for _ in range(LEVELS)
    ]
    keys = np.zeros(items, np.int64)
    for column in columns:
        keys = keys * level_size + column
    return np.stack(columns, axis=1).astype(np.uint16)[np.argsort(keys, kind="stable")]


def requests(batch: int, level_size: int) -> list[Logits]:
    """The logits of so many searches that no branch can be learnt by heart."""
    rng = np.random.default_rng(1)
    widths = [1, *[BEAMS] * (LEVELS - 1)]
    return [
        [(2 * rng.standard_normal((batch, width, level_size))).astype(np.float32) for width in widths]
        for _ in range(REQUESTS[batch])
    ]


def assert_same_beams(ours: tuple[Any, Any], theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Equal code rows and scores; where scores are nearer than rounding, the rows may change places."""
    (our_rows, our_scores), (rows, scores) = ours, (each.numpy() for each in theirs)
    np.testing.assert_allclose(our_scores, scores, atol=1e-4)
    apart = np.diff(scores, axis=1, append=-np.inf) < -1e-4
    settled = apart & np.roll(apart, 1, axis=1)
    assert settled.mean() >= 0.5
    assert np.array_equal(our_rows[settled], rows[settled])


def interleaved(calls: dict[str, Callable[[], Any]], pool: list[Logits], buffers: Logits) -> dict[str, Any]:
    """Seconds of this thread a call, (ROUNDS,), the median over the pool; each round takes each request once.

    The logits are written into `buffers` before each call, outside the time, as a model would have just done. What the
    clock itself takes, a system call, is taken off.
    """
    clock = clock_seconds()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            taken = []
            for request in pool:
                for buffer, values in zip(buffers, request, strict=True):
                    np.copyto(buffer, values)
                began = time.thread_time()
                call()
                taken.append(time.thread_time() - began - clock)
            times[name].append(float(np.median(taken)))
    return {name: np.array(values[1:]) for name, values in times.items()}


def clock_seconds() -> float:
    """What lies between two readings of the thread's clock."""
    return float(np.median([-(time.thread_time() - time.thread_time()) for _ in range(1_000)]))


def read_bandwidth() -> float:
    """Bytes a second at which one thread reads logits that lie in the last-level cache."""
    values = np.ones((2_000, 1_024), np.float32)
    times = []
    for _ in range(30):
        began = time.perf_counter()
        values.max()
        times.append(time.perf_counter() - began)
    return float(values.nbytes / np.median(times))


def measure_searches(
    what: str, trie: CatalogTrie, index: StaticIndex, batch: int, bandwidth: float
) -> tuple[Figure, list[str]]:
    """The figure of one catalogue and batch, and its row of the table."""
    pool, retriever = requests(batch, trie.level_size), Retriever(BEAMS)
    buffers = [values.copy() for values in pool[0]]
    tensors = [torch.from_numpy(buffer) for buffer in buffers]
    for request in pool:
        theirs = static_search(index, [torch.from_numpy(values) for values in request])
        assert_same_beams(our_search(retriever, trie, request), theirs)
    calls = {"static": lambda: static_search(index, tensors), "ours": lambda: our_search(retriever, trie, buffers)}
    times = interleaved(calls, pool, buffers)
    ratios = times["static"] / times["ours"]
    floor = sum(buffer.nbytes for buffer in buffers) / bandwidth
    ours, theirs_median = float(np.median(times["ours"])), float(np.median(times["static"]))
    low, high = np.quantile(ratios, [0.05, 0.95])
    figure = Figure.judge(
        f"{what}, batch {batch}: times faster than STATIC", float(np.median(ratios)), 10 if batch == 1 else 4
    )
    row = [f"{1e6 * theirs_median:.0f}", f"{1e6 * ours:.1f}", f"{np.median(ratios):.1f}", f"{low:.1f} to {high:.1f}"]
    return figure, [what, str(batch), *row, f"{1e6 * floor:.1f}", f"{ours / floor:.1f}"]


def measure_index(
    what: str, codes: NDArray[np.uint16], level_size: int
) -> tuple[CatalogTrie, StaticIndex, list[Figure], list[str]]:
    """Both indices, how they compare in size and in the time that building takes, and a row of the table."""
    theirs, ours = [], []
    for _ in range(BUILD_ROUNDS):
        began = time.thread_time()
        index = StaticIndex.build(codes, level_size)
        between = time.thread_time()
        trie = CatalogTrie(codes, level_size)
        ours.append(time.thread_time() - between)
        theirs.append(between - began)
    faster = float(np.median(np.array(theirs) / np.array(ours)))
    smaller = index.byte_size() / trie.byte_size
    figures = [
        Figure.judge(f"{what}: index, times smaller than STATIC's", smaller, 2.0),
        Figure.judge(f"{what}: index, times faster to build than STATIC's", faster, 20.0),
    ]
    sizes = [f"{each / 1e6:.2f}" for each in (index.byte_size(), trie.byte_size)]
    speeds = [f"{1e3 * np.median(each):.1f}" for each in (theirs, ours)]
    return trie, index, figures, [what, *sizes, f"{smaller:.1f}", *speeds, f"{faster:.1f}"]


def retrieve() -> Record:
    """Ratios, the medians of interleaved rounds; the beams are asserted equal first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures, searches, indices = [], [], []
    bandwidth = read_bandwidth()
    gc.disable()
    try:
        for level_size, shape in itertools.product(LEVEL_SIZES, SHAPES):
            what = f"{LEVELS} x {level_size}, {shape} codes"
            trie, index, judged, row = measure_index(what, catalogue(shape, level_size), level_size)
            indices.append(row)
            for batch in REQUESTS:
                figure, line = measure_searches(what, trie, index, batch, bandwidth)
                figures.append(figure)
                searches.append(line)
            figures += judged
    finally:
        gc.enable()
        torch.set_num_threads(threads)
    tables = [
        {
            "title": f"{BEAMS} beams over {ITEMS:,} items, the whole search, {ROUNDS} interleaved rounds, one thread",
            "columns": ["", "batch", "STATIC us", "ours us", "ratio", "5 % to 95 %", "floor us", "ours / floor"],
            "rows": searches,
        },
        {
            "title": f"the index of {ITEMS:,} items",
            "columns": ["", "STATIC MB", "ours MB", "ratio", "STATIC build ms", "ours build ms", "ratio"],
            "rows": indices,
        },
    ]
    notes = [
        "times are the processor's, of the one thread, so that waiting for other work adds nothing; the cache and the "
        "bandwidth that other work takes slow STATIC down more than ours, which at batch 32 raises the ratio",
        "STATIC is a re-implementation in eager PyTorch on the CPU, of its variants the fastest here; its index is "
        "built by the published steps, and a leaner NumPy program, which sums up new prefixes, takes about a quarter",
        f"the floor: one thread reads every logit once from the last-level cache, at {bandwidth / 1e9:.0f} GB/s",
        "STATIC's index holds no items: it answers with code rows. Ours maps leaves to items, collisions among them",
    ]
    return Record("decoding.retrieve", "Retrieval", "make show-decoding", figures, tables, notes)
