"""The processor time of a server on this machine, found by the port that it listens on."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

__all__ = ["listeners", "processor_seconds"]

LISTEN = "0A"


def listeners(target: str) -> list[int]:
    """The process IDs that listen on the loopback ports of a gRPC target; empty for another machine's, or unreadable.

    A supervisor's processes that share nothing but the port are all found.
    """
    ports = {int(port) for _, port in re.findall(r"(127\.0\.0\.1|localhost|\[::1\]):(\d+)", target)}
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in _lines(Path("/proc/self/net") / table)[1:]:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) in ports:
                inodes.add(f"socket:[{fields[9]}]")
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if inodes & _links(folder / "fd")]


def processor_seconds(processes: list[int]) -> float:
    """User and system seconds that the processes have used so far, their threads included; NaN without a process."""
    ticks = 0
    for process in processes:
        text = "".join(_lines(Path(f"/proc/{process}/stat")))
        if not text:
            return float("nan")
        # The name, in brackets, may hold anything.
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") if processes else float("nan")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _links(folder: Path) -> set[str]:
    """Where the links in a folder lead, without those that went away meanwhile or may not be read."""
    try:
        links = list(folder.iterdir())
    except OSError:
        return set()
    found = set()
    for link in links:
        with suppress(OSError):
            found.add(str(link.readlink()))
    return found
