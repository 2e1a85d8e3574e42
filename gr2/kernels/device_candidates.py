"""The candidates of a batch of requests on a GPU: scored from logits that lie there, or generated one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.kernels.arguments import check_mode, check_normalization, seed_array
from gr2.kernels.candidates import CandidateTables
from gr2.kernels.rank_step import STATE, rank_shape, rank_step_kernel
from gr2.kernels.tensors import NO_FAULT, Launch, as_logits, check_grid, launch, raise_fault, rows_apart
from gr2.kernels.trie_score import score_shape, trie_score_kernel

__all__ = ["DeviceCandidates", "DeviceGeneration"]

TABLES = ("positions", "path_nodes", "path_codes", "starts", "first_child", "child_codes")


def _arrays(tables: CandidateTables) -> dict[str, NDArray[np.int16]]:
    """What goes to the device; `counts` as pairs of int16."""
    return {"counts": tables.counts.view(np.int16), **{name: getattr(tables, name) for name in TABLES}}


class DeviceCandidates:
    """The tries of B requests with at most K candidates and n inner nodes. All memory is allocated here.

    Nothing waits for the device but `check` and what returns Python values: everything else can be captured in a CUDA
    graph, which `load` then serves other requests of the same shape with.
    """

    def __init__(self, tables: CandidateTables, device: str | torch.device, *, launch: Launch = launch) -> None:
        """The tables of the first requests, at most 65,535; later ones are of their shape. Raises ValueError."""
        check_grid("requests", len(tables.counts))
        self.device, self._launch = torch.device(device), launch
        self.level_size, self.levels = tables.level_size, tables.path_codes.shape[1]
        self.requests, self.candidates, self.nodes = len(tables.counts), tables.candidates, tables.nodes
        self._shape = tables.shape
        arrays = _arrays(tables)
        # Each table begins at 16 bytes.
        self._starts = np.cumsum([0, *((array.size + 7) // 8 * 8 for array in arrays.values())]).tolist()
        self._memory = torch.empty(self._starts[-1], dtype=torch.int16, device=self.device)
        self._tables = {
            name: self._memory[start : start + array.size].view(array.shape)
            for (name, array), start in zip(arrays.items(), self._starts, strict=False)
        }
        self._counts = self._tables.pop("counts").view(torch.int32)  # (B, 2)
        shape = (self.requests, self.candidates)
        self._score_shape = score_shape(self.level_size, self.levels, self.candidates)
        self._denominators = torch.empty((self.requests, self.nodes), dtype=torch.float64, device=self.device)
        self._keys = torch.empty((self.requests, self._score_shape["LANES"]), dtype=torch.int64, device=self.device)
        self._arrivals = torch.zeros(self.requests, dtype=torch.int32, device=self.device)
        self._fault = torch.full((2, self.requests), NO_FAULT, dtype=torch.int64, device=self.device)
        self.order = torch.empty(shape, dtype=torch.int32, device=self.device)
        self.scores = torch.empty(shape, dtype=torch.float32, device=self.device)
        self.load(tables)

    def load(self, tables: CandidateTables) -> None:
        """Take other requests of the same shape. Raises ValueError on another one."""
        tables.check_shape(self._shape)
        arrays = _arrays(tables)
        # From pinned memory, a copy waits for nothing that the device has to do before.
        host = torch.zeros(self._starts[-1], dtype=torch.int16, pin_memory=self.device.type == "cuda")
        for array, start in zip(arrays.values(), self._starts, strict=False):
            host.numpy()[start : start + array.size] = array.ravel()
        self._memory.copy_(host, non_blocking=True)

    def score(
        self, logits: Any, prior: Any = None, *, normalization: Literal["raw", "local"] = "raw"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Order (B, K) int32, best first, and scores (B, K) float32, as CandidateTrie.score defines them.

        From `logits` (B, n, V) in float32, float16 or bfloat16 and `prior` (B, K) float32, tensors of this device or
        what has `__dlpack__`. The result is overwritten by the next call. Whether a value was NaN or infinite, `check`
        says. Raises TypeError and ValueError on other dtypes, shapes and devices.
        """
        check_normalization(normalization)
        rows = as_logits(logits, (self.requests, self.nodes, self.level_size), self.device)
        extra = self.scores
        if prior is not None:
            extra = as_logits(prior, (self.requests, self.candidates), self.device, "prior", [torch.float32])
        tables, sizes = self._tables, self._score_shape
        self._launch(
            trie_score_kernel,
            (-(-self.nodes // sizes["ROWS"]), self.requests),
            rows,
            rows_apart(rows),
            extra.contiguous(),
            self._counts,
            tables["path_nodes"],
            tables["path_codes"],
            tables["positions"],
            tables["first_child"],
            tables["child_codes"],
            self._denominators,
            self._keys,
            self._arrivals,
            self._fault,
            self.order,
            self.scores,
            self.nodes,
            self.candidates,
            LOCAL=normalization == "local",
            PRIOR=prior is not None,
            **sizes,
        )
        return self.order, self.scores

    def faulty(self) -> torch.Tensor:
        """(2, B) bool on the device: requests in which a logit, or a prior, was not finite since the last `check`."""
        return self._fault != NO_FAULT

    def fetch(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.bool_]]:
        """`order` (B, K), `scores` (B, K) and what `faulty` says, in memory; waits for the device once."""
        # As one tensor: each copy to memory is a wait.
        found = [self.order, self.scores.view(torch.int32), self.faulty().int().T]
        order, bits, faulty = np.split(torch.cat(found, dim=1).cpu().numpy(), [self.candidates, -2], axis=1)
        return order, bits.view(np.float32), faulty.T != 0

    def check(self) -> None:
        """Wait for the device. Raises ValueError that names a value of the calls of `score` that was not finite."""
        rows, places = self._fault.tolist()
        self._fault.fill_(NO_FAULT)
        for request, (row, place) in enumerate(zip(rows, places, strict=True)):
            if row != NO_FAULT:
                where = f"row {row >> 16} column {row & 0xFFFF}"
                raise ValueError(f"request {request}: logits {where} is NaN or infinite")
            if place != NO_FAULT:
                raise ValueError(f"request {request}: prior row {place} is NaN or infinite")

    def generate(
        self,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> DeviceGeneration:
        """A generation that is at its first decisions; arguments and errors as those of CandidateDecoder."""
        check_mode(mode)
        if not 1e-3 <= temperature <= 1e3:
            raise ValueError(f"temperature must be 0.001 to 1000, got {temperature}")
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n must be at least 1, got {top_n}")
        most = self.candidates if top_n is None else min(top_n, self.candidates)
        generation = DeviceGeneration(self, mode == "sample", temperature, most)
        generation.reset(seeds)
        return generation


class DeviceGeneration:
    """The generation of a batch of requests: a CandidateDecoder each, all of them stepped in one launch.

    `codes` (B, K * L), `forced`, `local` and `raw` are the record of every code, `lengths` (B,) says how many there
    are and `fresh` (B,) how many there were before the last decision: the codes between are what the context must take
    in before the next. `node` (B,) is where the next decision is due, -1 where none is, `emitted` (B,) how many of
    `order` (B, K) are written. All are tensors of the device, overwritten by `push`.
    """

    def __init__(self, candidates: DeviceCandidates, sample: bool, temperature: float, most: int) -> None:
        """Use DeviceCandidates.generate."""
        self._of, self._sample = candidates, sample
        requests, size, device = candidates.requests, candidates.candidates, candidates.device
        self._cum = torch.empty((requests, size + 1), dtype=torch.int16, device=device)
        self._state = torch.zeros((requests, STATE), dtype=torch.int32, device=device)
        self._seeds = torch.zeros(requests, dtype=torch.int64, device=device)
        self._temperatures = torch.full((requests,), temperature, dtype=torch.float64, device=device)
        self._most = torch.full((requests,), most, dtype=torch.int32, device=device)
        self._fault = torch.full((1,), NO_FAULT, dtype=torch.int64, device=device)
        self._unranked = torch.full((1,), NO_FAULT, dtype=torch.int64, device=device)
        places = (requests, size * candidates.levels)
        self.order = torch.zeros((requests, size), dtype=torch.int32, device=device)
        self.codes = torch.zeros(places, dtype=torch.int16, device=device)
        self.forced = torch.zeros(places, dtype=torch.int8, device=device)
        self.local = torch.zeros(places, dtype=torch.float32, device=device)
        self.raw = torch.zeros(places, dtype=torch.float32, device=device)
        self.node = torch.empty(requests, dtype=torch.int32, device=device)
        self._chosen = torch.full((requests,), -1, dtype=torch.int32, device=device)
        self._shape = rank_shape(candidates.level_size, candidates.levels, size)
        tables = candidates._tables
        self._arguments = (
            candidates._counts,
            *(tables[name] for name in ("path_nodes", "path_codes", "starts", "positions")),
            self._cum,
            self._state,
            self._seeds,
            self._temperatures,
            self._most,
            self.order,
            self.codes,
            self.forced,
            self.local,
            self.raw,
            self.node,
            self._chosen,
            self._fault,
            size,
        )

    @property
    def emitted(self) -> torch.Tensor:
        """(B,) int32."""
        return self._state[:, 3]

    @property
    def lengths(self) -> torch.Tensor:
        """(B,) int32."""
        return self._state[:, 4]

    @property
    def fresh(self) -> torch.Tensor:
        """(B,) int32."""
        return self._state[:, 5]

    def reset(self, seeds: Sequence[int] | None = None) -> None:
        """Back to the start, with other `seeds`, one for each request, or the same."""
        if seeds is not None:
            self._seeds.copy_(torch.from_numpy(seed_array(seeds, self._of.requests).view(np.int64)))
        self._step(self.local, 0, start=True)

    def push(self, logits: Any) -> torch.Tensor:
        """The codes (B,) int32 that were chosen by `logits` (B, V), -1 where none was due or all were masked.

        float32, float16 or bfloat16, a tensor of this device or what has `__dlpack__`. A request with a NaN or +inf
        stays where it is, and `check` names it. Raises TypeError and ValueError on other dtypes, shapes and devices.
        """
        rows = as_logits(logits, (self._of.requests, self._of.level_size), self._of.device)
        self._step(rows, rows_apart(rows), start=False)
        return self._chosen

    def _step(self, logits: torch.Tensor, apart: int, *, start: bool) -> None:
        self._of._launch(
            rank_step_kernel,
            (self._of.requests,),
            logits,
            apart,
            *self._arguments,
            START=start,
            SAMPLE=self._sample and not start,
            enable_fp_fusion=False,
            **self._shape,
        )

    def check(self) -> None:
        """Wait for the device. Raises ValueError that names a logit that was NaN or +inf, or a score that was NaN."""
        fault, place = int(self._fault), int(self._unranked)
        self._fault.fill_(NO_FAULT)
        self._unranked.fill_(NO_FAULT)
        raise_fault(fault)
        if place != NO_FAULT:
            request, row = divmod(place, self._of.candidates)
            raise ValueError(f"request {request}: scores row {row} is NaN")

    def ranking(self, scores: torch.Tensor | None = None) -> torch.Tensor:
        """(B, K) int32: the emitted candidates, the other known ones by `scores` (B, K), and then the unknown.

        Ties, and without scores all, are in incoming order. Nothing waits for the device; that a score was NaN, `check`
        says. Raises TypeError and ValueError on other dtypes than float32, other shapes and devices.
        """
        candidates = self._of
        size, device = candidates.candidates, candidates.device
        lanes = torch.arange(size, device=device)
        rank = torch.full((candidates.requests, size), 2 * size, dtype=torch.int64, device=device) + lanes
        known = lanes < candidates._counts[:, 1:]
        positions = candidates._tables["positions"].long()
        likely = self._likely(scores)
        by_score = torch.argsort(likely, dim=1, descending=True, stable=True)
        places = torch.empty_like(by_score).scatter_(1, by_score, lanes.expand_as(by_score))
        rank = rank.scatter(1, positions, torch.where(known, size + places.gather(1, positions), 2 * size + positions))
        written = lanes < self.emitted[:, None]
        # What was not emitted is scattered to a column that is cut off.
        wide = torch.cat([rank, rank[:, :1]], dim=1)
        wide.scatter_(1, torch.where(written, self.order.long(), size), lanes.expand_as(rank))
        return torch.argsort(wide[:, :size], dim=1).int()

    def _likely(self, scores: Any) -> torch.Tensor:
        """(B, K) float32 to rank by; the first NaN is noted."""
        candidates = self._of
        if scores is None:
            return torch.zeros_like(candidates.scores)
        shape = (candidates.requests, candidates.candidates)
        likely = as_logits(scores, shape, candidates.device, "scores", [torch.float32])
        places = torch.arange(likely.numel(), device=candidates.device)
        bad = torch.where(likely.isnan().flatten(), places, NO_FAULT)
        torch.minimum(self._unranked, bad.amin(dim=0, keepdim=True), out=self._unranked)
        return likely
