"""Where a bundle is served: on the CPU, or on a GPU if there is one and all that it takes."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Literal

from gr2.bundle import Bundle
from gr2.errors import ConfigError
from gr2.serving.models.session import CUDA

__all__ = ["DEVICES", "Device", "choose_device", "obstacle", "say_fallback"]

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
LARGEST_LEVEL = 1 << 15


def choose_device(wanted: str, bundle: Bundle) -> Device:
    """The device for `wanted`: "cpu", "cuda", or "auto", which takes a GPU if it can and else logs why it cannot.

    Raises ConfigError for "cuda" if it cannot be had, with the reason.
    """
    if wanted not in DEVICES:
        raise ConfigError(f"device must be {', '.join(DEVICES)}, got {wanted!r}")
    if wanted == "cpu":
        return "cpu"
    reason = obstacle(bundle)
    if reason is None:
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(f"device cuda: {reason}")
    say_fallback(reason)
    return "cpu"


def say_fallback(reason: str) -> None:
    """Log that what asked for "auto" is served on the CPU, in one line."""
    logger.warning("serving on the CPU: %s", " ".join(reason.split()))


def obstacle(bundle: Bundle) -> str | None:
    """Why the bundle cannot be served on a GPU here; None if it can. Loads torch only if nothing cheaper forbids it."""
    if not bundle.takes_batches:
        return f"{bundle.path} holds no batch.onnx; export it again with `export.batched = true`"
    if bundle.manifest.model.level_size > LARGEST_LEVEL:
        return f"levels of more than {LARGEST_LEVEL} codes are ranked on the CPU only"
    import onnxruntime as ort

    if CUDA not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no CUDA provider; install onnxruntime-gpu in its place"
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be imported; install gr2[gpu]"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch cannot be loaded: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    return None
