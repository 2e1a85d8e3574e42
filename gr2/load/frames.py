"""Messages in a file, each behind its length: what the processes of a load test hand to one another."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

__all__ = ["read_frames", "write_frames"]

LENGTH = struct.Struct("<I")


def write_frames(path: Path, messages: Iterable[bytes]) -> None:
    """Write the messages in order."""
    with path.open("wb") as file:
        for message in messages:
            file.write(LENGTH.pack(len(message)) + message)


def read_frames(path: Path) -> list[bytes]:
    """The messages of a file that `write_frames` wrote."""
    data, at, messages = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        messages.append(data[at : at + size])
        at += size
    return messages
