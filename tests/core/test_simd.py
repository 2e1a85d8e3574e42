"""Every generation of vector instructions, forced one by one, gives what the references give."""

import numpy as np
import pytest

from gr2.decoding import (
    CandidateDecoder,
    CandidateTrie,
    CatalogTrie,
    Retriever,
    simd_level,
    simd_levels,
    use_simd_level,
)
from gr2.decoding.reference import reference_score
from gr2.decoding.reference_generate import reference_generate
from gr2.decoding.reference_retrieve import ReferenceRetriever

LEVEL_SIZES = [1, 3, 8, 17, 64, 255, 1023]


@pytest.fixture(params=simd_levels())
def level(request):
    before = simd_level()
    use_simd_level(request.param)
    yield request.param
    use_simd_level(before)


def test_the_highest_generation_is_in_use():
    assert simd_level() == simd_levels()[-1]
    every = ["base", "x86-64-v2", "x86-64-v3", "x86-64-v4", "x86-64-v4-vnni"]
    assert simd_levels() == every[: len(simd_levels())]


def test_a_generation_that_the_processor_lacks_is_named():
    before = simd_level()
    with pytest.raises(ValueError, match=r"level must be one that this processor has, 'base'.*, got 'x86-64-v9'"):
        use_simd_level("x86-64-v9")
    assert simd_level() == before


@pytest.mark.parametrize("level_size", LEVEL_SIZES)
@pytest.mark.parametrize("normalization", ["raw", "local"])
def test_scores_are_those_of_the_reference(level, level_size, normalization):
    generator = np.random.default_rng(level_size)
    codes = generator.integers(0, level_size, (40, 3)).astype(np.uint16)
    known = generator.random(40) < 0.9
    trie = CandidateTrie(codes, known, level_size)
    logits = (4 * generator.standard_normal((trie.node_count, level_size))).astype(np.float32)
    _, scores = trie.score(logits, normalization=normalization)
    _, expected = reference_score(codes, known, logits, normalization=normalization)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-5)
    logits[-1, level_size // 2] = np.nan
    with pytest.raises(ValueError, match=f"row {trie.node_count - 1} column {level_size // 2} is nan"):
        trie.score(logits, normalization=normalization)


@pytest.mark.parametrize("level_size", LEVEL_SIZES)
@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_generation_is_that_of_the_reference(level, level_size, mode):
    generator = np.random.default_rng(level_size)
    codes = generator.integers(0, level_size, (15, 3)).astype(np.uint16)
    known, table = np.ones(15, bool), generator.standard_normal((50, level_size)).astype(np.float32)
    decoder = CandidateDecoder(CandidateTrie(codes, known, level_size), mode=mode, seed=5)
    while not decoder.done:
        decoder.push(table[len(decoder.codes) % 50])
    expected = reference_generate(codes, known, lambda context: table[len(context) % 50], mode=mode, seed=5)
    assert decoder.order.tolist() == expected.order
    chosen = ~decoder.forced
    np.testing.assert_allclose(decoder.log_probs("raw")[chosen], np.array(expected.raw)[chosen], atol=1e-5)


@pytest.mark.parametrize("level_size", LEVEL_SIZES)
@pytest.mark.parametrize("normalization", ["raw", "local"])
def test_beams_are_those_of_the_reference(level, level_size, normalization):
    generator = np.random.default_rng(level_size)
    codes = generator.integers(0, level_size, (300, 2)).astype(np.uint16)
    codes = codes[np.lexsort(codes.T[::-1])]
    retriever, reference = Retriever(7, normalization=normalization), ReferenceRetriever(codes, 7, normalization)
    retriever.start(CatalogTrie(codes, level_size))
    for width in (1, 7):
        logits = generator.standard_normal((width, level_size)).astype(np.float32)
        rows = retriever.step(logits[None])
        reference.step(logits)
        for ours, theirs in zip(rows, reference.rows(), strict=True):
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-5)
    assert np.array_equal(retriever.finish()[0][0], reference.finish()[0])
