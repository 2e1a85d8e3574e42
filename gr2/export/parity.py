"""How far the exported graph is from the trained student, measured on real requests through the serving path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie
from gr2.graphs import graph_file
from gr2.models.evidence import EVIDENCE
from gr2.models.scoring import slate_scores
from gr2.models.slate import build_slates, pad_histories
from gr2.models.student import Student
from gr2.progress import track
from gr2.serving.padding import pad
from gr2.serving.query import Query

__all__ = ["Parity", "measure_parity"]

BATCH = 32


@dataclass(frozen=True)
class Parity:
    """`max_abs_difference` of the scores; the share of `identical_order`; the share of `broken_order`: requests whose
    order puts a candidate above one that the student scores higher by more than the tolerance.

    `split_difference` is that of the scores by encoder and scorer, `batched_difference` that by the graph for batches,
    None without one.
    """

    requests: int
    max_abs_difference: float
    identical_order: float
    broken_order: float
    split_difference: float
    batched_difference: float | None = None


def measure_parity(
    student: Student,
    graphs: Mapping[str, Path],
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: CandidateLists,
    features: NDArray[np.float32],
    *,
    tolerance: float,
) -> Parity:
    """Score every row of `lists` by torch, in padded batches, and by each of `graphs` through the C++ trie.

    `graphs` are the paths of `export_graphs`. `codes` (N, L) are the items' codes; each row needs one candidate at
    least. `features` (R, K, 3 + F + E) are the student's; a graph gets the first 3 + F columns and must find the
    evidence itself.
    """
    whole, encoder, scorer = (_open(graphs[graph_file(role)]) for role in ("whole", "encoder", "scorer"))
    batch_graph = graphs.get(graph_file("batch"))
    batches = None if batch_graph is None else _open(batch_graph)
    width = student.config.features - len(EVIDENCE)
    size, longest = student.config.level_size, student.config.max_history
    difference, split, batched, identical, broken = 0.0, 0.0, 0.0, 0, 0
    student.eval()
    with track(len(lists), "parity of the graph", unit="requests") as bar:
        for rows in np.array_split(np.arange(len(lists)), max(1, len(lists) // BATCH)):
            part = lists.take(rows)
            slates = build_slates(dataset, codes, part, features[rows], level_size=size, longest=longest)
            expected = slate_scores(student, slates)
            queries: list[Query] = []
            for place in range(len(rows)):
                count = int((part.candidates[place] != PADDING).sum())
                past, _ = pad_histories(dataset, part.user[place, None], part.position[place, None], longest)
                own, known = codes[part.candidates[place, :count]], np.ones(count, dtype=np.bool_)
                trie = CandidateTrie(own, known, size)
                queries.append(Query(codes[past[0]], own, known, features[rows[place], :count, :width], trie))
                order, scores = _serve(whole, queries[-1])
                wanted = expected[place, :count]
                difference = max(difference, float(np.abs(scores - wanted).max()))
                apart = _serve_split(encoder, scorer, queries[-1])
                split = max(split, float(np.abs(apart - wanted).max()))
                identical += bool(np.array_equal(order, np.argsort(-wanted, kind="stable")))
                broken += bool((np.diff(wanted[order]) > tolerance).any())
            if batches is not None:
                found = _serve_batch(batches, queries, longest)
                gaps = [np.abs(each - wanted[: len(each)]).max() for each, wanted in zip(found, expected, strict=True)]
                batched = max(batched, float(max(gaps)))
            bar.advance(len(rows), difference=max(difference, split, batched))
    total = max(1, len(lists))
    last = None if batches is None else batched
    return Parity(len(lists), difference, identical / total, broken / total, split, last)


def _open(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _serve(session: ort.InferenceSession, query: Query) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The order and the scores of one request, computed as the serving engine does."""
    feed = {
        "history": query.past.astype(np.int64),
        "mask": query.trie.mask(),
        "features": query.features,
        "candidates": query.codes.astype(np.int64),
    }
    feed |= {f"nodes_{depth}": query.trie.nodes(depth) for depth in range(1, query.trie.levels)}
    logits, prior = session.run(["logits", "prior"], feed)
    return query.trie.score(logits, prior, normalization="raw")


def _serve_split(encoder: ort.InferenceSession, scorer: ort.InferenceSession, query: Query) -> NDArray[np.float32]:
    """The scores of one request by encoder and scorer."""
    history, trie = query.past.astype(np.int64), query.trie
    names = [item.name for item in encoder.get_outputs()]
    feed = dict(zip(names, encoder.run(names, {"history": history}), strict=True))
    feed |= {"history": history, "features": query.features, "candidates": query.codes.astype(np.int64)}
    feed |= {"nodes": trie.tokens(), "counts": trie.counts(), "ancestors": trie.ancestors()}
    logits, prior = scorer.run(["logits", "prior"], feed)
    return trie.score(logits, prior, normalization="raw")[1]


def _serve_batch(session: ort.InferenceSession, queries: Sequence[Query], longest: int) -> list[NDArray[np.float32]]:
    """The scores of each request of a batch, computed as the serving engine does on a GPU."""
    batch = pad(queries, lambda size: np.empty(size, dtype=np.uint8), max_history=longest, candidates=True)
    logits, prior = session.run(["logits", "prior"], batch.arrays)
    return [
        query.trie.score(logits[place, : query.trie.node_count], prior[place, : len(query.codes)])[1]
        for place, query in enumerate(queries)
    ]
