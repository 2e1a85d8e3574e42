"""A loaded bundle and its users: it is closed once another has taken its place and the last of them has left."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from gr2.serving.bundles.versions import Version
from gr2.serving.engine import Engine

__all__ = ["Handle"]


class Handle:
    """An engine that is in use while `with handle as engine:` blocks run. Safe to share between threads.

    `acquire` and `release` are the same by hand; a block is entered with one use already counted.
    """

    def __init__(self, engine: Engine, version: Version) -> None:
        self.version = version
        self.since = time.monotonic()
        self._engine: Engine | None = engine
        self._users = 0
        self._retired = False
        self._changed = threading.Condition()

    @property
    def engine(self) -> Engine:
        """The engine. Only for those who have acquired it."""
        assert self._engine is not None
        return self._engine

    def __enter__(self) -> Engine:
        return self.engine

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> bool:
        """Count one more use; False if another bundle has taken the place of this one."""
        with self._changed:
            if self._retired:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Count one use less."""
        with self._changed:
            self._users -= 1
            if self._retired and not self._users:
                self._changed.notify_all()

    def retire(self, patience: float) -> bool:
        """Let nobody in from now on, wait until the last user has left, and close the engine.

        False if there are users still after `patience` seconds; call it again then.
        """
        with self._changed:
            self._retired = True
            if not self._changed.wait_for(lambda: not self._users, patience):
                return False
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        return True
