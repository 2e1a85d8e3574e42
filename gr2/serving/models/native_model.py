"""The model run by the C++ core, which answers requests from bytes to bytes without Python.

The core loads onnxruntime by itself, from the library in its wheel. A process that imports the package beside it has
the library twice, which works but takes memory.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gr2._core import (
    Admission,
    Call,
    OnnxError,
    OnnxRuntime,
    ParsedRequest,
    RequestEngine,
    ServiceTimes,
    StartedRequest,
)
from gr2.bundle import Bundle
from gr2.decoding import Codebook
from gr2.errors import BundleError, Gr2Error
from gr2.features import candidate_features
from gr2.serving.models.memory import ATTENTION, CAUSAL, EVIDENCE, HIDDEN, LARGE, MOST_OF_REQUEST
from gr2.serving.models.query import Query, Scored, UnrankableError
from gr2.serving.models.session import differences, pair_differences

__all__ = ["NativeModel", "find_library", "native_runtime"]

logger = logging.getLogger(__name__)

TYPES = {1: "tensor(float)", 7: "tensor(int64)"}


def find_library() -> Path:
    """The shared library of the installed onnxruntime, which is not imported. Raises Gr2Error if there is none."""
    spec = find_spec("onnxruntime")
    folders = [] if spec is None else [Path(folder) / "capi" for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.glob("libonnxruntime.so*"))
    if not found:
        where = ", ".join(map(str, folders)) or "no package onnxruntime"
        raise Gr2Error(f"libonnxruntime.so not found: {where}; install onnxruntime")
    return found[-1]


@functools.cache
def native_runtime() -> OnnxRuntime | None:
    """The library that runs models in the core; None, and one line in the log that says why, if it cannot be used."""
    try:
        return OnnxRuntime(find_library())
    except (Gr2Error, OnnxError) as error:
        logger.warning("requests are answered in Python, which is slower: %s", error)
        return None


class Port(NamedTuple):
    """An input or output of a graph, as onnxruntime's package describes it."""

    name: str
    type: str
    shape: list[int | None]


class Graph:
    """The inputs and outputs of a graph, as a session of onnxruntime's package tells them."""

    def __init__(self, ports: Iterable[Sequence[tuple[str, int, list[int]]]]) -> None:
        self._inputs, self._outputs = map(_ports, ports)

    def get_inputs(self) -> list[Port]:
        """The inputs."""
        return self._inputs

    def get_outputs(self) -> list[Port]:
        """The outputs."""
        return self._outputs


class NativeModel:
    """A bundle's model on the CPU, run by the core: its weights, the encoder and the scorer, or the whole graph.

    Thread-safe.

    `capacity` bounds the bytes of encoded histories, which are kept if the model `splits`.
    """

    def __init__(
        self, bundle: Bundle, codebook: Codebook, runtime: OnnxRuntime, *, threads: int = 1, cache_bytes: int = 0
    ) -> None:
        """Raises BundleError if the graphs are not what the manifest describes."""
        self.capacity = cache_bytes
        manifest = bundle.manifest
        model, features, limits = manifest.model, manifest.features, manifest.limits
        ranks = -np.arange(limits.max_candidates, dtype=np.float32)
        pair, student = bundle.graph_pair(), bundle.student()
        encoder, scorer = (None, None) if student else pair or (None, bundle.graph)
        self.splits = pair is not None
        try:
            self._engine = RequestEngine(
                runtime,
                b"" if scorer is None else bundle.read_graph(scorer),
                b"" if encoder is None else bundle.read_graph(encoder),
                codebook,
                None if pair is None else bundle.memory(),
                student,
                max_history=model.max_history,
                columns=features.columns,
                normalization=model.normalization,
                takes_candidates=model.takes_candidates,
                most_history=limits.max_history,
                most_candidates=limits.max_candidates,
                feature_width=features.width,
                uses_scores=features.scores,
                rank_features=candidate_features(limits.max_candidates, scores=ranks, dense=None),
                version=bundle.version,
                memory=(ATTENTION, CAUSAL, HIDDEN * model.dim, EVIDENCE, LARGE, MOST_OF_REQUEST),
                one_layer=model.layers == 1,
                tokens=model.tokens,
                threads=threads,
                cache_bytes=cache_bytes,
            )
        except OnnxError as error:
            raise BundleError(f"{scorer}: onnxruntime cannot load it: {error}") from error
        if student is not None:
            return
        for path, wrong in zip(pair or (scorer,), self._differences(bundle), strict=True):
            if wrong:
                raise BundleError(f"{path}: not the graph that the manifest describes: {'; '.join(wrong)}")

    def counts(self) -> dict[str, int]:
        """Of the encoded histories, as `PrefixCache.counts`."""
        return self._engine.cache_counts()

    def score(self, query: Query, wanted: Callable[[], bool] | None = None) -> Scored:  # noqa: ARG002
        """The candidates ranked, at once. Raises UnrankableError if the model gives a value that is not finite."""
        try:
            order, scores, *stamps = self._engine.score(query.past, query.codes, query.known, query.features)
        except ValueError as error:
            raise UnrankableError(str(error), in_prior=str(error).startswith("prior")) from error
        return Scored(order, scores, (stamps[0], stamps[1]))

    def start(
        self,
        request: ParsedRequest,
        admission: Admission,
        call: Call,
        seconds: float | None = None,
        times: ServiceTimes | None = None,
    ) -> StartedRequest | tuple[int, bytes]:
        """A request that has `seconds` left and now a place in `admission`, where its turn will come.

        Or, at once, its outcome, and the serialised reply or the reason why there is none. `times` say how long such
        requests take.
        """
        return self._engine.start(request, admission, call, seconds=seconds, times=times)

    def close(self) -> None:
        """Forget the histories."""
        self._engine.clear_cache()

    def _differences(self, bundle: Bundle) -> tuple[list[str], ...]:
        """What differs between each graph and the manifest's contract."""
        ports, encoder = self._engine.scorer, self._engine.encoder
        assert ports is not None
        scorer = Graph(ports)
        if encoder is None:
            return (differences(scorer, bundle.manifest),)
        return pair_differences(Graph(encoder), scorer)


def _ports(found: Sequence[tuple[str, int, list[int]]]) -> list[Port]:
    return [
        Port(name, TYPES.get(kind, f"tensor type {kind}"), [None if extent < 0 else extent for extent in shape])
        for name, kind, shape in found
    ]
