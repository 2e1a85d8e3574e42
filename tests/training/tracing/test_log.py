"""The log of attempts after kills of all kinds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gr2.errors import ArtifactError
from gr2.training.tracing.log import Attempt, LogWriter, read_log

ATTEMPT = Attempt(0, 0, "ab", 3, "yes", "accepted", "", 10, 5, 0.5, 1)


def write(folder: Path, name: str, *attempts: Attempt) -> None:
    with LogWriter(folder, name) as log:
        for attempt in attempts:
            log.append([attempt])


def test_what_was_appended_is_read_in_the_order_of_lists(tmp_path: Path) -> None:
    later = replace(ATTEMPT, row=1, answer='line\nbreak "quoted" é \u2028')
    write(tmp_path, "000000", later, replace(ATTEMPT, attempt=1))
    write(tmp_path, "000001", ATTEMPT)
    assert list(read_log(tmp_path).values()) == [ATTEMPT, replace(ATTEMPT, attempt=1), later]


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "000000", ATTEMPT, replace(ATTEMPT, row=1))
    path = tmp_path / "attempts-000000.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert list(read_log(tmp_path).values()) == [ATTEMPT]


def test_an_attempt_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "000000") as log:
        log.append([ATTEMPT])
        assert list(read_log(tmp_path).values()) == [ATTEMPT]


def test_an_answer_takes_the_place_of_a_failure_and_nothing_else_does(tmp_path: Path) -> None:
    failed = replace(ATTEMPT, verdict="failed", answer=None)
    write(tmp_path, "000000", failed)
    assert list(read_log(tmp_path).values()) == [failed]
    write(tmp_path, "000001", ATTEMPT)
    write(tmp_path, "000002", replace(ATTEMPT, answer="another"), failed)
    assert list(read_log(tmp_path).values()) == [ATTEMPT]


@pytest.mark.parametrize("line", [b"nonsense", b"{}", b'{"row": 1}', b"[1]", b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, "000000", ATTEMPT)
    with (tmp_path / "attempts-000000.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ArtifactError, match=r"attempts-000000\.jsonl, line 2: not an attempt"):
        read_log(tmp_path)


def test_no_segment_is_written_twice(tmp_path: Path) -> None:
    write(tmp_path, "000000", ATTEMPT)
    with pytest.raises(FileExistsError):
        LogWriter(tmp_path, "000000")
