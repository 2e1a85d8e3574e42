"""What decoding costs, in time and memory, over K, N and V: tables, and a log-log picture beside the record."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoding.picture import cost_picture
from benchmarks.decoding.request import generate, logits_of, seconds, slate
from benchmarks.decoding.retrieve import BEAMS, LEVELS, catalogue, our_search, requests
from benchmarks.results import FOLDER, Figure, Record
from gr2.decoding import CandidateDecoder, CandidateTrie, CatalogTrie, Retriever

__all__ = ["CatalogCost", "RequestCost", "cost"]

SIZES, ITEMS, LEVEL_SIZES = (10, 30, 100, 300, 1024), (10_000, 100_000, 1_000_000, 10_000_000), (256, 2048, 8192)
ROUNDS, SEARCH_ROUNDS, SEARCHES = 9, 5, 16
PICTURE = "decoding.cost.png"


@dataclass(frozen=True)
class RequestCost:
    """Of K candidates over V codes a level: microseconds of each call, and bytes."""

    level_size: int
    size: int
    nodes: int
    trie: float
    score: float
    sample: float
    generate: float
    decisions: int
    trie_bytes: int
    state_bytes: int


@dataclass(frozen=True)
class CatalogCost:
    """Of N items over V codes a level: milliseconds to build and to open, microseconds a search, and bytes."""

    level_size: int
    items: int
    build: float
    open: float
    search: float
    index_bytes: int


def request_cost(size: int, level_size: int) -> RequestCost:
    """Medians of interleaved rounds; the ranking is asserted to be one."""
    codes, known = slate(size, level_size), np.ones(size, dtype=np.bool_)
    trie, table = CandidateTrie(codes, known, level_size), logits_of(level_size)
    decoder = CandidateDecoder(trie)
    decisions = generate(decoder, table)
    assert sorted(decoder.ranking().tolist()) == list(range(size))
    logits = table[np.arange(trie.node_count) % 64]
    scores = trie.score(logits)[1]
    work: list[Callable[[], Any]] = [
        lambda: CandidateTrie(codes, known, level_size),
        lambda: trie.score(logits),
        lambda: trie.sample(scores, seed=0),
        lambda: generate(decoder, table),
    ]
    calls = max(1, 1000 // size)
    times = np.array([[1e6 * seconds(each, calls=calls) for each in work] for _ in range(ROUNDS)])
    medians: list[float] = np.median(times, axis=0).tolist()
    return RequestCost(level_size, size, trie.node_count, *medians, decisions, trie.nbytes, decoder.nbytes)


def catalog_cost(items: int, level_size: int, path: Path) -> CatalogCost:
    """Medians of rounds; each search is of other logits, and all that it returns are asserted to be items."""
    codes = catalogue("uniform", level_size, items=items)
    trie = CatalogTrie(codes, level_size)
    trie.save(path)
    build = [1e3 * seconds(lambda: CatalogTrie(codes, level_size)) for _ in range(SEARCH_ROUNDS)]
    opened = [1e3 * seconds(lambda: CatalogTrie.open(path)) for _ in range(SEARCH_ROUNDS)]
    retriever, pool = Retriever(BEAMS), requests(1, level_size)[:SEARCHES]
    times = []
    for _ in range(SEARCH_ROUNDS):
        for logits in pool:
            times.append(1e6 * seconds(partial(our_search, retriever, trie, logits)))
            found = retriever.finish()[0]
            assert np.all((found >= 0) & (found < items))
    return CatalogCost(
        level_size, items, float(np.median(build)), float(np.median(opened)), float(np.median(times)), trie.byte_size
    )


def request_table(costs: list[RequestCost]) -> dict[str, Any]:
    """The whole Python calls."""
    rows = [
        [
            *(str(value) for value in (each.level_size, each.size, each.nodes)),
            *(f"{value:,.1f}" for value in (each.trie, each.score, each.sample, each.generate)),
            *(f"{value:,}" for value in (each.decisions, each.trie_bytes, each.state_bytes)),
        ]
        for each in costs
    ]
    return {
        "title": f"a request: the whole Python call, microseconds; uniform codes, {LEVELS} levels",
        "columns": [
            *("V", "K", "nodes", "trie", "score", "sample", "generate"),
            *("decisions", "bytes of trie", "bytes of state"),
        ],
        "rows": rows,
    }


def catalog_table(costs: list[CatalogCost]) -> dict[str, Any]:
    """The catalogue's trie."""
    rows = [
        [
            *(f"{value:,}" for value in (each.level_size, each.items)),
            *(f"{value:,.2f}" for value in (each.build, each.open)),
            f"{each.search:,.1f}",
            f"{each.index_bytes / 1e6:,.2f}",
            f"{each.index_bytes / each.items:.1f}",
        ]
        for each in costs
    ]
    return {
        "title": f"a catalogue: uniform codes, {LEVELS} levels; a search of {BEAMS} beams, batch 1, given its logits",
        "columns": ["V", "N", "build ms", "open ms", "search us", "index MB", "bytes an item"],
        "rows": rows,
    }


def cost() -> Record:
    """The tables and the picture, which lies beside the record."""
    gc.disable()
    try:
        requests_made = [request_cost(size, level_size) for level_size in LEVEL_SIZES for size in SIZES]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trie.bin"
            catalogs = [catalog_cost(items, level_size, path) for level_size in LEVEL_SIZES for items in ITEMS]
    finally:
        gc.enable()
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / PICTURE).write_bytes(cost_picture(requests_made, catalogs))
    slate_100 = next(each for each in requests_made if (each.size, each.level_size) == (100, 256))
    million = next(each for each in catalogs if (each.items, each.level_size) == (1_000_000, 256))
    figures = [
        Figure("trie and score of 100, V = 256", f"{slate_100.trie + slate_100.score:.1f} us", "measured", "ok"),
        Figure("a search in 1e6 items, V = 256", f"{million.search:.1f} us", "measured", "ok"),
    ]
    notes = [
        "without the model's cost; generation is of all K items",
        "a request is repeated, which the processor comes to predict: a trie of 100 costs what the bounds above say",
        "state: what generation changes, 2 (K + 1) bytes and the codes allowed, without the record of codes",
        "an index is mapped from its file, and shared by all processes; to open is to check every byte of it",
    ]
    pictures = [{"title": "Time and memory over K, N and V", "file": PICTURE}]
    tables = [request_table(requests_made), catalog_table(catalogs)]
    return Record("decoding.cost", "The cost of decoding", "make show-decoding", figures, tables, notes, pictures)
