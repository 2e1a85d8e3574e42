"""Beam search over a catalogue from logits that lie on a GPU."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch

from gr2.kernels.arguments import check_normalization
from gr2.kernels.constrained_step import constrained_step_kernel, step_shape
from gr2.kernels.device_catalog import DeviceCatalog, DeviceFilter
from gr2.kernels.leaf_items import leaf_items_kernel, leaf_shape
from gr2.kernels.tensors import NO_FAULT, Launch, as_logits, capturing, launch, raise_fault, rows_apart

__all__ = ["DeviceRetriever"]

MAX_BEAMS = 1024


class DeviceRetriever:
    """What gr2.decoding.Retriever is, on a GPU: one launch a level, and another for the items.

    All memory is allocated by `start`, and nothing waits for the device but `check`, so that whole searches can be
    captured in a CUDA graph: what `step` and `finish` return is overwritten by the next search. A graph reads the
    memory that was there when it was captured: from then on catalogue, batch and filters are those of then, and only
    which of the filters a search has may change, by `start` before a replay. Not thread-safe.
    """

    def __init__(self, beams: int, *, normalization: Literal["raw", "local"] = "raw", launch: Launch = launch) -> None:
        """`beams`, M, is 1 to 1024. Raises ValueError."""
        check_normalization(normalization)
        if not 1 <= operator.index(beams) <= MAX_BEAMS:
            raise ValueError(f"beams must be 1 to {MAX_BEAMS} on a GPU, got {beams}")
        self.beams, self._local, self._launch = beams, normalization == "local", launch
        self.batch, self.level = 0, 0
        self._catalog: DeviceCatalog | None = None
        self._filters: list[DeviceFilter] = []
        self._captured = False

    def start(
        self,
        catalog: DeviceCatalog,
        batch: int = 1,
        *,
        filters: DeviceFilter | Sequence[DeviceFilter | None] | None = None,
    ) -> None:
        """Begin `batch` searches; `filters` is one for all, or one for each.

        Memory is kept where catalogue, batch and filters are those of before. Raises TypeError and ValueError on what
        is no filter of this catalogue, and RuntimeError if they are not what a CUDA graph was captured with.
        """
        if operator.index(batch) < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        each = list(filters) if isinstance(filters, Sequence) else [filters]
        if len(each) not in {1, batch}:
            raise ValueError(f"filters must be one or {batch}, one for each of the batch, got {len(each)}")
        for number, one in enumerate(each):
            if not isinstance(one, DeviceFilter | None):
                raise TypeError(f"filter {number} must be None or this decoder's, got {type(one).__name__}")
            if one is not None and one.catalog is not catalog:
                raise ValueError(f"filter {number} is of another catalogue")
        other = catalog is not self._catalog or batch != self.batch
        distinct = list({id(one): one for one in each if one is not None}.values())
        if self._captured:
            if other or {*map(id, distinct)} - {*map(id, self._filters)}:
                raise RuntimeError(
                    "a CUDA graph was captured of this retriever with another catalogue, batch or filters, which its "
                    "replays would still read: capture another graph of another retriever"
                )
            distinct = self._filters
        self.level = 0
        if other:
            self._allocate(catalog, batch)
        self._use(each, distinct)

    def _allocate(self, catalog: DeviceCatalog, batch: int) -> None:
        # Without memory for it there is no search, rather than one over the memory of the last.
        self._catalog, self._filters = None, []
        device, slots = catalog.device, (batch, self.beams)
        shapes = self._shapes = [
            step_shape(catalog.level_size, self.beams, self.beams if level else 1, catalog.widest[level])
            for level in range(catalog.levels)
        ]

        def memory(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        # Of each depth, so that a beam's path can be read back.
        self._nodes = torch.full((catalog.levels + 1, *slots), -1, dtype=torch.int32, device=device)
        self._nodes[0, :, 0] = 0
        self._scores = torch.zeros((catalog.levels + 1, *slots), dtype=torch.float32, device=device)
        self._parents = memory(torch.int32, catalog.levels, *slots)
        self._codes = memory(torch.int32, catalog.levels, *slots)
        self._counts, self._bests = memory(torch.int32, *slots), memory(torch.int64, *slots)
        self._limits = memory(torch.int64, *slots)
        self._keys = memory(torch.int64, batch, max(_groups(shape) * shape["KEPT"] for shape in shapes))
        self._stage = memory(torch.int64, batch, max(shape["POOL"] for shape in shapes))
        self._arrivals = torch.zeros(batch, dtype=torch.int32, device=device)
        self._bounds = torch.full((batch,), NO_FAULT, dtype=torch.int64, device=device)
        self._fault = torch.full((catalog.levels,), NO_FAULT, dtype=torch.int64, device=device)
        self._items, self._item_scores = memory(torch.int64, *slots), memory(torch.float32, *slots)
        self._which = torch.full((batch,), -1, dtype=torch.int32, device=device)
        # Of each level, so that a launch from Python does not begin with making views.
        self._places = [
            (self._nodes[level], self._scores[level], self._nodes[level + 1], self._scores[level + 1])
            for level in range(catalog.levels)
        ]
        self._found = [
            (self._parents[level], self._codes[level], scores) for level, (*_, scores) in enumerate(self._places)
        ]
        self._faults = [self._fault[level : level + 1] for level in range(catalog.levels)]
        self._catalog, self.batch = catalog, batch

    def _holds(self, distinct: list[DeviceFilter]) -> bool:
        """Whether these are the filters that are laid out, in their order."""
        return len(distinct) == len(self._filters) and all(map(operator.is_, distinct, self._filters))

    def _use(self, filters: list[DeviceFilter | None], distinct: list[DeviceFilter]) -> None:
        """Lay the distinct filters of the batch one after the other."""
        numbers = {id(one): number for number, one in enumerate(distinct)}
        which = [numbers[id(one)] if one is not None else -1 for one in filters]
        if distinct or self._filters:
            self._which.copy_(torch.tensor(which * (self.batch // len(which)), dtype=torch.int32))
        if distinct and not self._holds(distinct):
            self._filters = []
            stacks = zip(*(one.edges for one in distinct), strict=True)
            self._edges = [torch.stack(stack) if len(stack) > 1 else stack[0][None] for stack in stacks]
            self._permitted = torch.stack([one.items for one in distinct])
        self._filters = distinct

    def _require_catalog(self) -> DeviceCatalog:
        if self._catalog is None:
            raise RuntimeError("the search has not been started")
        return self._catalog

    def step(self, logits: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Parents and codes, int32, and scores of the new beams, each (B, M), best first; as Retriever.step.

        From `logits` (B, M, V), (B, 1, V) before the first step, in float32, float16 or bfloat16: a tensor of this
        device, or what has `__dlpack__`. A beam with a NaN or +inf has no children, and `check` names it. Raises
        TypeError and ValueError on other dtypes, shapes and devices, RuntimeError after the last level.
        """
        catalog, level = self._require_catalog(), self.level
        if level == catalog.levels:
            raise RuntimeError("the search is over: all levels are done")
        shape = self._shapes[level]
        rows = as_logits(logits, (self.batch, shape["WIDTH"], catalog.level_size), catalog.device)
        self._captured = self._captured or capturing(catalog.device)
        permitted = self._edges[level] if self._filters else self._which
        self._launch(
            constrained_step_kernel,
            (self.batch, _groups(shape)),
            rows,
            rows_apart(rows),
            catalog.offsets[level],
            catalog.codes[level],
            permitted,
            self._which,
            permitted.stride(0),
            *self._places[level],
            *self._found[level][:2],
            self._keys,
            self._counts,
            self._limits,
            self._bests,
            self._stage,
            self._arrivals,
            self._bounds,
            self._faults[level],
            LOCAL=self._local,
            FILTERED=bool(self._filters),
            **shape,
        )
        self.level += 1
        return self._found[level]

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The M best items of each search, int64, and their scores, (B, M); -1 and -inf where there are fewer.

        Raises RuntimeError before the last level is done.
        """
        catalog = self._require_catalog()
        if self.level < catalog.levels:
            raise RuntimeError(f"the search is not over: {self.level} of {catalog.levels} levels are done")
        self._captured = self._captured or capturing(catalog.device)
        filtered = bool(self._filters)
        permitted = self._permitted if filtered else self._which
        self._launch(
            leaf_items_kernel,
            (self.batch,),
            catalog.item_offsets,
            permitted,
            self._which,
            permitted.stride(0),
            self._nodes[-1],
            self._scores[-1],
            self._items,
            self._item_scores,
            FILTERED=filtered,
            **leaf_shape(self.beams, catalog.widest_leaf, filtered=filtered),
        )
        return self._items, self._item_scores

    def check(self) -> None:
        """Wait for the device. Raises ValueError that names a logit of the searches so far that was NaN or +inf."""
        if self._catalog is None:
            return
        faults = self._fault.tolist()
        self._fault.fill_(NO_FAULT)
        for level, fault in enumerate(faults):
            raise_fault(fault, self.beams if level else 1)

    def paths(self) -> torch.Tensor:
        """(B, M, level) int32 codes on the beams' paths so far, zeros of dead ones; (B, 1, 0) before the first step."""
        device = self._require_catalog().device
        if not self.level:
            return torch.empty((self.batch, 1, 0), dtype=torch.int32, device=device)
        slots = torch.arange(self.beams, device=device).expand(self.batch, -1)
        codes: list[torch.Tensor] = []
        for level in reversed(range(self.level)):
            codes.insert(0, self._codes[level].gather(1, slots))
            slots = self._parents[level].gather(1, slots).long()
        live = self._nodes[self.level, :, :, None] >= 0
        return torch.stack(codes, dim=2) * live

    def nodes(self) -> torch.Tensor:
        """(B, M) int64, (B, 1) before the first step: the beams' nodes, breadth-first over the trie; -1 if dead."""
        catalog = self._require_catalog()
        nodes = self._nodes[self.level][:, : self.beams if self.level else 1].long()
        return torch.where(nodes >= 0, nodes + catalog.first_node(self.level), -1)


def _groups(shape: dict[str, int]) -> int:
    """The programs of a search."""
    return -(-shape["WIDTH"] // shape["ROWS"])
