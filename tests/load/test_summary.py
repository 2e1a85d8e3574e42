"""Latencies count from when requests were due, and a slow sender is found out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gr2.load.frames import read_frames, write_frames
from gr2.load.job import EXPIRED, Calls, Job
from gr2.load.step import Generator, Step
from gr2.load.summary import obstacle, summarize
from gr2.v1 import reranker_pb2

MS = 1_000_000


def calls(due: list[float], sent: list[float], done: list[float], code: list[int], *, crowded: bool = False) -> Calls:
    columns = [np.array(column) * MS for column in (due, sent, done)]
    timings = reranker_pb2.Timings(parse_ns=100, model_ns=700, total_ns=1000)
    reply = reranker_pb2.RerankResponse(timings=timings).SerializeToString()
    flags = np.full(len(due), crowded)
    return Calls(*(c.astype(np.int64) for c in columns), np.array(code, dtype=np.int8), flags, 0.1, [reply])


def test_latency_counts_from_the_due_time_and_warm_up_is_left_out() -> None:
    step = Step(rate=4, seconds=1, warmup=0.1, deadline=0.2)
    given = calls([50, 100, 200, 300, 400], [50, 100, 600, 300, 400], [900, 110, 610, 340, 500], [0, 0, 0, 0, 8])
    found = summarize(step, given, server_seconds=0.003, processors=1)
    assert found.calls == 4
    assert found.codes == {"OK": 3, "RESOURCE_EXHAUSTED": 1}
    assert found.latency["p50"] == 40
    assert found.latency["max"] == 410
    assert (found.throughput, found.goodput, found.in_time) == (3, 2, 2)
    assert found.server_cpu == pytest.approx(1000)
    assert found.phases == pytest.approx(
        {"queue": 0, "parse": 0.1, "lookup": 0, "trie": 0, "model": 0.7, "rank": 0, "other": 0.2}
    )
    json.dumps(found.record(), allow_nan=False)


def test_answers_in_time_are_counted_from_the_start() -> None:
    given = calls([50, 60, 200, 300], [50, 60, 200, 300], [100, 900, 220, 320], [0, 0, 0, 8])
    found = summarize(Step(rate=4, seconds=1, warmup=0.1, deadline=0.2), given, server_seconds=0.0, processors=1)
    assert (found.calls, found.in_time) == (2, 2)


def test_a_step_without_answers_has_a_record() -> None:
    given = calls([200], [900], [900], [EXPIRED], crowded=True)
    found = summarize(Step(rate=1, seconds=1, warmup=0), given, server_seconds=float("nan"), processors=1)
    assert found.codes == {"EXPIRED_UNSENT": 1}
    assert found.record()["latency"]["p50"] is None


@pytest.mark.parametrize(
    ("step", "latency", "late", "busy", "said"),
    [
        (Step(rate=100), 20.0, 1.0, 0.5, ""),
        (Step(rate=100), 20.0, 6.0, 0.5, "6.0 ms late"),
        (Step(rate=100), 1.0, 2.5, 0.5, "2.5 ms late"),
        (Step(concurrency=8), 20.0, 50.0, 0.5, ""),
        (Step(concurrency=8), 20.0, 0.0, 0.95, "95 %"),
    ],
)
def test_a_sender_that_is_late_or_busy_is_named(
    step: Step, latency: float, late: float, busy: float, said: str
) -> None:
    assert said in obstacle(step, latency, late, busy)
    assert bool(said) == bool(obstacle(step, latency, late, busy))


def test_arrivals_are_poisson_and_differ_between_processes() -> None:
    gaps = []
    for place in range(2):
        due = Job("", "", place, 2, 500.0, 1, 1, 1.0, 19.0, 1.0, [], 1, 0).due()
        assert due[-1] < 20e9
        assert abs(len(due) - 10_000) < 5 * 100
        gaps.append(np.diff(due) / 1e6)
    assert gaps[0][:100].tolist() != gaps[1][:100].tolist()
    for each in gaps:
        assert each.mean() == pytest.approx(2.0, rel=0.05)
        # The standard deviation of exponential gaps is their mean.
        assert each.std() == pytest.approx(each.mean(), rel=0.06)


def test_callers_are_shared_out_and_slots_hold_a_deadlines_worth() -> None:
    assert Generator(3).slots_for(Step(concurrency=8)) == [3, 3, 2]
    assert Generator(2).slots_for(Step(rate=200, deadline=0.5)) == [68, 68]


def test_frames_come_back(tmp_path) -> None:
    messages = [b"", b"a", bytes(range(256)) * 300]
    write_frames(tmp_path / "frames", messages)
    assert read_frames(tmp_path / "frames") == messages
