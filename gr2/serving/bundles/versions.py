"""Where served bundles lie: one folder, or a repository, a folder of `NAME/VERSION/`, each version a bundle.

The newest version of a name is wanted: numbers in version names count as numbers, so that 10 comes after 9. A file
`NAME/current` that holds a version's name pins that one instead. Names that begin with a dot are passed over, so that
a version can be copied to one and renamed once it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gr2.bundle import MANIFEST
from gr2.errors import BundleError

__all__ = ["ONLY", "Version", "bundle_folders", "is_repository", "versions_of"]

ONLY = "default"
CURRENT = "current"
LONGEST_LABEL = 256
MOST_NAMES = 64

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Version:
    """A folder that may hold a bundle. As long as `stamp` is the same, none of its files was replaced or written to."""

    label: str
    path: Path
    stamp: Stamp


def is_repository(root: Path) -> bool:
    """Whether a folder is a repository, and not itself a bundle."""
    return not (root / MANIFEST).exists() and any(root.glob(f"[!.]*/[!.]*/{MANIFEST}"))


def bundle_folders(root: Path) -> dict[str, Path]:
    """Name to the folder of its versions, of a repository.

    Raises BundleError if it has more names than a server takes, and OSError if it cannot be read.
    """
    names = {path.name: path for path in sorted(root.iterdir()) if not path.name.startswith(".") and path.is_dir()}
    if len(names) > MOST_NAMES:
        raise BundleError(f"{root}: holds {len(names)} names, and a server takes at most {MOST_NAMES}")
    return names


def versions_of(folder: Path, *, only: bool) -> Sequence[Version]:
    """What to serve of a name, the most wanted first. `only` says that the folder is itself the one version.

    Raises BundleError if the pinned version is not there, and OSError if the folder cannot be read.
    """
    if only:
        return [_version(folder)]
    pin = folder / CURRENT
    if pin.is_file():
        label = pin.read_text(encoding="utf-8", errors="replace")[:LONGEST_LABEL].strip()
        path = folder / label
        if not label or label.startswith(".") or path.parent != folder or not path.is_dir():
            raise BundleError(f"{pin}: names the version {label!r}, which is not there")
        return [_version(path)]
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]
    return [_version(path) for path in sorted(found, key=_age, reverse=True)]


def _age(path: Path) -> list[tuple[int, str]]:
    """A key that sorts version names, with numbers as numbers."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def _version(path: Path) -> Version:
    with os.scandir(path) as entries:
        stats = [(entry.name, entry.stat()) for entry in entries]
    stamp = sorted((name, each.st_ino, each.st_size, each.st_mtime_ns) for name, each in stats)
    return Version(path.name, path, tuple(stamp))
