"""A Ray cluster of this machine's own: started, and started again where a part of it does not come up."""

from __future__ import annotations

import gc
import logging
import tempfile
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gr2.errors import Gr2Error

__all__ = ["start"]

STARTS = 3
OBJECT_STORE_BYTES = 256 << 20
END_SECONDS = 5.0
logger = logging.getLogger(__name__)


def start(ray: Any, cores: int, folders: ExitStack, **options: Any) -> None:
    """Connect to a new cluster of so many cores, whose files lie in a folder that `folders` removes.

    Raises Gr2Error, with Ray's reason, if it does not come up in three starts: now and then one of its processes hangs.
    """
    for left in reversed(range(STARTS)):
        make = tempfile.TemporaryDirectory(prefix="gr2-", ignore_cleanup_errors=True)
        folder = folders.enter_context(make)
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=cores,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **options,
            )
            return
        # Ray knows no better class for a part of it that does not start in time.
        except Exception as error:
            reason = _reason(error, Path(folder))
            lasting = isinstance(error, OSError | ValueError)
            _end(error, folder)
        if lasting or not left:
            raise Gr2Error(f"Ray cannot be started on this machine: {reason}")
        logger.warning("Ray did not start and is started again: %s", reason)


def _reason(error: Exception, folder: Path) -> str:
    """Ray's first line, and the last of what its server has written of an error."""
    lines = [str(error).partition("\n")[0]]
    for log in sorted(folder.glob("session_*/logs/gcs_server.err")):
        lines += log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
    return "; ".join(filter(None, lines))


def _end(error: Exception, folder: str) -> None:
    """End the processes of a start that failed, and forget what Ray still holds of them."""
    import psutil

    parts = [child for child in psutil.Process().children(recursive=True) if _names(child, folder)]
    for part in parts:
        part.kill()
    psutil.wait_procs(parts, timeout=END_SECONDS)
    with warnings.catch_warnings():
        # Of the processes whose objects go here, Python would say that they still run.
        warnings.simplefilter("ignore", ResourceWarning)
        traceback.clear_frames(error.__traceback__)
        gc.collect()


def _names(process: Any, folder: str) -> bool:
    import psutil

    try:
        return any(folder in word for word in process.cmdline())
    except psutil.Error:
        return False
