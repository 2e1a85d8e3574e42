"""The served bundles by name, replaced while they serve.

A new version is checked, loaded and warmed up beside the old one, and takes its place in one assignment. Requests that
use the old one finish on it. A version that cannot be served is refused, with the reason, and nothing else changes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gr2.bundle import Bundle
from gr2.errors import BundleError, ConfigError, RequestError, UnservedError
from gr2.serving.bundles.handle import Handle
from gr2.serving.bundles.versions import ONLY, Stamp, bundle_folders, is_repository, versions_of
from gr2.serving.engine import Engine
from gr2.serving.models.heap import give_memory_back

__all__ = ["BundleStatus", "Repository", "yield_to_requests"]

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds that a swap waits for the users of the old bundle; then they are looked for at every poll
RETRY = 60.0  # seconds after which a refused version that has not changed is tried again
# Of a tenth of the weight: with less, a thread that holds Python's lock on a busy machine would hold up the requests.
LOW_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class BundleStatus:
    """How a name is served. `bundle` is None, and `label` empty, while no version of it can be.

    `reason` says why the version that is wanted is not the one served; it is empty if it is. `draining` bundles were
    replaced and still have users.
    """

    name: str
    label: str
    bundle: Bundle | None
    device: str
    served_seconds: float
    swaps: int
    refusals: int
    reason: str
    draining: int


@dataclass
class _Shelf:
    """What is known of a name; written by whoever holds the repository's lock."""

    folder: Path
    handle: Handle | None = None
    draining: list[Handle] = field(default_factory=list)
    refused: dict[str, tuple[Stamp, float]] = field(default_factory=dict)
    swaps: int = 0
    refusals: int = 0
    reason: str = ""


class Repository:
    """The bundles in a folder (see `gr2.serving.bundles.versions`), of each name the wanted version.

    `default` is the name that a request which names none means: of several that must be said, unless one is "default".
    `poll` is the seconds between two looks at the folder, 0 for none: `refresh` looks at once. Names are added while
    the server runs, never taken away: a folder that vanishes changes nothing.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        load: Callable[[Bundle], Engine] = Engine,
        *,
        default: str = "",
        poll: float = 0.0,
    ) -> None:
        """Load what is there. Raises BundleError if the default bundle has no version that can be served."""
        self.root, self._load, self._poll = Path(root), load, poll
        self.on_change: Callable[[], None] = lambda: None
        self._several = is_repository(self.root)
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gr2-bundles", daemon=True)
        self.refresh()
        try:
            self.default = self._choose(default)
        except BaseException:
            self.close()
            raise

    def _choose(self, default: str) -> str:
        """The name of the default bundle, which must be served."""
        default = default or (ONLY if len(self._shelves) > 1 else next(iter(self._shelves), ONLY))
        if default not in self._shelves:
            names = ", ".join(self._shelves)
            raise ConfigError(f"{self.root}: which bundle is the default one? {default!r} is none of {names}")
        if self._shelves[default].handle is None:
            if not self._several:
                Bundle.load(self.root)  # says what is wrong with the folder
            raise BundleError(self._shelves[default].reason)
        return default

    def start(self) -> None:
        """Begin to look for new versions."""
        if self._poll:
            self._thread.start()

    def lease(self, name: str = "") -> Handle:
        """The bundle served as `name`, or the default one, with one use counted: leave it by `with` or `release`.

        Raises RequestError if there is no such name, and UnservedError if no version of it can be served.
        """
        while True:
            shelf = self._shelves.get(name or self.default)
            if shelf is None:
                raise RequestError("bundle", f"no bundle {name[:64]!r} here; there are {', '.join(self._shelves)}")
            handle = shelf.handle
            if handle is None:
                raise UnservedError(f"bundle {name!r}: no version of it can be served")
            # It may have been replaced since it was read; then the new one is there.
            if handle.acquire():
                return handle

    def refresh(self) -> None:
        """Look at the folder now; returns once what is new there serves or is refused."""
        with self._lock:
            try:
                folders = bundle_folders(self.root) if self._several else {ONLY: self.root}
                new = {name: _Shelf(folder) for name, folder in folders.items() if name not in self._shelves}
                # Requests look at the old one meanwhile.
                self._shelves = {**self._shelves, **new}
            except (OSError, BundleError) as error:
                logger.warning("%s: cannot be looked at: %s", self.root, error)
            for name, shelf in self._shelves.items():
                before = shelf.swaps, shelf.reason
                self._update(name, shelf)
                if (shelf.swaps, shelf.reason) != before:
                    self.on_change()

    def status(self) -> list[BundleStatus]:
        """How each name is served, by name."""
        return [_status(name, shelf) for name, shelf in sorted(self._shelves.items())]

    def close(self) -> None:
        """Close every bundle. Leases that are still held keep theirs."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for shelf in self._shelves.values():
                handle, shelf.handle = shelf.handle, None
                for each in [*shelf.draining, *filter(None, [handle])]:
                    each.retire(0)

    def _watch(self) -> None:
        yield_to_requests()
        while not self._closed.wait(self._poll):
            try:
                self.refresh()
            except Exception:
                logger.exception("looking for new bundles failed; it goes on")

    def _update(self, name: str, shelf: _Shelf) -> None:
        """Serve the most wanted version of a name that can be served."""
        shelf.draining = [handle for handle in shelf.draining if not handle.retire(0)]
        reason = ""
        try:
            versions = versions_of(shelf.folder, only=not self._several)
        except (OSError, BundleError) as error:
            self._say(name, shelf, str(error))
            return
        for version in versions:
            if shelf.handle is not None and shelf.handle.version == version:
                break
            stamp, when = shelf.refused.get(version.label, (None, 0.0))
            if stamp == version.stamp and time.monotonic() - when < RETRY:
                reason = reason or shelf.reason
                continue
            try:
                engine = self._load(Bundle.load(version.path))
            except Exception as error:
                shelf.refused[version.label] = version.stamp, time.monotonic()
                shelf.refusals += 1
                self._say(name, shelf, str(error))
                reason = reason or str(error)
                continue
            if shelf.handle is not None:
                # Until it has shown otherwise, a version takes as long as the one before.
                engine.times = shelf.handle.engine.times
            self._swap(name, shelf, Handle(engine, version))
            break
        labels = {version.label for version in versions}
        shelf.refused = {label: entry for label, entry in shelf.refused.items() if label in labels}
        shelf.reason = reason

    def _say(self, name: str, shelf: _Shelf, reason: str) -> None:
        """Note, and log once, why the wanted version is not served."""
        if reason != shelf.reason:
            served = shelf.handle.version.label if shelf.handle else "nothing"
            logger.error("bundle %s: %s is served: %s", name, served, reason)
        shelf.reason = reason

    def _swap(self, name: str, shelf: _Shelf, handle: Handle) -> None:
        old, shelf.handle = shelf.handle, handle
        if old is None:
            return
        shelf.swaps += 1
        logger.info("bundle %s: version %s serves in place of %s", name, handle.version.label, old.version.label)
        if not old.retire(PATIENCE):
            shelf.draining.append(old)
        give_memory_back()


def yield_to_requests() -> None:
    """Give the calling thread a low priority, for good: requests come first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)


def _status(name: str, shelf: _Shelf) -> BundleStatus:
    handle, counts = shelf.handle, (shelf.swaps, shelf.refusals, shelf.reason, len(shelf.draining))
    if handle is None or not handle.acquire():
        return BundleStatus(name, "", None, "", 0.0, *counts)
    with handle as engine:
        return BundleStatus(
            name, handle.version.label, engine.bundle, engine.device, time.monotonic() - handle.since, *counts
        )
