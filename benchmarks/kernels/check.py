"""The kernels on the device against the C++ core, whose tests hold it to the NumPy reference; memory holds rubbish."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.decoding import CandidateDecoder, CandidateTrie, CatalogTrie, ItemFilter, Retriever
from gr2.kernels import CandidateTables, Decoder

__all__ = ["check_generate", "check_retrieve", "check_score"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Items, levels, level size, beams, batch, dtype, normalisation, filters.
SEARCHES = [
    (400, 4, 7, 5, 3, "float32", "local", True),
    (3_000, 3, 33, 10, 3, "float16", "raw", False),
    (60_000, 4, 256, 70, 5, "bfloat16", "raw", True),
    (200_000, 3, 1000, 70, 2, "float32", "raw", False),
    (300_000, 2, 2048, 100, 2, "float32", "local", True),
    (50_000, 2, 8192, 20, 1, "float32", "raw", False),
]
SLATES = [(64, 100, 4, 256), (5, 17, 3, 33), (2, 1000, 4, 1024), (3, 1, 1, 5)]
PERMUTATIONS = [(16, 100, 4, 256), (4, 300, 3, 20)]
# One small case of each, for a dry run in the interpreter.
SMALL_SEARCH = (60, 4, 7, 3, 3, "float32", "local", True)
SMALL_SLATE = SMALL_PERMUTATION = (3, 9, 3, 7)
NEAR = 2e-5


def poison(*tensors: torch.Tensor) -> None:
    """Fill memory with NaN, or with numbers that lead nowhere."""
    for tensor in tensors:
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0x7B)


def check_retrieve(decoder: Decoder, *, small: bool = False) -> str:
    """Asserts whole searches; says how many beams were compared, and how many were too near others to compare."""
    compared = near = 0
    for number, case in enumerate([SMALL_SEARCH] if small else SEARCHES):
        for ties in (False, True):
            beams, unsure = _search(decoder, np.random.default_rng(number), ties, *case)
            compared, near = compared + beams, near + unsure
    return f"{compared} beams, {near} too near to another"


def _search(
    decoder: Decoder,
    rng: np.random.Generator,
    ties: bool,
    items: int,
    levels: int,
    size: int,
    beams: int,
    batch: int,
    dtype: str,
    normalization: Any,
    filtered: bool,
) -> tuple[int, int]:
    codes = rng.integers(0, size, (items, levels)).astype(np.uint16)
    trie = CatalogTrie(codes[np.lexsort(codes.T[::-1])], size)
    catalog = decoder.catalog(trie)
    deny = rng.integers(0, items, items // 2)
    ours, theirs = decoder.retriever(beams, normalization=normalization), Retriever(beams, normalization=normalization)
    if filtered:
        each = [None, decoder.item_filter(catalog, deny=deny)]
        ours.start(catalog, batch, filters=[each[i % 2] for i in range(batch)])
        each = [None, ItemFilter(trie, deny=deny)]
        theirs.start(trie, batch, filters=[each[i % 2] for i in range(batch)])
    else:
        ours.start(catalog, batch)
        theirs.start(trie, batch)
    poison(ours._keys, ours._counts, ours._limits, ours._bests, ours._stage, ours._items, ours._item_scores)
    poison(ours._parents, ours._codes, ours._nodes[1:], ours._scores[1:])
    compared = near = 0
    for level in range(levels):
        shape = (batch, beams if level else 1, size)
        values = -128.0 * rng.integers(0, 3, shape) if ties else 3 * rng.standard_normal(shape)
        values[rng.random(shape) < 0.1] = -np.inf
        logits = torch.from_numpy(values).to(decoder.device, DTYPES[dtype])
        parents, chosen, scores = (each.cpu().numpy() for each in ours.step(logits))
        expected = theirs.step(logits.float().cpu().numpy())
        np.testing.assert_allclose(scores, expected[2], rtol=1e-5, atol=1e-4)
        same = (parents == expected[0]) & (chosen == expected[1])
        with np.errstate(invalid="ignore"):
            gaps = np.diff(expected[2], axis=1, append=-np.inf)
        apart = ~(gaps > -NEAR * (1 + np.abs(expected[2]))) | np.isneginf(expected[2])
        apart[:, 1:] &= apart[:, :-1] | np.isneginf(expected[2][:, 1:])
        assert ties or same[apart].all(), f"level {level}: beams differ"
        assert not ties or same.all(), f"level {level}: ties are broken otherwise"
        near += 0 if ties else int((~apart).sum())
        compared += int((same if ties else apart).sum())
        if not same.all():
            return compared, near
        assert np.array_equal(ours.nodes().cpu().numpy(), theirs.nodes())
    found, expected_items = ours.finish()[0].cpu().numpy(), theirs.finish()[0]
    assert np.array_equal(found, expected_items)
    assert np.array_equal(ours.paths().cpu().numpy(), theirs.paths())
    ours.check()
    return compared, near


def slate(
    rng: np.random.Generator, requests: int, candidates: int, levels: int, size: int
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Codes that share paths, and requests of every number of known candidates."""
    codes = rng.integers(0, size, (requests, candidates, levels)).astype(np.uint16)
    codes[:, 1::5] = codes[:, 0::5][:, : codes[:, 1::5].shape[1]]
    return codes, np.arange(candidates) < rng.integers(0, candidates + 1, (requests, 1))


def check_score(decoder: Decoder, *, small: bool = False) -> str:
    """Asserts scores and orders of batches of ragged requests; says how many were compared, and neighbours swapped."""
    rng, swapped, count = np.random.default_rng(0), 0, 0
    slates = [SMALL_SLATE] if small else SLATES
    for (requests, candidates, levels, size), dtype in zip(slates, (*DTYPES.values(), torch.float32), strict=False):
        codes, known = slate(rng, requests, candidates, levels, size)
        tables = CandidateTables.build(codes, known, size)
        tries = [CandidateTrie(*each, size) for each in zip(codes, known, strict=True)]
        prior = rng.standard_normal((requests, candidates)).astype(np.float32)
        for normalization in ("raw", "local"):
            values = 3 * rng.standard_normal((requests, tables.nodes, size))
            logits = torch.from_numpy(values).to(decoder.device, dtype)
            batch = decoder.candidates(tables)
            poison(batch._denominators, batch._keys, batch.order, batch.scores)
            ranked = batch.score(logits, torch.from_numpy(prior).to(decoder.device), normalization=normalization)
            order, scores = (each.cpu().numpy() for each in ranked)
            rows = logits.float().cpu().numpy()
            batch.check()
            for i, trie in enumerate(tries):
                theirs = trie.score(rows[i, : trie.node_count], prior[i], normalization=normalization)
                np.testing.assert_allclose(scores[i], theirs[1], rtol=1e-5, atol=1e-4)
                differs = order[i] != theirs[0]
                with np.errstate(invalid="ignore"):
                    gaps = np.abs(theirs[1][order[i]] - theirs[1][theirs[0]])
                assert not np.any(gaps[differs] > 1e-4)
                swapped, count = swapped + int(differs.sum()), count + candidates
    return f"{count} candidates, {swapped} at another place than one of equal score to 1e-4"


def check_generate(decoder: Decoder, *, small: bool = False) -> str:
    """Asserts whole permutations, greedy and sampled, decision by decision; says how many there were."""
    rng, decisions = np.random.default_rng(0), 0
    for requests, candidates, levels, size in [SMALL_PERMUTATION] if small else PERMUTATIONS:
        codes, known = slate(rng, requests, candidates, levels, size)
        tables = CandidateTables.build(codes, known, size)
        seeds = [2**63 + 7 * i for i in range(requests)]
        for mode in ("greedy", "sample"):
            options: Any = {"mode": mode, "temperature": 0.7}
            ours = decoder.candidates(tables).generate(**options)
            poison(ours.order, ours.codes, ours.local, ours.raw, ours._cum)
            ours.reset(seeds)
            tries = [CandidateTrie(*each, size) for each in zip(codes, known, strict=True)]
            theirs = [CandidateDecoder(trie, seed=seed, **options) for trie, seed in zip(tries, seeds, strict=True)]
            while not all(each.done for each in theirs):
                logits = (2 * rng.standard_normal((requests, size))).astype(np.float32)
                chosen = ours.push(torch.from_numpy(logits).to(decoder.device)).tolist()
                expected = [-1 if each.done else each.push(row) for each, row in zip(theirs, logits, strict=True)]
                assert chosen == expected
                decisions += requests - expected.count(-1)
            assert ours.node.tolist() == [-1] * requests
            lengths, emitted = ours.lengths.tolist(), ours.emitted.tolist()
            record = [each.cpu().numpy() for each in (ours.order, ours.codes, ours.forced, ours.local, ours.raw)]
            for i, each in enumerate(theirs):
                order, path, forced, local, raw = (values[i] for values in record)
                assert np.array_equal(order[: emitted[i]], each.order)
                assert np.array_equal(path[: lengths[i]], each.codes)
                assert np.array_equal(forced[: lengths[i]] != 0, each.forced)
                for values, name in ((local, "local"), (raw, "raw")):
                    np.testing.assert_allclose(values[: lengths[i]], each.log_probs(name), rtol=1e-4, atol=1e-4)
            assert ours.ranking().tolist() == [
                each.ranking(np.zeros(candidates, np.float32)).tolist() for each in theirs
            ]
            ours.check()
    return f"{decisions} decisions"
