"""Bearer tokens, one a client: a file of names and hashes, and the interceptor that lets their owners in.

A line of the file is `NAME SHA256`, the hash of the token in hexadecimal; `#` begins a comment. A token is 256 random
bits, so that its plain hash gives nothing away, and the file is no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from gr2.errors import ConfigError
from gr2.serving.observing.exposition import Family

__all__ = ["TokenFile", "TokenInterceptor", "make_token"]

logger = logging.getLogger(__name__)

LINE = re.compile(r"([A-Za-z0-9._-]{1,64})[ \t]+([0-9a-f]{64})")
MOST_CLIENTS = 256
MOST_BYTES = 1 << 16
LOOK_SECONDS = 1.0
SCHEME = "Bearer "
# What watches a server has no token.
OPEN_SERVICE = "/grpc.health.v1.Health/"


def make_token(name: str) -> tuple[str, str]:
    """A new token for a client, and the line for the file. Raises ConfigError if the name cannot be one."""
    token = f"gr2_{secrets.token_urlsafe(32)}"
    line = f"{name} {_digest(token).hex()}"
    if not LINE.fullmatch(line):
        raise ConfigError(f"a client's name is 1 to 64 letters, digits, dots, dashes and underscores, got {name!r}")
    return token, line


class TokenFile:
    """The clients of a token file, read again when it changes. A file that cannot be used changes nothing."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._path = Path(path)
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        try:
            self._stamp = self._look()
            self._clients = self._read()
        except (OSError, ValueError) as error:
            raise ConfigError(f"tokens: {error}") from error

    def client(self, token: str) -> str | None:
        """The name of the client that the token is of, or None.

        The time it takes tells nothing of the tokens: hashes are compared, each to its end, and all of them.
        """
        self._refresh()
        digest, found = _digest(token), None
        for name, known in self._clients:
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = now
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._clients = self._read()
                logger.info("tokens: %d clients from %s", len(self._clients), self._path)
        except (OSError, ValueError) as error:
            logger.error("tokens: the new file is not used: %s", error)
        finally:
            self._lock.release()

    def _look(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _read(self) -> list[tuple[str, bytes]]:
        with self._path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"{self._path}: larger than {MOST_BYTES} bytes")
        clients = []
        for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
            content = line.partition("#")[0].strip()
            match = LINE.fullmatch(content)
            if match:
                clients.append((match[1], bytes.fromhex(match[2])))
            elif content:
                # The line itself may be a token that someone forgot to hash.
                raise ValueError(f"{self._path}: line {number}: expected NAME and the token's SHA-256, 64 hex digits")
        if not 1 <= len(clients) <= MOST_CLIENTS:
            raise ValueError(f"{self._path}: 1 to {MOST_CLIENTS} clients are expected, got {len(clients)}")
        return clients


class TokenInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a client's token with UNAUTHENTICATED, before their message is read. Health is open."""

    def __init__(self, tokens: TokenFile, refusal: grpc.RpcMethodHandler) -> None:
        """`refusal` is the handler that ends a call."""
        self._tokens, self._refusal = tokens, refusal
        self._calls: Counter[str] = Counter()
        self._refused = 0

    def families(self) -> Iterable[Family]:
        """How often each client has called, and how many calls were refused, as metrics."""
        calls = Family("gr2_client_calls_total", "counter", "Calls with a client's token.")
        for client, count in sorted(self._calls.copy().items()):
            calls.add(count, client=client)
        refused = Family("gr2_unauthenticated_calls_total", "counter", "Calls without a token that is known.")
        return (calls, refused.add(self._refused))

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """See grpc.ServerInterceptor."""
        if handler_call_details.method.startswith(OPEN_SERVICE) or self.admits(
            handler_call_details.invocation_metadata
        ):
            return continuation(handler_call_details)
        return self._refusal

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether a call's metadata has a client's token; it is counted."""
        for key, value in metadata:
            if key == "authorization" and isinstance(value, str) and value.startswith(SCHEME):
                client = self._tokens.client(value[len(SCHEME) :])
                if client is not None:
                    self._calls[client] += 1
                    return True
                break
        self._refused += 1
        return False


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
