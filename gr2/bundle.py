"""The serving bundle: the folder that crosses from training to serving, and the checks that make it safe to load.

A bundle holds `model.onnx`, `codebook.bin`, `items.parquet` and `manifest.json`, which names every file with its hash.
The manifest has no time stamps: the same training run gives the same bytes. Its `version` covers all that it says, so
two bundles with one version answer alike, and an edited manifest is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from gr2 import config as configuration
from gr2.artifact import file_digest, write_json
from gr2.catalog import Catalog
from gr2.decoding import Codebook
from gr2.errors import BundleError, ConfigError
from gr2.features import SCORE_FEATURES

__all__ = [
    "Bundle",
    "CodebookSpec",
    "FeatureSpec",
    "Limits",
    "Manifest",
    "ModelSpec",
    "default_limits",
    "graph_inputs",
    "graph_outputs",
    "write_bundle",
]

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL, CODEBOOK, ITEMS = "model.onnx", "codebook.bin", "items.parquet"
FILES = (CODEBOOK, ITEMS, MODEL)
MAX_CANDIDATES = 1024
PROSE = ("parity", "quality", "created_by")

T = TypeVar("T")


def graph_inputs(levels: int, *, candidates: bool = False) -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of the model graph's inputs, in order.

    A model whose prior looks at the candidates' codes takes them too, (K, L), 0 for unknown items.
    """
    nodes = {f"nodes_{depth}": ("int64", 1) for depth in range(1, levels)}
    inputs = {"history": ("int64", 2), **nodes, "mask": ("float32", 2), "features": ("float32", 2)}
    return {**inputs, "candidates": ("int64", 2)} if candidates else inputs


def graph_outputs() -> dict[str, tuple[str, int]]:
    """Name to (element type, rank) of the model graph's outputs, in order."""
    return {"logits": ("float32", 2), "prior": ("float32", 1)}


@dataclass(frozen=True)
class ModelSpec:
    """What the engine must know of `model.onnx`.

    `max_history` is how many items the model attends to. `inputs` defaults to `graph_inputs` without candidates.
    """

    levels: int
    level_size: int
    max_history: int
    dim: int
    layers: int
    onnx_opset: int
    mode: Literal["score"] = "score"
    normalization: Literal["raw", "local"] = "raw"
    graph: Literal["model.onnx"] = "model.onnx"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = tuple(graph_outputs())

    @property
    def takes_candidates(self) -> bool:
        """Whether the graph takes the candidates' codes."""
        return "candidates" in self.inputs

    def __post_init__(self) -> None:
        for name in ("levels", "level_size", "max_history", "dim", "layers", "onnx_opset"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
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
        if not 1 <= self.max_candidates <= MAX_CANDIDATES:
            raise ValueError(f"max_candidates must be in 1..{MAX_CANDIDATES}, got {self.max_candidates}")
        if self.max_history < 1 or self.max_request_bytes < 1:
            raise ValueError("max_history and max_request_bytes must be at least 1")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`, checked. `files` maps a name to its `sha256` and `bytes`."""

    files: dict[str, dict[str, Any]]
    model: ModelSpec
    codebook: CodebookSpec
    features: FeatureSpec
    limits: Limits
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    created_by: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The manifest as JSON-ready values, `schema` and `version` included."""
        content = {"schema": SCHEMA, **json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))}
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
        files = record["files"]
        if not isinstance(files, dict) or tuple(sorted(files)) != FILES:
            raise BundleError(f"files must be {', '.join(FILES)}")
        for name, entry in files.items():
            if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
                raise BundleError(f"files: {name} needs sha256 and bytes")
        for name in PROSE:
            if not isinstance(record[name], dict):
                raise BundleError(f"{name} must be an object")
        manifest = cls(
            files,
            _section(ModelSpec, record, "model"),
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


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files were checked."""

    path: Path
    version: str
    manifest: Manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """The bundle in folder `path`, every listed file hashed. Raises BundleError with the reason."""
        folder = Path(path)
        source = folder / MANIFEST
        try:
            record = json.loads(source.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"{folder}: not a bundle: no {MANIFEST}") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{source}: cannot be read: {error}") from error
        try:
            manifest = Manifest.parse(record)
        except BundleError as error:
            raise BundleError(f"{source}: {error}") from error
        for name, entry in manifest.files.items():
            _check_file(folder / name, entry)
        return cls(folder, record["version"], manifest)

    @property
    def graph(self) -> Path:
        """The path of the ONNX graph."""
        return self.path / MODEL

    def codebook(self) -> Codebook:
        """The item codes, mapped into memory. Raises BundleError if the file is not the one the manifest describes."""
        model, path = self.manifest.model, self.path / CODEBOOK
        codebook = _open_codebook(path)
        found = (*dataclasses.astuple(_describe(codebook)), codebook.levels, codebook.level_size)
        expected = (*dataclasses.astuple(self.manifest.codebook), model.levels, model.level_size)
        if found != expected:
            fields = "fingerprint, items, ID type, levels, level size"
            raise BundleError(f"{path}: not the model's codebook: {fields} are {found}, expected {expected}")
        return codebook

    def catalog(self) -> Catalog:
        """The catalogue, for titles. Raises DataError."""
        return Catalog.load(self.path / ITEMS)


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        size, digest = path.stat().st_size, file_digest(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if size != entry["bytes"]:
        raise BundleError(f"{path}: {size} bytes, expected {entry['bytes']}: copy or export the bundle again")
    if digest != entry["sha256"]:
        raise BundleError(f"{path}: altered since the export (SHA-256 differs): copy or export the bundle again")


def _open_codebook(path: Path) -> Codebook:
    try:
        return Codebook(str(path))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from error


def _describe(codebook: Codebook) -> CodebookSpec:
    return CodebookSpec(codebook.fingerprint, codebook.size, "string" if codebook.id_type == "string" else "int64")


def default_limits(catalog: Catalog, features: FeatureSpec) -> Limits:
    """Limits whose message size leaves twice the room that the largest allowed request needs, and 1 MiB at least."""
    limits = Limits()
    longest = max((len(str(item).encode()) for item in catalog.ids), default=0)
    request = (limits.max_candidates + limits.max_history) * (longest + 10)
    request += limits.max_candidates * 4 * (1 + features.width)
    return dataclasses.replace(limits, max_request_bytes=max(limits.max_request_bytes, 2 * request))


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    graph: Path,
    codebook: Path,
    catalog: Catalog,
    model: ModelSpec,
    features: FeatureSpec,
    limits: Limits | None = None,
    parity: Mapping[str, Any] | None = None,
    quality: Mapping[str, Any] | None = None,
    created_by: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle, check it as a server would, and move it to `folder`; an older bundle there is replaced.

    Copies `graph` and `codebook`. Raises BundleError if the parts do not belong together, or if `folder` holds
    anything but a bundle; `folder` is then as it was.
    """
    out = Path(folder)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is not a bundle; give another folder")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        shutil.copyfile(graph, partial / MODEL)
        shutil.copyfile(codebook, partial / CODEBOOK)
        catalog.save(partial / ITEMS)
        spec = _describe(_open_codebook(codebook))
        if (spec.items, spec.id_type) != (len(catalog), catalog.id_type):
            came = f"{spec.items} items of type {spec.id_type}"
            raise BundleError(f"the codebook has {came}, the catalogue {len(catalog)} of type {catalog.id_type}")
        files = {
            name: {"sha256": file_digest(partial / name), "bytes": (partial / name).stat().st_size} for name in FILES
        }
        manifest = Manifest(
            files,
            model,
            spec,
            features,
            limits or default_limits(catalog, features),
            dict(parity or {}),
            dict(quality or {}),
            dict(created_by or {}),
        )
        write_json(partial / MANIFEST, manifest.record())
        bundle = Bundle.load(partial)
        bundle.codebook()
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dataclasses.replace(bundle, path=out)


def _replace(partial: Path, out: Path) -> None:
    """Move a finished folder to `out`; an older one there is removed once the new one is in place."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
