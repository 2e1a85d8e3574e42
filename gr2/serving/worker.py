"""One of several serving processes: `python -m gr2.serving.worker JSON LIFELINE`, as `gr2.serving.processes` starts it.

LIFELINE is a file descriptor that the parent holds the other end of: when the parent is gone, however it went, it
ends, and the process stops as by SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import NoReturn

from gr2 import config as configuration
from gr2.errors import Gr2Error
from gr2.serving.config import ServeConfig
from gr2.serving.models.heap import share_arenas

__all__ = ["main"]

REFUSED = 2


def main() -> NoReturn:
    """Serve until a signal or the end of the lifeline; exit code 2 if what it was told cannot be."""
    share_arenas()
    from gr2.serving.server import serve

    record, lifeline = json.loads(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_watch, args=(lifeline,), name="gr2-lifeline", daemon=True).start()
    try:
        serve(record["bundle"], configuration.build(ServeConfig, record["config"], "serve"))
    except Gr2Error as error:
        sys.stderr.write(f"gr2: error: {error}\n")
        sys.exit(REFUSED)
    sys.exit(0)


def _watch(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
