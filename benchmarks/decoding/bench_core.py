"""The C++ core: look-ups against a dict and NumPy, and the work per request. Each asserts its answer first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gr2.decoding import CandidateTrie, Codebook, write_codebook
from gr2.decoding.reference import reference_score, reference_trie

ITEMS, SLATE, LEVELS, LEVEL_SIZE = 1_000_000, 100, 4, 256
REQUESTS = 1_000


class Catalogue:
    """A million items with random IDs, and a thousand requests for random items: 25 MB of slots."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        self.ids = generator.permutation(np.unique(generator.integers(0, 2**62, ITEMS)))
        self.codes = generator.integers(0, LEVEL_SIZE, (len(self.ids), LEVELS)).astype(np.uint16)
        self.rows = generator.integers(0, len(self.ids), (REQUESTS, SLATE))
        self.path = folder / "codebook.bin"
        write_codebook(self.path, self.ids, self.codes, LEVEL_SIZE)

    def cycle(self, lookup: Callable[[Any], Any], requests: list[Any]) -> Callable[[], Any]:
        """A function that answers the next request at each call: its items are in the last-level cache at best."""
        for request, rows in list(zip(requests, self.rows, strict=True))[:20]:
            assert np.array_equal(lookup(request), self.codes[rows])
        position = 0

        def call() -> Any:
            nonlocal position
            position = (position + 1) % REQUESTS
            return lookup(requests[position])

        return call


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture
def slate() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, LEVEL_SIZE, (SLATE, LEVELS)).astype(np.uint16)
    known = np.ones(SLATE, dtype=bool)
    nodes = CandidateTrie(codes, known, LEVEL_SIZE).node_count
    logits = (3 * generator.standard_normal((nodes, LEVEL_SIZE))).astype(np.float32)
    return codes, known, logits, generator.standard_normal(SLATE).astype(np.float32)


@pytest.mark.benchmark(group="look up 100 of 1e6 items")
def test_lookup_codebook(benchmark, catalogue):
    codebook = Codebook(catalogue.path)
    requests = list(catalogue.ids[catalogue.rows])
    benchmark(catalogue.cycle(lambda ids: codebook.lookup(ids)[0], requests))


@pytest.mark.benchmark(group="look up 100 of 1e6 items")
def test_lookup_dict(benchmark, catalogue):
    index = {item: row for row, item in enumerate(catalogue.ids.tolist())}
    requests = catalogue.ids[catalogue.rows].tolist()
    benchmark(catalogue.cycle(lambda ids: catalogue.codes[[index[item] for item in ids]], requests))


@pytest.mark.benchmark(group="look up 100 of 1e6 items")
def test_lookup_searchsorted(benchmark, catalogue):
    order = np.argsort(catalogue.ids)
    keys, codes = catalogue.ids[order], catalogue.codes[order]
    requests = list(catalogue.ids[catalogue.rows])
    benchmark(catalogue.cycle(lambda ids: codes[np.searchsorted(keys, ids)], requests))


@pytest.mark.benchmark(group="open a codebook of 1e6 items, everything checked")
def test_open_codebook(benchmark, catalogue):
    assert len(Codebook(catalogue.path)) == len(catalogue.ids)
    benchmark(Codebook, catalogue.path)


@pytest.mark.benchmark(group="build the trie of 100 candidates")
def test_build_trie(benchmark, slate):
    codes, known, *_ = slate
    trie, reference = CandidateTrie(codes, known, LEVEL_SIZE), reference_trie(codes, known)
    assert np.array_equal(trie.parents(), reference.parents)
    assert np.array_equal(trie.mask(), reference.mask)
    benchmark(CandidateTrie, codes, known, LEVEL_SIZE)


@pytest.mark.benchmark(group="build the trie of 100 candidates")
def test_build_trie_reference(benchmark, slate):
    benchmark(reference_trie, *slate[:2])


@pytest.mark.parametrize("normalization", ["raw", "local"])
@pytest.mark.benchmark(group="score 100 candidates")
def test_score(benchmark, slate, normalization):
    codes, known, logits, prior = slate
    trie = CandidateTrie(codes, known, LEVEL_SIZE)
    order, scores = trie.score(logits, prior, normalization=normalization)
    expected_order, expected = reference_score(codes, known, logits, prior, normalization=normalization)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.array_equal(order, expected_order)
    benchmark(trie.score, logits, prior, normalization=normalization)


@pytest.mark.benchmark(group="score 100 candidates")
def test_score_numpy(benchmark, slate):
    """The vectorised NumPy program that a careful user would write, for the raw normalisation."""
    codes, known, logits, prior = slate
    index = {prefix: node for node, prefix in enumerate(reference_trie(codes, known).prefixes)}
    nodes = np.array([[index[tuple(row[:depth])] for depth in range(LEVELS)] for row in codes.tolist()])

    def score() -> Any:
        top = logits.max(axis=1)
        normaliser = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        scores = (logits[nodes, codes] - normaliser[nodes]).sum(axis=1) + prior
        return np.argsort(-scores, kind="stable"), scores

    order, scores = CandidateTrie(codes, known, LEVEL_SIZE).score(logits, prior)
    np.testing.assert_allclose(score()[1], scores, atol=1e-4)
    assert np.array_equal(score()[0], order)
    benchmark(score)
