"""Constrained decoding on a GPU: the kernels behind the interface of `gr2.kernels.decoder`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.decoding import CatalogTrie
from gr2.kernels.candidates import CandidateTables
from gr2.kernels.device_candidates import DeviceCandidates
from gr2.kernels.device_catalog import DeviceCatalog, DeviceFilter
from gr2.kernels.device_retriever import DeviceRetriever
from gr2.kernels.folder import use_folder_cache
from gr2.kernels.tensors import Launch, launch

__all__ = ["DeviceDecoder"]


class DeviceDecoder:
    """What runs on `device`, on torch's current stream there. `launch` starts kernels, or only compiles them."""

    def __init__(self, device: str | torch.device, *, launch: Launch = launch) -> None:
        use_folder_cache()
        self._device, self._launch = torch.device(device), launch
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self.device = str(self._device)

    def candidates(self, tables: CandidateTables) -> DeviceCandidates:
        """The tries of a batch of requests, with memory of their own, to score and to generate from."""
        return DeviceCandidates(tables, self._device, launch=self._launch)

    def score(
        self,
        logits: Any,
        prior: Any,
        tables: CandidateTables,
        *,
        normalization: Literal["raw", "local"] = "raw",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`candidates(tables).score(...)`, for whom the errors in values do not matter."""
        return self.candidates(tables).score(logits, prior, normalization=normalization)

    def retriever(self, beams: int, *, normalization: Literal["raw", "local"] = "raw") -> DeviceRetriever:
        """As Decoder.retriever."""
        return DeviceRetriever(beams, normalization=normalization, launch=self._launch)

    def catalog(self, trie: CatalogTrie) -> DeviceCatalog:
        """A copy of the trie on the device."""
        return DeviceCatalog(trie, self._device)

    def item_filter(
        self, catalog: DeviceCatalog, *, allow: NDArray[np.int64] | None = None, deny: NDArray[np.int64] | None = None
    ) -> DeviceFilter:
        """As Decoder.item_filter."""
        return DeviceFilter(catalog, allow=allow, deny=deny)
