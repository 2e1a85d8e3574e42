"""Times of calls on a GPU, from Python or as replays of CUDA graphs, and its bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

__all__ = ["Call", "bandwidth", "graphed", "seconds"]

Call = Callable[[], Any]


def seconds(call: Call, *, batches: int = 7) -> float:
    """The median of `batches` times of a call, each of as many calls as take some milliseconds."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def time_of(count: int) -> float:
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / count

    call()
    count = max(1, min(200, int(4e-3 / time_of(2))))
    return median(time_of(count) for _ in range(batches))


def graphed(call: Call) -> Call:
    """A replay of what the call starts, as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def bandwidth() -> float:
    """Bytes a second, read and written, of a copy on the device."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))
