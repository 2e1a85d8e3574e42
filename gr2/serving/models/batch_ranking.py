"""The ranking of a batch from its logits: on the GPU that they lie on, or in memory by the C++ core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import ModelSpec
from gr2.serving.models.clock import Clock
from gr2.serving.models.padding import Batch
from gr2.serving.models.query import Query, UnrankableError

if TYPE_CHECKING:
    import torch

__all__ = ["Answers", "BatchRanking", "DeviceRanking", "HostRanking"]

Answers = list[tuple[NDArray[np.int32], NDArray[np.float32]] | UnrankableError]


class BatchRanking(Protocol):
    """Ranks the requests of a batch."""

    def __call__(
        self, queries: Sequence[Query], batch: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock, /
    ) -> Answers:
        """The order (K,) and scores (K,) of each request from `logits` (B, n, V) and `prior` (B, K).

        A request with a value that is not finite gets an error in their place. Marks the clock when the ranking is done
        and when it is in memory.
        """


class HostRanking:
    """By CandidateTrie, request by request, from logits in memory."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    def __call__(
        self, queries: Sequence[Query], _: Batch, logits: torch.Tensor, prior: torch.Tensor, clock: Clock
    ) -> Answers:
        """See BatchRanking."""
        table, extra = logits.numpy(), prior.numpy()
        answers = [
            self._rank(query, table[place, : query.trie.node_count], extra[place, : len(query.codes)])
            for place, query in enumerate(queries)
        ]
        clock.mark()
        clock.mark()
        return answers

    def _rank(
        self, query: Query, logits: NDArray[np.float32], prior: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]] | UnrankableError:
        try:
            return query.rank(self._model, logits, prior)
        except UnrankableError as error:
            return error


class DeviceRanking:
    """By the Triton kernel, all requests in one launch; only orders and scores leave the GPU.

    It waits for the device once, for their copy. The tables are built after the forward pass rather than beside it, as
    onnxruntime has then waited for that.
    """

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
        found = [order, scores.view(torch.int32), candidates.faulty().int().T]
        orders, values, faulty = np.split(torch.cat(found, dim=1).cpu().numpy(), [tables.candidates, -2], axis=1)
        clock.mark()
        numbers = values.view(np.float32)
        return [
            UnrankableError(f"{'prior' if fault[1] else 'logits'} are NaN or infinite", in_prior=bool(fault[1]))
            if fault.any()
            else (orders[place, : len(query.codes)], numbers[place, : len(query.codes)])
            for place, (query, fault) in enumerate(zip(queries, faulty, strict=True))
        ]
