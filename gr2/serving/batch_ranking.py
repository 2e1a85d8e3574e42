"""The ranking of a batch from its logits: on the GPU that they lie on, or in memory by the C++ core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import ModelSpec
from gr2.serving.clock import Clock
from gr2.serving.padding import Batch
from gr2.serving.query import Query

if TYPE_CHECKING:
    import torch

__all__ = ["BatchRanking", "DeviceRanking", "HostRanking"]

Answers = list[tuple[NDArray[np.int32], NDArray[np.float32]]]


class BatchRanking(Protocol):
    """Ranks the requests of a batch."""

    def __call__(
        self, queries: Sequence[Query], batch: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock, /
    ) -> Answers:
        """The order (K,) and scores (K,) of each request from `logits` (B, n, V) and `prior` (B, K).

        Marks the clock when the ranking is done and when it is in memory. Raises ValueError on a value that is not
        finite.
        """


class HostRanking:
    """By CandidateTrie, request by request, from logits in memory."""

    def __init__(self, model: ModelSpec) -> None:
        self._normalization = model.normalization

    def __call__(
        self, queries: Sequence[Query], _: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock
    ) -> Answers:
        """See BatchRanking."""
        table, extra = logits.numpy(), prior.numpy()
        answers = [
            query.trie.score(
                table[place, : query.trie.node_count],
                extra[place, : len(query.codes)],
                normalization=self._normalization,
            )
            for place, query in enumerate(queries)
        ]
        clock.mark()
        clock.mark()
        return answers


class DeviceRanking:
    """By the Triton kernel, all requests in one launch; only orders and scores leave the GPU."""

    def __init__(self, model: ModelSpec, device: torch.device) -> None:
        from gr2.kernels.device_decoder import DeviceDecoder

        self._model, self._decoder = model, DeviceDecoder(device)

    def __call__(
        self, queries: Sequence[Query], batch: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock
    ) -> Answers:
        """See BatchRanking."""
        import torch

        from gr2.kernels import CandidateTables

        tables = CandidateTables.build(batch.codes, batch.known, self._model.level_size, nodes=batch.rows)
        candidates = self._decoder.candidates(tables)
        order, scores = candidates.score(logits, prior, normalization=self._model.normalization)
        clock.mark()
        # As one tensor: each copy to memory is a wait.
        found = [order, scores.view(torch.int32), candidates.faulty().int()[:, None]]
        orders, values, faulty = np.split(torch.cat(found, dim=1).cpu().numpy(), [tables.candidates, -1], axis=1)
        clock.mark()
        if faulty.any():
            raise ValueError(f"logits or prior of request {int(faulty.argmax())} are NaN or infinite")
        numbers = values.view(np.float32)
        sizes = [len(query.codes) for query in queries]
        return [(orders[place, :size], numbers[place, :size]) for place, size in enumerate(sizes)]
