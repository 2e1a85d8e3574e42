"""When calls may begin, and what `Retry-After` says."""

from __future__ import annotations

import asyncio
import email.utils
import time

import pytest

from gr2.training.teachers.pace import MOST_WAIT, Pace, backoff, retry_after


def test_turns_are_spread_over_the_minute() -> None:
    async def begin() -> list[float]:
        pace, times = Pace(600), []
        for _ in range(4):
            await pace.turn()
            times.append(time.monotonic())
        return times

    times = asyncio.run(begin())
    assert times[3] - times[0] >= 0.3


def test_a_hold_is_for_all_and_the_longest_counts() -> None:
    async def begin() -> float:
        pace = Pace(0)
        pace.hold(0.3)
        pace.hold(0.1)
        began = time.monotonic()
        await asyncio.gather(*(pace.turn() for _ in range(5)))
        return time.monotonic() - began

    assert 0.3 <= asyncio.run(begin()) < 2


def test_back_off_doubles_up_to_its_most_and_differs() -> None:
    for tried in range(1, 12):
        waits = {backoff(tried) for _ in range(50)}
        most = min(0.5 * 2 ** (tried - 1), MOST_WAIT)
        assert len(waits) > 1
        assert most / 2 <= min(waits) <= max(waits) <= most


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("", None), ("nan", None), ("inf", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_retry_after_as_a_date() -> None:
    found = retry_after({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)})
    assert found == pytest.approx(30, abs=2)
    assert retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) == 0.0
    assert retry_after({}) is None
