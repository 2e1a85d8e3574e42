"""Times of calls on a GPU, from Python or as replays of CUDA graphs, and its bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

__all__ = ["Call", "Timer"]

Call = Callable[[], Any]


class Timer:
    """Of the device "cuda"; of "cpu" it stands in for one, without graphs, in a dry run."""

    def __init__(self, device: str) -> None:
        self.device = device

    def seconds(self, call: Call, *, batches: int = 7) -> float:
        """The median of `batches` times of a call, each of as many calls as take some milliseconds."""
        call()
        if self.device == "cpu":
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        count = max(1, min(200, int(4e-3 / _time_of(call, 2))))
        return median(_time_of(call, count) for _ in range(batches))

    def graphed(self, call: Call) -> Call:
        """A replay of what the call starts, as a CUDA graph."""
        if self.device == "cpu":
            return call
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

    def bandwidth(self, numbers: int) -> float:
        """Bytes a second, read and written, of a copy of so many float32 on the device."""
        source = torch.randn(numbers, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / self.seconds(lambda: target.copy_(source))


def _time_of(call: Call, count: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count
