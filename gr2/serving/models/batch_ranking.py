"""The ranking of a batch from its logits, where these are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import ModelSpec
from gr2.kernels import CandidateTables, Decoder
from gr2.serving.models.clock import Clock
from gr2.serving.models.padding import Batch
from gr2.serving.models.query import Query, UnrankableError

if TYPE_CHECKING:
    import torch

__all__ = ["Answers", "BatchRanking"]

Answers = list[tuple[NDArray[np.int32], NDArray[np.float32]] | UnrankableError]


class BatchRanking:
    """All requests of a batch by one decoder: the Triton kernel in one launch, or the C++ core.

    A GPU is waited for once, for the copy of orders and scores; nothing else leaves it. The tables are built after the
    forward pass rather than beside it, as onnxruntime has then waited for that.
    """

    def __init__(self, model: ModelSpec, decoder: Decoder) -> None:
        """`decoder` is that of the device on which the logits lie."""
        self._model, self._decoder = model, decoder

    def __call__(
        self, queries: Sequence[Query], batch: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock
    ) -> Answers:
        """The order (K,) and scores (K,) of each request from `logits` (B, n, V) and `prior` (B, K).

        A request with a value that is not finite gets an error in their place. Marks the clock when the ranking is done
        and when it is in memory.
        """
        tables = CandidateTables.build(batch.codes, batch.known, self._model.level_size, nodes=batch.rows)
        candidates = self._decoder.candidates(tables)
        candidates.score(logits, prior, normalization=self._model.normalization)
        clock.mark()
        orders, scores, faulty = candidates.fetch()
        clock.mark()
        return [
            UnrankableError(f"{'prior' if fault[1] else 'logits'} are NaN or infinite", in_prior=bool(fault[1]))
            if fault.any()
            else (orders[place, : len(query.codes)], scores[place, : len(query.codes)])
            for place, (query, fault) in enumerate(zip(queries, faulty.T, strict=True))
        ]
