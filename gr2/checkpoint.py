"""Training checkpoints: tensors and plain values in one file, replaced atomically, read back without pickled code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from gr2.artifact import write_atomic
from gr2.errors import ArtifactError

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of them); a crash leaves the old file or the new."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, None if nothing did. Raises ArtifactError on a file that is something else."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # What is not a checkpoint fails in whatever way the unpickler trips over it.
    except Exception as error:
        raise ArtifactError(f"{path}: not a checkpoint: {error}; delete it to start again") from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{path}: not a checkpoint: holds a {type(state).__name__}; delete it to start again")
    return state
