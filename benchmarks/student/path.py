"""What the path likelihood costs a request of the served student: `python -m benchmarks.student.path`.

Needs Beauty's bundle (`make beauty`). Its graphs are run beside what is left of them where only the prior and the head
are asked for, by onnxruntime in one thread and in turns, and beside all that a request asks of the model. The path's
worth is in student.quality.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.utils import Extractor

from benchmarks.results import ROOT, Record, store
from gr2.artifact import Artifact
from gr2.bundle import Bundle
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CandidateTrie
from gr2.features import candidate_features
from gr2.serving.models.query import Query
from gr2.serving.models.split_model import SplitModel, known_of

__all__ = ["main", "measured", "ready"]

RUN = ROOT / "runs" / "beauty"
SLATES, SAMPLE, WARM = (10, 50), 400, 20
# What the prior and the head alone need of the two graphs.
OUTPUTS = {"encoder": ["query"], "scorer": ["prior"]}

Call = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def opened(graph: onnx.ModelProto) -> Call:
    """A session of one thread as a function from all inputs, of which it takes its own, to outputs by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = [each.name for each in session.get_inputs()]
    made = [each.name for each in session.get_outputs()]
    return lambda feed: dict(zip(made, session.run(made, {name: feed[name] for name in taken}), strict=True))


def graphs(bundle: Bundle) -> dict[str, tuple[Call, Call]]:
    """Encoder and scorer as they are served, and with the path left out."""
    pair = bundle.graph_pair()
    assert pair is not None, f"{bundle.path} holds no encoder and scorer: make beauty"
    found: dict[str, list[Call]] = {"with the path": [], "without": []}
    for name, path in zip(OUTPUTS, pair, strict=True):
        whole = onnx.load_from_string(bundle.read_graph(path))
        found["with the path"].append(opened(whole))
        found["without"].append(opened(without_path(whole, OUTPUTS[name])))
    return {name: (encoder, scorer) for name, (encoder, scorer) in found.items()}


def without_path(graph: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """What is left of a graph where only `outputs` are asked for."""
    inputs = {each.name for each in graph.graph.input}
    by_output = {name: node for node in graph.graph.node for name in node.output}
    needed, waiting = set(), list(outputs)
    while waiting:
        name = waiting.pop()
        if name in inputs:
            needed.add(name)
        elif name in by_output:
            waiting += by_output.pop(name).input
    return Extractor(graph).extract_model(sorted(needed), outputs)


class Requests:
    """Test lists as what the model, and what its graphs are asked."""

    def __init__(self, bundle: Bundle, count: int) -> None:
        self._dataset = Dataset.load(RUN / "prepare")
        self._codes = Artifact.load(RUN / "tokenize", "tokenize").array("codes.npy")
        lists = CandidateLists.load(RUN / "prerank" / "test.parquet").top(count)
        rows = np.random.default_rng(0).permutation(len(lists))[: SAMPLE + WARM]
        self._lists, self._level_size = lists.take(rows), bundle.manifest.model.level_size
        self._memory, self._longest = bundle.memory(), bundle.manifest.model.max_history
        assert self._memory is not None

    def __len__(self) -> int:
        return len(self._lists)

    def query(self, row: int) -> Query:
        """What the model is asked."""
        past, items, scores = self._row(row)
        codes, known = np.ascontiguousarray(self._codes[items]), np.ones(len(items), dtype=np.bool_)
        features = candidate_features(len(items), scores=scores, dense=None)
        trie = CandidateTrie(codes, known, self._level_size)
        return Query(np.ascontiguousarray(self._codes[past]), codes, known, features, trie)

    def feed(self, query: Query) -> dict[str, NDArray[Any]]:
        """The graphs' inputs by name."""
        trie = query.trie
        inputs: dict[str, NDArray[Any]] = {"history": query.past.astype(np.int64), "nodes": trie.tokens()}
        inputs |= {"counts": trie.counts(), "ancestors": trie.ancestors(), "features": query.features}
        return inputs | {"candidates": query.codes.astype(np.int64)} | known_of(self._memory, query)

    def _row(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        lists = self._lists
        past = self._dataset.history(int(lists.user[row]), int(lists.position[row]))[-self._longest :]
        kept = lists.candidates[row] != PADDING
        return past.astype(np.int64), lists.candidates[row][kept].astype(np.int64), lists.scores[row][kept]


def measure(bundle: Bundle, model: SplitModel, count: int) -> dict[str, float]:
    """Medians in microseconds: the request, and both graphs with the path and without."""
    made, requests = graphs(bundle), Requests(bundle, count)
    spent: dict[str, list[float]] = {"request": [], **{f"{part}, {way}": [] for way in made for part in OUTPUTS}}
    for row in range(len(requests)):
        query = requests.query(row)
        began = time.perf_counter()
        model.score(query)
        spent["request"].append(time.perf_counter() - began)
        feed, priors = requests.feed(query), []
        for way, (encoder, scorer) in made.items():
            times = [time.perf_counter()]
            encoded = encoder(feed)
            times.append(time.perf_counter())
            priors.append(scorer(feed | encoded)["prior"])
            times.append(time.perf_counter())
            for part, each in zip(OUTPUTS, np.diff(times), strict=True):
                spent[f"{part}, {way}"].append(float(each))
        np.testing.assert_allclose(*priors, rtol=1e-5, atol=1e-5)
    return {name: 1e6 * float(np.median(each[WARM:])) for name, each in spent.items()}


def path_record(measured: dict[int, dict[str, float]]) -> Record:
    """The table of all slate sizes."""
    rows = []
    for count, spent in measured.items():
        parts = {part: [spent[f"{part}, {way}"] for way in ("with the path", "without")] for part in OUTPUTS}
        saved = sum(whole - rest for whole, rest in parts.values())
        cells = [f"{whole:.0f} / {rest:.0f}" for whole, rest in parts.values()]
        rows.append([f"{count}", f"{spent['request']:.0f}", *cells, f"{saved / spent['request']:.0%}"])
    columns = ["candidates", "a request", "encoder, with / without", "scorer, with / without", "the path's share"]
    title = f"microseconds, medians of {SAMPLE} test lists of Beauty, one thread, in turns"
    notes = [
        "a request: all of the model's part, the look-up of pairs and the softmax included, no history kept; where the "
        "core computes the student without onnxruntime, both cost less",
        "where a history is kept, a request runs no encoder; what the path is worth, student.quality says",
    ]
    table = {"title": title, "columns": columns, "rows": rows}
    return Record("student.path", "What the path likelihood costs a request", "make student-path", [], [table], notes)


def ready() -> bool:
    """Whether Beauty's bundle is there."""
    return (RUN / "export").is_dir()


def measured() -> Record:
    """Every slate size, as one record. Raises FileNotFoundError without a bundle."""
    folder = RUN / "export"
    if not ready():
        raise FileNotFoundError(f"{folder.relative_to(ROOT)} is not there: make beauty")
    bundle = Bundle.load(folder)
    model = SplitModel(bundle)
    return path_record({count: measure(bundle, model, count) for count in SLATES})


def main() -> None:
    """Measure and store the record."""
    print(store(measured()).relative_to(ROOT))


if __name__ == "__main__":
    main()
