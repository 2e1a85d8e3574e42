"""`manifest.json`: what a bundle says of its model, its codebook, its features and its limits.

Whatever a manifest says is bounded here, so that a damaged or hostile one is refused and never followed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from gr2 import config as configuration
from gr2.errors import BundleError, ConfigError
from gr2.features import SCORE_FEATURES
from gr2.graphs import Graphs

__all__ = [
    "CARD",
    "FILES",
    "MAX_CANDIDATES",
    "MAX_REQUEST_BYTES",
    "MEMORY",
    "CodebookSpec",
    "FeatureSpec",
    "Limits",
    "Manifest",
    "ModelSpec",
    "encoder_inputs",
    "graph_inputs",
    "graph_outputs",
    "scorer_inputs",
]

SCHEMA = 2
FILES = ("codebook.bin", "items.parquet")  # beside those that `Graphs` names
CARD = "README.md"  # a bundle may lack it
MEMORY = "memory.bin"  # where there are an encoder and a scorer
PROSE = ("parity", "quality", "created_by")
MAX_CANDIDATES = 1024
# What a request may hold; far above any history that is of use to a model.
MAX_HISTORY = 1 << 16
# gRPC's own bound on a message is 2 GiB.
MAX_REQUEST_BYTES = 1 << 30
# The largest value of each number. The warm-up runs a model's longest history, which takes its square in memory.
MODEL_LIMITS = {
    "levels": 8,
    "level_size": 1 << 16,
    "max_history": 4096,
    "dim": 1 << 16,
    "layers": 1024,
    "onnx_opset": 1024,
}

T = TypeVar("T")


def graph_inputs(levels: int, *, candidates: bool = False, batched: bool = False) -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of the model graph's inputs, in order.

    A model whose prior looks at the candidates' codes takes them too, (K, L), 0 for unknown items. Instead of the
    mask, the graph of a batch takes each node's parent, the root's 0, and the nodes whose logits are wanted.
    """
    rank = 2 if batched else 1
    nodes = {f"nodes_{depth}": ("int64", rank) for depth in range(1, levels)}
    sight = {"parents": ("int64", 2), "rows": ("int64", 2)} if batched else {"mask": ("float32", 2)}
    inputs = {"history": ("int64", rank + 1), **nodes, **sight, "features": ("float32", rank + 1)}
    return {**inputs, "candidates": ("int64", rank + 1)} if candidates else inputs


def encoder_inputs() -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of the encoder's inputs: codes (T, L) of the history and its rows in the memory."""
    return {"history": ("int64", 2), "past": ("int64", 1)}


def scorer_inputs() -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of what a scorer may take of a request; it gets the encoder's outputs by name, too.

    The trie's m inner nodes below the root come as `nodes` (m,), V * (depth - 1) + code, with how many there are a
    depth, `counts` (L - 1,), and `ancestors` (m, L - 1): a node's own number among the m, its parent's and so on, -1
    from the root on. `rows` (K,) are the candidates' in the memory, and `memory` (K, E) what it knows of them.
    """
    nodes = {"nodes": ("int64", 1), "counts": ("int64", 1), "ancestors": ("int64", 2)}
    known = {"memory": ("float32", 2), "rows": ("int64", 1)}
    return {**encoder_inputs(), **nodes, "features": ("float32", 2), **known, "candidates": ("int64", 2)}


def graph_outputs(*, batched: bool = False) -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of the model graph's outputs, in order."""
    rank = 2 if batched else 1
    return {"logits": ("float32", rank + 1), "prior": ("float32", rank)}


@dataclass(frozen=True)
class ModelSpec:
    """What the engine must know of `model.onnx`.

    `max_history` is how many items the model attends to, with one token each or, where the `encoding` is "code", one
    for each of their codes. `inputs` defaults to `graph_inputs` without candidates.
    """

    levels: int
    level_size: int
    max_history: int
    dim: int
    layers: int
    onnx_opset: int
    mode: Literal["score"] = "score"
    normalization: Literal["raw", "local"] = "raw"
    encoding: Literal["item", "code"] = field(default="item", metadata=configuration.LATER)
    graph: Literal["model.onnx"] = "model.onnx"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = tuple(graph_outputs())

    @property
    def takes_candidates(self) -> bool:
        """Whether the graph takes the candidates' codes."""
        return "candidates" in self.inputs

    @property
    def tokens(self) -> int:
        """Tokens of the history that an item has."""
        return self.levels if self.encoding == "code" else 1

    def __post_init__(self) -> None:
        for name, largest in MODEL_LIMITS.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must be in 1..{largest}, got {getattr(self, name)}")
        if self.max_history * self.tokens > MODEL_LIMITS["max_history"]:
            most = MODEL_LIMITS["max_history"] // self.tokens
            raise ValueError(f"max_history must be in 1..{most} with one token a code, got {self.max_history}")
        names = tuple(graph_inputs(self.levels))
        if not self.inputs:
            object.__setattr__(self, "inputs", names)
        if self.inputs not in (names, tuple(graph_inputs(self.levels, candidates=True))):
            raise ValueError(f"inputs must be {', '.join(names)}, got {', '.join(self.inputs)}")
        if self.outputs != tuple(graph_outputs()):
            raise ValueError(f"outputs must be {', '.join(graph_outputs())}, got {', '.join(self.outputs)}")


@dataclass(frozen=True)
class CodebookSpec:
    """Which `codebook.bin` belongs to the model."""

    fingerprint: str
    items: int
    id_type: Literal["int64", "string"]


@dataclass(frozen=True)
class FeatureSpec:
    """The dense features a request may carry: `width` floats a candidate, named in order.

    `scores` says that the model uses the pre-ranker's scores.
    """

    width: int = 0
    names: tuple[str, ...] = ()
    scores: bool = True

    def __post_init__(self) -> None:
        if self.width < 0 or len(self.names) != self.width:
            raise ValueError(f"width must be the number of names, got width {self.width} and {len(self.names)} names")

    @property
    def columns(self) -> int:
        """Width of the model's `features` input: what scores say of a candidate, then the dense features."""
        return len(SCORE_FEATURES) + self.width


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. `max_history` is a limit on the request; the model reads the newest of it."""

    max_candidates: int = MAX_CANDIDATES
    max_history: int = 1024
    max_request_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        largest = {
            "max_candidates": MAX_CANDIDATES, "max_history": MAX_HISTORY, "max_request_bytes": MAX_REQUEST_BYTES,
        }  # fmt: skip
        for name, limit in largest.items():
            if not 1 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must be in 1..{limit}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, checked. `files` maps a name to its `sha256` and `bytes`."""

    files: dict[str, dict[str, Any]]
    model: ModelSpec
    graphs: Graphs
    codebook: CodebookSpec
    features: FeatureSpec
    limits: Limits
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    created_by: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The manifest as JSON-ready values, `schema` and `version` included."""
        values = {**dataclasses.asdict(self), "model": configuration.deciding(self.model)}
        content = {"schema": SCHEMA, **json.loads(json.dumps(values, allow_nan=False))}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return {**content, "version": digest[:12]}

    @classmethod
    def parse(cls, record: object) -> Manifest:
        """The manifest in a decoded JSON value. Raises BundleError that names the wrong key."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            found = record.get("schema") if isinstance(record, dict) else type(record).__name__
            raise BundleError(f"schema {SCHEMA} expected, found {found!r}; export the bundle again")
        names = {item.name for item in dataclasses.fields(cls)} | {"schema", "version"}
        if set(record) != names:
            raise BundleError(f"keys missing or unknown: {', '.join(sorted(set(record) ^ names))}")
        files, graphs = record["files"], Graphs.parse(record["graphs"])
        names = {*FILES, *graphs.files, *([MEMORY] if graphs.split else [])}
        if not isinstance(files, dict) or set(files) - {CARD} != names:
            raise BundleError(f"files must be {', '.join(sorted(names))}, and {CARD} if there is one")
        for name, entry in files.items():
            if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
                raise BundleError(f"files: {name} needs sha256 and bytes")
        for name in PROSE:
            if not isinstance(record[name], dict):
                raise BundleError(f"{name} must be an object")
        manifest = cls(
            files,
            _section(ModelSpec, record, "model"),
            graphs,
            _section(CodebookSpec, record, "codebook"),
            _section(FeatureSpec, record, "features"),
            _section(Limits, record, "limits"),
            **{name: record[name] for name in PROSE},
        )
        if manifest.record()["version"] != record["version"]:
            raise BundleError("the manifest was edited after the export: its version does not match its content")
        return manifest


def _section(cls: type[T], record: dict[str, Any], name: str) -> T:
    try:
        return configuration.build(cls, record[name], name)
    except ConfigError as error:
        raise BundleError(str(error)) from error
