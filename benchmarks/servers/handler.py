"""What every other server does with a request: the same work as ours, in Python around onnxruntime.

Bytes of a `RerankRequest` to bytes of a `RerankResponse`. It takes our codebook, trie and ranking, which are in C++,
and leaves our checks of requests out, so that the servers are compared, not what they are given to do. It needs NumPy,
onnxruntime and protobuf.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gr2.decoding import CandidateTrie, Codebook
from gr2.features import candidate_features
from gr2.v1 import reranker_pb2

__all__ = ["Handler"]


class Handler:
    """The model of the bundle in the folder $GR2_BUNDLE; `answer` is safe to call from many threads."""

    def __init__(self) -> None:
        folder = Path(os.environ["GR2_BUNDLE"])
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self._model = manifest["model"]
        self._codebook = Codebook(str(folder / "codebook.bin"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._taken = {item.name for item in self._session.get_inputs()}

    def answer(self, data: bytes) -> bytes:
        """The response's bytes."""
        request = reranker_pb2.RerankRequest.FromString(data)
        candidates = np.array(request.candidates.ints[:], dtype=np.int64)
        past, past_known = self._codebook.lookup(np.array(request.history.ints[:], dtype=np.int64))
        codes, known = self._codebook.lookup(candidates)
        past = past[past_known][-self._model["max_history"] :]
        trie = CandidateTrie(codes, known, self._model["level_size"])
        scores = np.array(request.scores[:], dtype=np.float32) if request.scores else None
        feed = {
            "history": past.astype(np.int64),
            **{f"nodes_{depth}": trie.nodes(depth) for depth in range(1, self._model["levels"])},
            "mask": trie.mask(),
            "features": candidate_features(len(candidates), scores=scores, dense=None),
            "candidates": codes.astype(np.int64),
        }
        feed = {name: value for name, value in feed.items() if name in self._taken}
        logits, prior = self._session.run(["logits", "prior"], feed)
        order, values = trie.score(logits, prior, normalization=self._model["normalization"])
        response = reranker_pb2.RerankResponse(unknown_history=int((~past_known).sum()))
        ids, ranked = candidates.tolist(), values.tolist()
        for index in order.tolist():
            item = response.ranking.add()
            item.index, item.int_id, item.score = index, ids[index], ranked[index]
            item.status = reranker_pb2.CANDIDATE_STATUS_SCORED
        return response.SerializeToString()
