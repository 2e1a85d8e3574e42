"""What is left to say of a step whose latencies are not reported."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from gr2.load.job import Calls
from gr2.load.step import Step
from gr2.load.summary import Summary, summarize
from gr2.load.table import load_table


def refused() -> Summary:
    """Of a sender that was late, to a server of which half the calls found nothing."""
    due = np.arange(10) * 50_000_000
    code = np.array([0, 14] * 5, dtype=np.int8)
    given = Calls(due, due + 40_000_000, due + 50_000_000, code, np.zeros(10, dtype=np.bool_), 0.1, [])
    return summarize(Step(rate=20, seconds=0.5, warmup=0), given, server_seconds=0.0, processors=1)


def test_a_refused_step_says_what_failed_too() -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(load_table([refused()], "here"))
    text = " ".join(console.file.getvalue().split())
    assert "sent 40.0 ms late" in text
    assert "5 UNAVAILABLE" in text
