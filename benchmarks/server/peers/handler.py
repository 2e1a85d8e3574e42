"""What every other server does with a request: the same work as ours, in Python around onnxruntime.

Bytes of a `RerankRequest` to bytes of a `RerankResponse`, of known integer items. `Handler` is what a service in Python
would be: protobuf, NumPy and onnxruntime, vectorised. `CoreHandler` takes our codebook, trie and ranking, which are in
C++. Both leave our checks of requests out: the servers are compared, not what they are given to do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.server.peers.numpy_trie import NumpyTrie
from gr2.features import candidate_features
from gr2.v1 import reranker_pb2

__all__ = ["CoreHandler", "Handler", "make_handler"]


class Handler:
    """The model of the bundle in the folder $GR2_BUNDLE; `answer` is safe to call from many threads.

    The catalogue's codes are in FOLDER.npz beside it: `ids` (N,), ascending, and `codes` (N, L).
    """

    def __init__(self) -> None:
        self.folder = Path(os.environ["GR2_BUNDLE"])
        self.model = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["model"]
        with np.load(self.folder.with_suffix(".npz")) as table:
            self._ids, self._codes = table["ids"], table["codes"].astype(np.int64)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = str(self.folder / "model.onnx")
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def answer(self, data: bytes) -> bytes:
        """The response's bytes."""
        request = reranker_pb2.RerankRequest.FromString(data)
        ids = request.candidates.ints[:]
        scores = np.array(request.scores[:], dtype=np.float32) if request.scores else None
        features = candidate_features(len(ids), scores=scores, dense=None)
        order, values = self.rank(request.history.ints[:], ids, features)
        response = reranker_pb2.RerankResponse()
        ranked = values.tolist()
        for index in order.tolist():
            item = response.ranking.add()
            item.index, item.int_id, item.score = index, ids[index], ranked[index]
            item.status = reranker_pb2.CANDIDATE_STATUS_SCORED
        return response.SerializeToString()

    def rank(
        self, history: list[int], ids: list[int], features: NDArray[np.float32]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Order and scores."""
        past, codes = self._look_up(history)[-self.model["max_history"] :], self._look_up(ids)
        trie = NumpyTrie(codes, self.model["level_size"])
        nodes = {f"nodes_{depth}": part for depth, part in enumerate(trie.nodes, 1)}
        logits, prior = self.run(
            {"history": past, **nodes, "mask": trie.mask(), "features": features, "candidates": codes}
        )
        return trie.score(logits, prior)

    def run(self, feed: dict[str, NDArray[Any]]) -> Any:
        """Logits and prior."""
        return self._session.run(["logits", "prior"], feed)

    def _look_up(self, ids: list[int]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._codes[np.searchsorted(self._ids, np.array(ids, dtype=np.int64))]
        return found


class CoreHandler(Handler):
    """The same with codebook, trie and ranking in C++, as our server has them."""

    def __init__(self) -> None:
        from gr2.decoding import Codebook

        super().__init__()
        self._codebook = Codebook(str(self.folder / "codebook.bin"))

    def rank(
        self, history: list[int], ids: list[int], features: NDArray[np.float32]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Order and scores."""
        from gr2.decoding import CandidateTrie

        past, past_known = self._codebook.lookup(np.array(history, dtype=np.int64))
        codes, known = self._codebook.lookup(np.array(ids, dtype=np.int64))
        trie = CandidateTrie(codes, known, self.model["level_size"])
        feed = {
            "history": past[past_known][-self.model["max_history"] :].astype(np.int64),
            **{f"nodes_{depth}": trie.nodes(depth) for depth in range(1, self.model["levels"])},
            "mask": trie.mask(),
            "features": features,
            "candidates": codes.astype(np.int64),
        }
        return trie.score(*self.run(feed), normalization=self.model["normalization"])


def make_handler() -> Handler:
    """The handler that $GR2_HANDLER names: numpy, the default, or core."""
    return CoreHandler() if os.environ.get("GR2_HANDLER") == "core" else Handler()
