"""The serving bundle: the folder that crosses from training to serving, and the checks that make it safe to load.

A bundle holds `model.onnx`, `codebook.bin`, `items.parquet` and `manifest.json`, which names every file with its hash;
`gr2.graphs` says which graphs there may be beside the whole one. `README.md` is its model card, if it has one.
The manifest has no time stamps: the same training run gives the same bytes. Its `version` covers all that it says, so
two bundles with one version answer alike, and an edited manifest is refused.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from gr2.artifact import file_digest, write_json
from gr2.catalog import Catalog
from gr2.decoding import Codebook, CoreStudent, ItemMemory
from gr2.errors import BundleError
from gr2.graphs import ROLES, WEIGHTS, Graphs, GraphVariant, graph_file
from gr2.manifest import (
    CARD,
    FILES,
    MAX_REQUEST_BYTES,
    MEMORY,
    CodebookSpec,
    FeatureSpec,
    Limits,
    Manifest,
    ModelSpec,
    encoder_inputs,
    graph_inputs,
    graph_outputs,
    scorer_inputs,
)

__all__ = [
    "Bundle",
    "CodebookSpec",
    "FeatureSpec",
    "Limits",
    "Manifest",
    "ModelSpec",
    "default_limits",
    "encoder_inputs",
    "graph_inputs",
    "graph_outputs",
    "scorer_inputs",
    "write_bundle",
]

MANIFEST = "manifest.json"
CODEBOOK, ITEMS = FILES
MANIFEST_BYTES = 16 << 20


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
            with _open(source) as file:
                record = json.loads(file.read(MANIFEST_BYTES).decode(), parse_constant=_no_number)
        except (FileNotFoundError, NotADirectoryError) as error:
            old = _aside(folder, "old")
            hint = f"; a write was interrupted, {old} is the older one" if old.is_dir() else ""
            raise BundleError(f"{folder}: not a bundle: no {MANIFEST}{hint}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{source}: cannot be read: {error}") from error
        try:
            manifest = Manifest.parse(record)
        except BundleError as error:
            raise BundleError(f"{source}: {error}") from error
        for name, entry in manifest.files.items():
            _check_file(folder / name, entry)
        return cls(folder, record["version"], manifest)

    def read_graph(self, path: Path) -> bytes:
        """The ONNX graph at `path`, the very bytes that the manifest's hash covers. Raises BundleError."""
        entry = self.manifest.files.get(path.name)
        if entry is None:
            hint = "; export it again with `export.batched = true`" if path == self.batch_graph else ""
            raise BundleError(f"{self.path}: holds no {path.name}{hint}")
        try:
            with _open(path) as file:
                _check_size(path, file, entry)
                data = file.read()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
        _check_digest(path, hashlib.sha256(data).hexdigest(), entry)
        return data

    @property
    def takes_batches(self) -> bool:
        """Whether the bundle holds the model for batches of requests."""
        return self.batch_graph.name in self.manifest.files

    @property
    def batch_graph(self) -> Path:
        """The path of the ONNX graph for batches of requests."""
        return self.path / graph_file("batch", self.manifest.graphs.batch)

    @property
    def graph(self) -> Path:
        """The path of the whole ONNX graph in fp32."""
        return self.path / graph_file("whole")

    def graph_pair(self, variant: str = "") -> tuple[Path, Path] | None:
        """The paths of encoder and scorer of a variant, by default the one that a CPU serves; None if it has none.

        Raises BundleError if the bundle does not hold the variant.
        """
        name = self._variant(variant)
        if not self.manifest.graphs.variants[name].split:
            return None
        return self.path / graph_file("encoder", name), self.path / graph_file("scorer", name)

    def student(self, variant: str = "") -> CoreStudent | None:
        """What the core computes a variant with, by default the one that a CPU serves; None if the graphs are run.

        Raises BundleError if the bundle does not hold the variant, or if the weights are not the model's.
        """
        name = self._variant(variant)
        if not self.manifest.graphs.variants[name].native:
            return None
        path, model = self.weights, self.manifest.model
        try:
            student = CoreStudent(path, name, model.encoding)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: {error}") from error
        columns = self.manifest.features.columns + CoreStudent.MEMORY_COLUMNS
        found = (student.levels, student.level_size, student.max_history, student.features)
        expected = (model.levels, model.level_size, model.max_history, columns)
        if found != expected:
            fields = "levels, level size, longest history, features"
            raise BundleError(f"{path}: not the model's weights: {fields} are {found}, expected {expected}")
        return student

    @property
    def weights(self) -> Path:
        """The path of the weights that the core computes with."""
        return self.path / graph_file(WEIGHTS)

    def _variant(self, name: str) -> str:
        graphs = self.manifest.graphs
        name = name or graphs.default
        if name not in graphs.variants or not graphs.variants[name].roles:
            raise BundleError(f"{self.path}: holds no graphs in {name}, only in {', '.join(graphs.variants)}")
        return name

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

    def memory(self) -> ItemMemory:
        """What encoder and scorer need to know of items, mapped into memory. Raises BundleError."""
        path, model = self.path / MEMORY, self.manifest.model
        try:
            memory = ItemMemory(path)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: {error}") from error
        if memory.levels != model.levels:
            raise BundleError(f"{path}: not the model's memory: {memory.levels} levels, expected {model.levels}")
        return memory

    def catalog(self) -> Catalog:
        """The catalogue, for titles. Raises DataError."""
        return Catalog.load(self.path / ITEMS)


def _open(path: Path) -> BufferedReader:
    """A regular file, open for reading. Raises OSError for anything else: a pipe may block, a device may never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        with _open(path) as file:
            _check_size(path, file, entry)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    _check_digest(path, digest, entry)


def _check_size(path: Path, file: BufferedReader, entry: Mapping[str, Any]) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != entry["bytes"]:
        raise BundleError(f"{path}: {size} bytes, expected {entry['bytes']}: copy or export the bundle again")


def _check_digest(path: Path, digest: str, entry: Mapping[str, Any]) -> None:
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
    size = max(limits.max_request_bytes, 2 * request)
    return dataclasses.replace(limits, max_request_bytes=min(size, MAX_REQUEST_BYTES))


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    graph: Path,
    codebook: Path,
    catalog: Catalog,
    model: ModelSpec,
    features: FeatureSpec,
    limits: Limits | None = None,
    others: Mapping[str, Path] | None = None,
    graphs: Graphs | None = None,
    card: str | None = None,
    parity: Mapping[str, Any] | None = None,
    quality: Mapping[str, Any] | None = None,
    created_by: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle, check it as a server would, and move it to `folder`; an older bundle there is replaced.

    Copies `graph`, the whole one in fp32, `others` under the names they have in the bundle, and `codebook`. `graphs`
    describes the graphs; by default those in fp32 are served. `card` is written as README.md. Raises BundleError if the
    parts do not belong together, or if `folder` holds anything but a bundle; `folder` is then as it was.
    """
    out = Path(folder)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is not a bundle; give another folder")
    partial, old = _aside(out, "partial"), _aside(out, "old")
    if old.is_dir() and not out.exists():
        old.rename(out)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        sources = {graph_file("whole"): graph, **(others or {})}
        for name, path in sources.items():
            shutil.copyfile(path, partial / name)
        shutil.copyfile(codebook, partial / CODEBOOK)
        if card is not None:
            (partial / CARD).write_text(card, encoding="utf-8")
        catalog.save(partial / ITEMS)
        spec = _describe(_open_codebook(codebook))
        if (spec.items, spec.id_type) != (len(catalog), catalog.id_type):
            came = f"{spec.items} items of type {spec.id_type}"
            raise BundleError(f"the codebook has {came}, the catalogue {len(catalog)} of type {catalog.id_type}")
        files = {
            path.name: {"sha256": file_digest(path), "bytes": path.stat().st_size} for path in sorted(partial.iterdir())
        }
        manifest = Manifest(
            files,
            model,
            graphs or Graphs({"fp32": GraphVariant(tuple(role for role in ROLES if graph_file(role) in sources))}),
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


def _aside(out: Path, name: str) -> Path:
    """The folder beside `out` that holds a bundle for a moment while `out` is replaced."""
    out = out.absolute()
    return out.with_name(f".{out.name}.{name}")


def _replace(partial: Path, out: Path) -> None:
    """Move a finished folder to `out`; an older one there is removed once the new one is in place.

    A kill between the two renames leaves the older one aside; the next write takes it back first.
    """
    old = _aside(out, "old")
    if out.exists():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
