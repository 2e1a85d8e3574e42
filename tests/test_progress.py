"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import os
import pty
import threading

import pytest

from gr2 import progress
from gr2.progress import track


def test_log_has_one_final_line_for_a_short_loop(capsys: pytest.CaptureFixture[str]) -> None:
    with track(3, "learn codes", unit="epoch") as bar:
        for epoch in range(3):
            bar.advance(1, loss=1 / (1 + epoch))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "learn codes: 3/3 epoch, 0:00 spent, loss 0.3333\n"


def test_log_has_a_line_an_interval_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with track(6, "train", unit="epoch", start=2) as bar:
        for _ in range(4):
            bar.advance(recall=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 4/6 epoch, 0:12 spent, 0:12 left, recall 0.5",
        "train: 6/6 epoch, 0:24 spent, 0:00 left, recall 0.5",
        "train: 6/6 epoch, 0:30 spent, recall 0.5",
    ]


def test_unknown_total_counts_up(capsys: pytest.CaptureFixture[str]) -> None:
    with track(None, "read", unit="row") as bar:
        bar.advance(12_345)
    assert capsys.readouterr().err.startswith("read: 12,345 row, ")


def test_an_exception_passes_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), track(3, "train"):
        raise KeyError("x")
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar_and_leaves_no_thread() -> None:
    parent, child = pty.openpty()
    threads = threading.active_count()
    with os.fdopen(child, "w", encoding="utf-8") as terminal:
        with track(2, "train", unit="epoch", stream=terminal) as bar:
            assert threading.active_count() == threads
            bar.advance(2, loss=0.25)
        terminal.flush()
        shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert threading.active_count() == threads
    assert "train" in shown
    assert "2/2" in shown
    assert "loss 0.25" in shown


def test_a_stream_that_is_no_terminal_gets_no_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with track(1, "train", stream=stream) as bar:
        bar.advance()
    assert stream.getvalue() == "train: 1/1 step, 0:00 spent\n"
    assert capsys.readouterr().err == ""
