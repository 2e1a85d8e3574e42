"""The model for batches of requests: one copy up, the forward pass and the ranking on the device, the answers back.

Inputs lie in one block of memory; onnxruntime reads them and writes its outputs where torch put them (IO binding), on
the stream that torch copies and ranks on. The host waits twice for a batch: onnxruntime for that stream at the end of
its run, as is its default, and the copy of the answers to memory.

No CUDA graph is captured: onnxruntime's need fixed shapes and addresses, and a batch has six sizes (requests, history,
candidates, and nodes at each depth) whose combinations are many, each with memory of its own and a slow first run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gr2.bundle import Bundle, graph_inputs
from gr2.kernels import make_decoder
from gr2.serving.models.batch_ranking import Answers, BatchRanking
from gr2.serving.models.batcher import Batcher, BatchLimits
from gr2.serving.models.clock import Clock, DeviceClock, HostClock
from gr2.serving.models.device import Device
from gr2.serving.models.memory import MOST_OF_BATCH
from gr2.serving.models.padding import Batch, pad, split
from gr2.serving.models.query import Query, Scored
from gr2.serving.models.session import open_session

if TYPE_CHECKING:
    import torch

__all__ = ["PHASES", "DeviceModel", "Run"]

PHASES = ("pad", "upload", "model", "rank", "download")


@dataclass(frozen=True, slots=True)
class Run:
    """The orders (K,) and scores (K,) of a batch's requests, or their errors, and the nanoseconds of each of PHASES."""

    answers: Answers
    phases: tuple[int, ...]


class DeviceModel:
    """A bundle's model for batches on a device. Thread-safe; `close` ends its thread.

    `most_bytes` bounds the memory of a batch, which is split where it would take more (`gr2.serving.models.memory`). On
    "cpu" the same code runs without a GPU, and slower than `HostModel`: that is for tests.
    """

    def __init__(self, bundle: Bundle, device: Device = "cuda", *, limits: BatchLimits, threads: int = 1) -> None:
        """Raises BundleError if the graph is not what the manifest describes, or onnxruntime does not get the GPU."""
        import torch

        self.most_bytes = MOST_OF_BATCH
        self._torch, self._spec = torch, bundle.manifest.model
        self._device = torch.device(device, 0)
        self._stream = torch.cuda.Stream(self._device) if device == "cuda" else None  # type: ignore[no-untyped-call]
        options = None if self._stream is None else _provider_options(self._stream.cuda_stream)
        self._session = open_session(bundle, threads, batched=True, cuda=options)
        self._names = list(graph_inputs(self._spec.levels, candidates=self._spec.takes_candidates, batched=True))
        where = device if self._stream is None else str(self._device)
        self._ranking = BatchRanking(self._spec, make_decoder(where))
        self._batcher: Batcher[Query, Scored] = Batcher(self._scored, limits)

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:
        """The candidates ranked, in a batch with other callers' requests; the wait for it counts as the model's time.

        Raises UnrankableError if the model gives a value that is not finite, OverloadError if too many requests wait,
        and CancelledError if `wanted()` was false when the batch began.
        """
        start = perf_counter_ns()
        scored = self._batcher.submit(query, wanted).result()
        return Scored(scored.order, scored.scores, (start, scored.stamps[1]))

    def close(self) -> None:
        """Answer what was asked, and end."""
        self._batcher.close()
        # Thread and model refer to each other: without this, the GPU's memory would wait for the collector.
        self._session = None

    def run(self, queries: list[Query]) -> Run:
        """The answers to a batch: an UnrankableError where the model gives a request a value that is not finite."""
        answers: list[Any] = [None] * len(queries)
        total = np.zeros(len(PHASES), dtype=np.int64)
        for places in split(queries, self._spec, self.most_bytes):
            if self._stream is None:
                part, phases = self._run_part([queries[place] for place in places])
            else:
                with self._torch.cuda.stream(self._stream):
                    part, phases = self._run_part([queries[place] for place in places])
            total += phases
            for place, answer in zip(places, part, strict=True):
                answers[place] = answer
        return Run(answers, tuple(total.tolist()))

    def _scored(self, queries: list[Query]) -> list[Scored | Exception]:
        start = perf_counter_ns()
        run = self.run(queries)
        end = perf_counter_ns()
        ranked = sum(run.phases[PHASES.index("rank") :])
        stamps = (start, end - ranked)
        return [answer if isinstance(answer, Exception) else Scored(*answer, stamps) for answer in run.answers]

    def _run_part(self, queries: list[Query]) -> tuple[Answers, list[int]]:
        clock = self._clock()
        start = perf_counter_ns()
        spec = self._spec
        batch = pad(queries, self._allocate, max_history=spec.max_history, candidates=spec.takes_candidates)
        padded = perf_counter_ns() - start
        clock.mark()
        block = self._torch.from_numpy(batch.block).to(self._device, non_blocking=True)
        clock.mark()
        logits, prior = self._forward(batch, block)
        clock.mark()
        answers = self._ranking(queries, batch, logits, prior, clock)
        return answers, [padded, *clock.durations()]

    def _forward(self, batch: Batch, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, n, V) and prior (B, K) on the device, from the inputs that lie in `block` there."""
        torch, spec = self._torch, self._spec
        requests, candidates = batch.known.shape
        outputs = {
            "logits": torch.empty((requests, batch.rows, spec.level_size), dtype=torch.float32, device=self._device),
            "prior": torch.empty((requests, candidates), dtype=torch.float32, device=self._device),
        }
        binding = self._session.io_binding()
        where = (self._device.type, self._device.index)
        for name in self._names:
            array = batch.arrays[name]
            address = block.data_ptr() + batch.offsets[name]
            binding.bind_input(name, *where, array.dtype.type, array.shape, address)
        for name, tensor in outputs.items():
            binding.bind_output(name, *where, np.float32, tuple(tensor.shape), tensor.data_ptr())
        self._session.run_with_iobinding(binding)
        return outputs["logits"], outputs["prior"]

    def _allocate(self, size: int) -> NDArray[np.uint8]:
        # Only from pinned memory does a copy to the device not wait.
        block: NDArray[np.uint8] = self._torch.empty(
            size, dtype=self._torch.uint8, pin_memory=self._stream is not None
        ).numpy()
        return block

    def _clock(self) -> Clock:
        return HostClock() if self._stream is None else DeviceClock(self._stream)


def _provider_options(stream: int) -> dict[str, str]:
    return {
        "device_id": "0",
        "user_compute_stream": str(stream),
        # Products in 10-bit mantissas would reorder candidates whose scores are close.
        "use_tf32": "0",
        # The memory of a large batch is not doubled for the next one.
        "arena_extend_strategy": "kSameAsRequested",
    }
