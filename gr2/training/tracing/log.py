"""The log of attempts: every one is on disk before the next is counted, so that no answer is paid for twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from gr2.errors import ArtifactError

__all__ = ["Attempt", "LogWriter", "Verdict", "read_log"]

Verdict = Literal["accepted", "rejected", "refused", "failed"]


@dataclass(frozen=True)
class Attempt:
    """One attempt at the list `row`, and what came of it.

    `prompt` is the SHA-256 of the messages. `verdict` is `accepted`; `rejected`, if the target is not first; `refused`,
    if the answer cannot be used; `failed`, if there is none, in which case it is made again when the stage goes on.
    `why` says more. Tokens are None where the teacher does not say.
    """

    row: int
    attempt: int
    prompt: str
    shown: int
    answer: str | None
    verdict: Verdict
    why: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float
    retries: int

    def settles(self, same: bool) -> bool:
        """Whether an attempt is not to be made where this one was: the `same` one, or a later one at the list."""
        return self.verdict == "accepted" or (same and self.verdict != "failed")

    def line(self, **more: int) -> bytes:
        """The attempt as a line of JSON, with `more` in it."""
        return (json.dumps(more | asdict(self)) + "\n").encode()


class LogWriter:
    """Appends to a segment of a log, which no other process writes to."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / f"attempts-{name}.jsonl").open("xb")

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Return when the attempts are on disk."""
        self._file.write(b"".join(attempt.line() for attempt in attempts))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def read_log(folder: Path, name: str = "*") -> dict[tuple[int, int], Attempt]:
    """The attempts in all segments, or in those whose name matches, by list and number.

    What a kill left of a last line is passed over. An attempt that has an answer is preferred to one that failed.
    Raises ArtifactError if a segment is damaged.
    """
    found: dict[tuple[int, int], Attempt] = {}
    for path in sorted(folder.glob(f"attempts-{name}.jsonl")):
        for attempt in _attempts(path):
            key = attempt.row, attempt.attempt
            if key not in found or found[key].verdict == "failed":
                found[key] = attempt
    return dict(sorted(found.items()))


def _attempts(path: Path) -> Iterable[Attempt]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield Attempt(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ArtifactError(
                f"{path}, line {number}: not an attempt: {error}; delete the line to make the attempt again"
            ) from error
