"""What a process with few arenas takes: what one thread frees, others use."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each of many threads fills 16 MB and frees it, one after the other, while all of them live.
PROGRAM = """
import ctypes, os, sys, threading
from gr2.serving.models.heap import share_arenas

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if sys.argv[1] == "shared":
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
gates = [threading.Event() for _ in range(17)]

def work(at):
    gates[at].wait()
    blocks = [libc.malloc(25_000) for _ in range(640)]
    for block in blocks:
        ctypes.memset(block, 1, 25_000)
    pinned = blocks[::40]
    for block in blocks:
        if block not in pinned:
            libc.free(block)
    gates[at + 1].set()
    over.wait()

over = threading.Event()
threads = [threading.Thread(target=work, args=(at,)) for at in range(16)]
for thread in threads:
    thread.start()
gates[0].set()
gates[16].wait()
print(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
over.set()
"""


def resident(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_threads_use_what_others_freed() -> None:
    assert resident("shared") < resident("apart") - 50_000  # kilobytes
