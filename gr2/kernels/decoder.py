"""One interface to constrained decoding on the CPU and on a GPU."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.decoding import CatalogTrie, ItemFilter
from gr2.errors import ConfigError, MissingExtraError
from gr2.kernels.candidates import CandidateTables
from gr2.kernels.host import HostCandidates
from gr2.kernels.host_retriever import HostRetriever

__all__ = ["Decoder", "HostDecoder", "make_decoder"]


class Decoder(Protocol):
    """Scores, generates and retrieves where the logits are. `device` is "cpu", or a CUDA device as torch names it.

    What is returned is NumPy's on the CPU and torch's on a GPU, where nothing waits for the device but `check` and
    `fetch`: errors in the values that are scored are raised by the `check` of what `candidates` returns, on either. Of
    generations and searches, the CPU raises them at once and a GPU when it is asked to `check`.
    """

    device: str

    def candidates(self, tables: CandidateTables) -> Any:
        """The tries of a batch of requests, to `score` and to `generate` from: HostCandidates or DeviceCandidates."""
        ...

    def score(
        self,
        logits: Any,
        prior: Any,
        tables: CandidateTables,
        *,
        normalization: Literal["raw", "local"] = "raw",
    ) -> tuple[Any, Any]:
        """Order (B, K) int32, best first, and scores (B, K) float32, of a batch of requests; CandidateTrie.score each.

        From `logits` (B, n, V) and `prior` (B, K) or None.
        """
        ...

    def retriever(self, beams: int, *, normalization: Literal["raw", "local"] = "raw") -> Any:
        """A search of catalogues of this decoder: HostRetriever or DeviceRetriever."""
        ...

    def catalog(self, trie: CatalogTrie) -> Any:
        """The trie where this decoder searches."""
        ...

    def item_filter(
        self, catalog: Any, *, allow: NDArray[np.int64] | None = None, deny: NDArray[np.int64] | None = None
    ) -> Any:
        """An ItemFilter for a catalogue of this decoder."""
        ...


class HostDecoder:
    """The C++ core, request by request."""

    device = "cpu"

    def candidates(self, tables: CandidateTables) -> HostCandidates:
        """As Decoder.candidates."""
        return HostCandidates(tables)

    def score(
        self,
        logits: Any,
        prior: Any,
        tables: CandidateTables,
        *,
        normalization: Literal["raw", "local"] = "raw",
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """As Decoder.score. Raises ValueError that names the request, row and column of a value that is not finite."""
        candidates = self.candidates(tables)
        ranked = candidates.score(logits, prior, normalization=normalization)
        candidates.check()
        return ranked

    def retriever(self, beams: int, *, normalization: Literal["raw", "local"] = "raw") -> HostRetriever:
        """As Decoder.retriever."""
        return HostRetriever(beams, normalization=normalization)

    def catalog(self, trie: CatalogTrie) -> CatalogTrie:
        """The trie itself."""
        return trie

    def item_filter(
        self, catalog: CatalogTrie, *, allow: NDArray[np.int64] | None = None, deny: NDArray[np.int64] | None = None
    ) -> ItemFilter:
        """As Decoder.item_filter."""
        return ItemFilter(catalog, allow=allow, deny=deny)


def make_decoder(device: str = "cpu") -> Decoder:
    """The decoder of a device: "cpu", or "cuda" or "cuda:N", which needs the extra `gpu`.

    Raises MissingExtraError without torch and Triton, and ConfigError on a device that there is not.
    """
    if device == "cpu":
        return HostDecoder()
    try:
        import torch

        from gr2.kernels.device_decoder import DeviceDecoder
    except ImportError as error:
        raise MissingExtraError(f"decoding on {device!r}", "gpu", error) from error
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}') from error
    if chosen.type != "cuda":
        raise ConfigError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    count = torch.cuda.device_count()
    if (chosen.index or 0) >= count:
        raise ConfigError(f"device {device!r} is not there: torch {torch.__version__} sees {count} CUDA devices")
    return DeviceDecoder(chosen)
