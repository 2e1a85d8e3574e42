"""Stage artefacts: a folder with what a stage made, what it was made from, and the hashes that prove both.

A stage works in `OUT.partial/`, which survives a kill, so that checkpoints in it can be resumed; a finished folder is
moved to `OUT` in one rename. A folder without a valid `artifact.json` is never taken for a finished one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.errors import ArtifactError
from gr2.version import __version__

__all__ = [
    "MANIFEST",
    "Artifact",
    "Workspace",
    "file_digest",
    "is_begun",
    "is_current",
    "open_stage",
    "outdated",
    "recover",
    "write_atomic",
    "write_json",
]

SCHEMA = 1
MANIFEST = "artifact.json"
KEYS = {
    "stage": str, "digest": str, "fingerprint": str, "seed": int,
    "config": dict, "parents": dict, "metrics": dict, "files": dict,
}  # fmt: skip


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder and what `artifact.json` says of it.

    `files` maps each file to its hash, and `digest` covers them all.
    """

    path: Path
    stage: str
    digest: str
    fingerprint: str
    seed: int
    config: dict[str, Any]
    parents: dict[str, str]
    metrics: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def load(cls, path: str | os.PathLike[str], stage: str | None = None, *, verify: bool = False) -> Artifact:
        """The artefact in folder `path`. With `verify`, every file is hashed again. Raises ArtifactError.

        Without it, a file that is missing or of another length than it was written with is found all the same.
        """
        folder = Path(path)
        try:
            record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            hint = f"; `gr2 {stage} CONFIG.toml` makes it, `gr2 run CONFIG.toml` all stages" if stage else ""
            missing = f"the stage {stage}" if stage else "a stage"
            raise ArtifactError(f"{folder}: no {MANIFEST}: {missing} has not finished here{hint}") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder / MANIFEST}: cannot be read: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ArtifactError(f"{folder / MANIFEST}: schema {SCHEMA} expected; run the stage again")
        for key, kind in KEYS.items():
            if not isinstance(record.get(key), kind):
                raise ArtifactError(f"{folder / MANIFEST}: damaged: no {key!r}; run the stage again")
        if stage is not None and record["stage"] != stage:
            raise ArtifactError(f"{folder}: expected an artefact of stage {stage!r}, found {record['stage']!r}")
        artifact = cls(folder, **{key: record[key] for key in KEYS})
        artifact._check(record.get("bytes", {}), verify=verify)
        return artifact

    def _check(self, sizes: Mapping[str, int], *, verify: bool) -> None:
        for name, digest in self.files.items():
            path = self.path / name
            try:
                whole = path.is_file() and sizes.get(name) in (None, path.stat().st_size)
                if whole and verify:
                    whole = file_digest(path) == digest
            except OSError as error:
                raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
            if not whole:
                raise self.damaged(name)

    def damaged(self, name: str, reason: object = "missing, or altered since it was written") -> ArtifactError:
        """The error that says what is wrong with a file and which stage writes it again."""
        return ArtifactError(f"{self.path / name}: {reason}; run {self.stage} again (`gr2 run` does)")

    def file(self, name: str) -> Path:
        """The path of one of the artefact's files. Raises ArtifactError if it is not there."""
        path = self.path / name
        if not path.exists():
            raise self.damaged(name, "missing")
        return path

    def array(self, name: str) -> NDArray[Any]:
        """The array in one of the artefact's `.npy` files. Raises ArtifactError if it is not there, or none."""
        try:
            array: NDArray[Any] = np.load(self.file(name), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self.damaged(name, f"not an array: {error}") from error
        return array


@dataclass
class Workspace:
    """A stage at work. Files go below `path`; `checkpoints` survives a kill and is removed when the stage commits."""

    path: Path
    checkpoints: Path
    seed: int
    metrics: dict[str, Any] = field(default_factory=dict)

    def save_array(self, name: str, array: NDArray[Any]) -> None:
        """Write an array to the file `name` (`.npy`). Raises OSError that says why it cannot be written."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomic(self.path / name, buffer.getvalue())


def fingerprint(stage: str, config: Any, parents: Mapping[str, str], seed: int) -> str:
    """A hash of everything that decides a stage's result: its name, configuration, inputs, seed and gr2's version."""
    record = [stage, configuration.deciding(config), dict(parents), seed, __version__]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def is_current(out: Path, stage: str, config: Any, parents: Mapping[str, str], seed: int) -> bool:
    """True if `out` holds a finished artefact made from exactly these inputs, and none of its files has changed."""
    recover(out)
    try:
        return Artifact.load(out, stage, verify=True).fingerprint == fingerprint(stage, config, parents, seed)
    except ArtifactError:
        return False


def outdated(artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """The stages that were made from another input than is among `artifacts`, or from one that itself was; and which.

    `artifacts` are those of one run by name, inputs first.
    """
    found: dict[str, str] = {}
    for name, artifact in artifacts.items():
        changed = (
            parent
            for parent, digest in artifact.parents.items()
            if parent in artifacts and (artifacts[parent].digest != digest or parent in found)
        )
        if (parent := next(changed, None)) is not None:
            found[name] = parent
    return found


def is_begun(out: Path, stage: str, config: Any, parents: Mapping[str, str], seed: int) -> bool:
    """True if a killed run left a workspace made from exactly these inputs, which `open_stage` will take up again."""
    return _begun_by(out.with_name(out.name + ".partial"), fingerprint(stage, config, parents, seed))


def _begun_by(partial: Path, identity: str) -> bool:
    marker = partial / "fingerprint"
    return marker.is_file() and marker.read_text() == identity


@contextmanager
def open_stage(out: Path, stage: str, config: Any, parents: Mapping[str, str], seed: int) -> Iterator[Workspace]:
    """A workspace for one stage; leaving the block without an exception commits it to the folder `out`.

    `parents` maps a name (another stage, or `file:NAME`) to the digest of what was read. A workspace left by a killed
    run is taken up again if its fingerprint is the same, and cleared otherwise; of one that is taken up, only the
    whole files in `checkpoints` are kept.
    """
    out = out.resolve()
    partial = out.with_name(out.name + ".partial")
    _refuse_foreign(out, stage)
    recover(out)
    identity = fingerprint(stage, config, parents, seed)
    marker, checkpoints = partial / "fingerprint", partial / "checkpoints"
    if _begun_by(partial, identity):
        _tidy(partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomic(marker, identity.encode())
    checkpoints.mkdir(exist_ok=True)
    work = Workspace(partial, checkpoints, seed)
    yield work
    made = [
        path for path in partial.rglob("*") if path.is_file() and path != marker and checkpoints not in path.parents
    ]
    files = {str(path.relative_to(partial)): file_digest(path) for path in sorted(made)}
    record = {
        "schema": SCHEMA,
        "stage": stage,
        "gr2": __version__,
        "fingerprint": identity,
        "digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        "seed": seed,
        "config": configuration.to_json(config),
        "parents": dict(parents),
        "files": files,
        "bytes": {str(path.relative_to(partial)): path.stat().st_size for path in made},
        "metrics": work.metrics,
    }
    write_json(partial / MANIFEST, record)
    recover(out)


def _refuse_foreign(out: Path, stage: str) -> None:
    """Raise ArtifactError if the folder, or the workspace beside it, holds something that this stage did not write."""
    for path in (out, out.with_name(out.name + ".partial")):
        if path.exists() and not path.is_dir():
            raise ArtifactError(f"{path}: is a file where the stage {stage} needs a folder; move it away")
        own = any((path / name).is_file() for name in (MANIFEST, "fingerprint"))
        # A hidden file may be one that a kill left half written.
        if path.is_dir() and not own and any(not inside.name.startswith(".") for inside in path.iterdir()):
            raise ArtifactError(f"{path}: holds files that no stage of gr2 wrote; give a new folder, or an empty one")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("stage")
        if found != stage:
            raise ArtifactError(f"{out}: holds the artefact of the stage {found}; give {stage} another folder")


def _tidy(partial: Path) -> None:
    """Remove what a killed run left half done: everything but the fingerprint and the checkpoints written whole."""
    for path in partial.iterdir():
        if path.name == "checkpoints":
            for temporary in path.glob(".*"):
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        elif path.name != "fingerprint":
            path.unlink()


def recover(out: Path) -> None:
    """Finish the move of a committed workspace to `out`, wherever a crash may have left it.

    Who goes on from what `out` holds calls it first: between the two renames of a move nothing is there.
    """
    partial, old = out.with_name(out.name + ".partial"), out.with_name(f".{out.name}.replaced")
    if (partial / MANIFEST).is_file():
        shutil.rmtree(partial / "checkpoints", ignore_errors=True)
        (partial / "fingerprint").unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
