"""One call as grpc's core has it, without what grpc's synchronous server builds around it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from gr2.serving.access.calls import EMPTY
from gr2.serving.access.load import Trailers
from gr2.serving.observing.endings import lost_code

# Another version of grpc, where there are no direct calls.
with contextlib.suppress(ImportError):
    from grpc._cython import cygrpc

__all__ = ["GOES_ON", "DirectCall", "Told"]

logger = logging.getLogger(__name__)

NO_FLAGS = 0

# What the serving thread is told by a tag: the call if it is over, and what to run then.
Told = tuple[Any, Sequence[Callable[[], None]]]
GOES_ON: Told = (None, ())


class DirectCall:
    """One call. It is answered or refused once; from any thread.

    `came` is when its message `data` was there, by `perf_counter_ns`; of the seconds that it had left then, `given`,
    its answer has `seconds`.
    """

    __slots__ = (
        "_call",
        "_callbacks",
        "_cancelled",
        "_empty",
        "_ended",
        "_event",
        "_lock",
        "_sending",
        "_told",
        "_watched",
        "came",
        "data",
        "given",
        "seconds",
    )  # fmt: skip

    def __init__(self, event: Any, ended: Callable[..., None]) -> None:
        self._event, self._call, self._ended = event, event.call, ended
        self._callbacks: list[Callable[[], None]] | None = []
        self._lock = threading.Lock()
        self._cancelled = self._empty = self._sending = self._told = self._watched = False
        self.came, self.data, self.given, self.seconds = time.perf_counter_ns(), b"", 0.0, 0.0

    @property
    def late(self) -> bool:
        """Whether an answer would reach its caller too late."""
        return self.left < 0

    @property
    def left(self) -> float:
        """Seconds for its answer, negative once it is late."""
        return self.seconds - self._age

    def on_end(self, tell: Callable[[], None]) -> bool:
        """Have it told that the call is over, whatever ended it; False if it is over already."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(tell)
        return True

    def answer(self, reply: bytes, trailers: Trailers) -> None:
        """Send the message and the status OK."""
        message = (cygrpc.SendMessageOperation(reply, NO_FLAGS),)
        if (sent := self._send(cygrpc.StatusCode.ok, b"", trailers, message)) is not None:
            self._tell("OK" if sent else self._lost, reply if sent else None)

    def refuse(self, code: grpc.StatusCode, details: str, trailers: Trailers = ()) -> None:
        """Send a status other than OK."""
        if (sent := self._send(code.value[0], details.encode(), trailers, ())) is not None:
            self._tell(code.name if sent else self._lost, None)

    def refuse_empty(self) -> None:
        """Refuse a call whose message has not come, since there is none, or since the call is over."""
        self._send(EMPTY[0].value[0], EMPTY[1].encode(), (), ())
        self._empty = True

    def cancel(self) -> None:
        """End the call without a status of ours."""
        self._call.cancel()

    def drop(self) -> None:
        """End a call that can neither be answered nor refused: its caller hears at least that it is over."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._tell(grpc.StatusCode.INTERNAL.name, None)
        self.cancel()

    def watch(self) -> None:
        """Hear of it from now on if the caller goes; else that is known with the status."""
        self._start((cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),), self._closed)
        self._watched = True

    def read(self, told: Callable[[Any], Told]) -> None:
        """Ask for the message."""
        self._start((cygrpc.ReceiveMessageOperation(NO_FLAGS),), told)

    def next(self) -> Told:
        """What the serving thread is told where no message is asked for: the call is over if nothing of it is to come.

        In that thread only, which hears of whatever comes.
        """
        with self._lock:
            return GOES_ON if self._watched or self._sending else self._over()

    @property
    def _lost(self) -> str:
        return str(lost_code(self.given - self._age, self.given).name)

    @property
    def _age(self) -> float:
        return (time.perf_counter_ns() - self.came) / 1e9

    def _tell(self, code: str, reply: bytes | None) -> None:
        try:
            self._ended(self._metadata, self.came, code, reply)
        except Exception:
            # The call has ended all the same, and the thread may be the one that serves all of them.
            logger.exception("the end of a call could not be noted")

    def _metadata(self) -> Any:
        return self._event.invocation_metadata

    def _send(self, code: Any, details: bytes, trailers: Trailers, message: tuple[Any, ...]) -> bool | None:
        """Whether it could be sent; None for what comes after an answer or a refusal."""
        with self._lock:
            if self._told:
                return None
            if self._cancelled:
                self._told = True
                return False
            status = cygrpc.SendStatusFromServerOperation(trailers, code, details, NO_FLAGS)
            close = () if self._watched else (cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),)
            operations = (cygrpc.SendInitialMetadataOperation(None, NO_FLAGS), *message, status, *close)
            self._start(operations, self._sent)
            # Not before: what could not be started can be tried again, and nobody hears of its end.
            self._told = self._sending = True
            return True

    def _start(self, operations: tuple[Any, ...], tag: Callable[[Any], Told]) -> None:
        error = self._call.start_server_batch(operations, tag)
        if error:
            raise RuntimeError(f"grpc's core does not start operations of a call: error {error}")

    def _closed(self, _: Any) -> Told:
        with self._lock:
            self._watched, self._cancelled = False, True
            return GOES_ON if self._sending else self._over()

    def _sent(self, event: Any) -> Told:
        if self._empty:
            self._tell(self._lost if event.batch_operations[-1].cancelled() else EMPTY[0].name, None)
        with self._lock:
            self._sending = False
            return GOES_ON if self._watched else self._over()

    def _over(self) -> Told:
        callbacks, self._callbacks = self._callbacks, None
        return self, callbacks or ()
