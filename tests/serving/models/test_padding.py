"""Padded batches: every request's part is its own, and the graph for batches gives what the graph for one gives."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from gr2.bundle import ModelSpec, graph_inputs
from gr2.decoding import CandidateTrie
from gr2.export.random_bundle import write_random_bundle
from gr2.serving.models.memory import MOST_OF_BATCH
from gr2.serving.models.padding import ALIGNMENT, Batch, Sizes, pad, split
from gr2.serving.models.query import Query

LEVELS, SIZE, LONGEST, ITEMS = 3, 16, 10, 400
SPEC = ModelSpec(LEVELS, SIZE, LONGEST, 16, 2, 20, inputs=tuple(graph_inputs(LEVELS, candidates=True)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "bundle"
    return write_random_bundle(
        folder, items=ITEMS, levels=LEVELS, level_size=SIZE, dim=16, layers=2, max_history=LONGEST, width=2
    )


def make_query(rng: np.random.Generator, events: int, count: int, *, unknown: int = 0) -> Query:
    codes = rng.integers(0, SIZE, (count, LEVELS)).astype(np.uint16)
    known = np.ones(count, dtype=np.bool_)
    known[rng.permutation(count)[:unknown]] = False
    codes[~known] = 0
    past = rng.integers(0, SIZE, (events, LEVELS)).astype(np.uint16)
    features = rng.normal(size=(count, 5)).astype(np.float32)
    return Query(past, codes, known, features, CandidateTrie(codes, known, SIZE))


def make_batch(queries: list[Query]) -> Batch:
    return pad(queries, lambda size: np.full(size, 0xAB, dtype=np.uint8), max_history=LONGEST, candidates=True)


RAGGED = [(0, 1), (LONGEST, 40), (1, 3), (5, 17), (0, 100), (9, 8)]


def test_tries_of_a_batch_are_those_of_its_requests() -> None:
    rng = np.random.default_rng(0)
    queries = [make_query(rng, *shape) for shape in RAGGED]
    batch = make_batch(queries)
    inner = [batch.arrays[f"nodes_{depth}"] for depth in range(1, LEVELS)]
    codes = np.concatenate([np.zeros((len(queries), 1), np.int64), *inner], axis=1)
    parents, total = batch.arrays["parents"], batch.arrays["parents"].shape[1]
    assert codes.shape == parents.shape
    for place, query in enumerate(queries):
        rows = batch.arrays["rows"][place, : query.trie.node_count] - place * total
        assert (np.diff(rows) > 0).all()
        own = np.concatenate([[0], *(query.trie.nodes(depth) for depth in range(1, LEVELS))])
        assert codes[place, rows].tolist() == own.tolist()
        expected = np.maximum(query.trie.parents(), 0)
        assert parents[place, rows].tolist() == rows[expected].tolist()
        assert (batch.arrays["rows"][place] // total == place).all()
    assert ((parents >= 0) & (parents < total)).all()
    assert batch.nodes.tolist() == [query.trie.node_count for query in queries]


def test_padding_is_neither_past_nor_known() -> None:
    rng = np.random.default_rng(1)
    queries = [make_query(rng, *shape, unknown=shape[1] // 3) for shape in RAGGED]
    batch = make_batch(queries)
    for place, query in enumerate(queries):
        past, candidates = batch.arrays["history"][place], batch.arrays["candidates"][place]
        assert past[len(past) - len(query.past) :].tolist() == query.past.tolist()
        assert (past[: len(past) - len(query.past)] == -1).all()
        count = len(query.codes)
        assert candidates[:count].tolist() == query.codes.tolist()
        assert (candidates[count:] == -1).all()
        assert batch.known[place].tolist() == [*query.known.tolist(), *[False] * (candidates.shape[0] - count)]
        assert batch.codes[place, :count].tolist() == query.codes.tolist()
        assert np.array_equal(batch.arrays["features"][place, :count], query.features)
        assert not batch.arrays["features"][place, count:].any()


def test_arrays_fill_one_block_at_aligned_places() -> None:
    batch = make_batch([make_query(np.random.default_rng(2), 3, 5)])
    for name, array in batch.arrays.items():
        assert batch.offsets[name] % ALIGNMENT == 0
        inside = batch.block[batch.offsets[name] :][: array.nbytes]
        assert np.shares_memory(inside, array)
        assert inside.tobytes() == array.tobytes()
    assert batch.arrays["history"].shape[1] == 8
    assert make_batch([make_query(np.random.default_rng(2), LONGEST, 5)]).arrays["history"].shape[1] == LONGEST


@pytest.mark.parametrize("seed", range(4))
def test_batched_graph_gives_what_the_single_graph_gives(seed: int, bundle: Path) -> None:
    rng = np.random.default_rng(seed)
    single, batched = (
        ort.InferenceSession(bundle / name, providers=["CPUExecutionProvider"]) for name in ("model.onnx", "batch.onnx")
    )
    shapes = [(int(rng.integers(0, LONGEST + 1)), int(rng.integers(1, 60))) for _ in range(9)] + RAGGED[seed : seed + 2]
    queries = [make_query(rng, *shape, unknown=shape[1] // 4) for shape in shapes]
    batch = make_batch(queries)
    logits, prior = batched.run(["logits", "prior"], batch.arrays)
    assert logits.shape == (len(queries), batch.rows, SIZE)
    assert np.isfinite(logits).all()
    assert np.isfinite(prior).all()
    for place, query in enumerate(queries):
        feed = {"history": query.past.astype(np.int64), "mask": query.trie.mask(), "features": query.features}
        feed |= {f"nodes_{depth}": query.trie.nodes(depth) for depth in range(1, LEVELS)}
        alone, alone_prior = single.run(["logits", "prior"], {**feed, "candidates": query.codes.astype(np.int64)})
        count = len(query.codes)
        np.testing.assert_allclose(logits[place, : query.trie.node_count], alone, atol=2e-5, rtol=0)
        np.testing.assert_allclose(prior[place, :count][query.known], alone_prior[query.known], atol=2e-5, rtol=0)


def test_answers_do_not_depend_on_the_rest_of_the_batch(bundle: Path) -> None:
    session = ort.InferenceSession(bundle / "batch.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(5)
    query = make_query(rng, 4, 20)
    others = [make_query(rng, *shape) for shape in RAGGED]
    alone, among = (session.run(None, make_batch(queries).arrays)[0] for queries in ([query], [*others, query]))
    rows = query.trie.node_count
    np.testing.assert_allclose(alone[0, :rows], among[-1, :rows], atol=2e-5, rtol=0)


def test_large_batch_is_split_and_a_single_request_never() -> None:
    rng = np.random.default_rng(3)
    queries = [make_query(rng, 2, count) for count in (5, 5, 60, 5, 5)]
    limit = 2 * Sizes.of(queries[0]).cover(Sizes.of(queries[1])).run_bytes(SPEC)
    assert Sizes.of(queries[2]).run_bytes(SPEC) > limit
    assert split(queries, SPEC, limit) == [[0, 1], [2], [3, 4]]
    assert split(queries, SPEC, MOST_OF_BATCH) == [[0, 1, 2, 3, 4]]
    assert split([], SPEC, limit) == []


def test_batch_is_split_by_its_evidence_where_that_is_the_most() -> None:
    """Candidates that nobody knows have no nodes, and their evidence takes memory all the same."""
    rng = np.random.default_rng(4)
    queries = [make_query(rng, 900, 1024, unknown=1023) for _ in range(4)]
    parts = split(queries, replace(SPEC, max_history=1000), MOST_OF_BATCH)
    assert parts == [[0], [1], [2], [3]]


def test_batch_is_split_by_its_logits_where_they_are_the_most() -> None:
    queries = [make_query(np.random.default_rng(5), 0, 60) for _ in range(32)]
    assert len(split(queries, replace(SPEC, level_size=1 << 16), MOST_OF_BATCH)) == 2


def test_sizes_are_those_that_a_batch_is_padded_to() -> None:
    rng = np.random.default_rng(6)
    queries = [make_query(rng, *shape) for shape in RAGGED]
    sizes = reduce(Sizes.cover, map(Sizes.of, queries))
    batch = make_batch(queries)
    assert sum(sizes.nodes) == batch.arrays["parents"].shape[1]
    assert sizes.candidates == batch.known.shape[1]
    assert sizes.history >= batch.arrays["history"].shape[1]


def test_splitting_the_largest_batch_takes_a_moment() -> None:
    """Looking at all requests of a part for each that joins it would take seconds."""
    query = make_query(np.random.default_rng(7), 2, 5)
    start = time.perf_counter()
    assert split([query] * 4096, SPEC, 1 << 60) == [list(range(4096))]
    assert time.perf_counter() - start < 1.0
