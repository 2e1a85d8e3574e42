"""The process's heap, as far as glibc lets it be told; other C libraries do these things by themselves."""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_memory_back", "share_arenas"]

M_ARENA_MAX = -8


def share_arenas() -> None:
    """Let all threads share as many arenas as there are cores; to be called before the first of them starts.

    By default there are eight times as many. Memory that was freed in one is of no use in another, so that what threads
    hand to each other, as encoded histories, would take its bound in each. The packages that the server imports start
    threads. MALLOC_ARENA_MAX in the environment goes before.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, len(os.sched_getaffinity(0)))


def give_memory_back() -> None:
    """Return free memory to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
