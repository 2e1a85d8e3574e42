"""Answers kept batch by batch in one file, so that a long evaluation goes on where it was killed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from gr2.artifact import write_atomic
from gr2.errors import ArtifactError
from gr2.models.answering import Answered
from gr2.prompts.answer import AnswerError

__all__ = ["AnswerLog", "Entry"]


@dataclass(frozen=True)
class Entry:
    """An answer to a slate: the candidates' positions, best first, the text, its tokens, and why it was refused."""

    slate: int
    ranking: list[int]
    text: str
    tokens: int
    refused: str | None

    @classmethod
    def of(cls, slate: int, answered: Answered) -> Entry:
        """What is kept of an answer."""
        refused = answered.answer.reason if isinstance(answered.answer, AnswerError) else None
        # Half a surrogate pair, which no file can hold, is what an answer may be refused for.
        text = answered.text.encode(errors="replace").decode()
        return cls(slate, answered.ranking.tolist(), text, len(answered.tokens), refused)


class AnswerLog:
    """The answers to `identity`, one line of JSON a batch, in the file `path`; None keeps them in memory alone.

    A file that was written for another identity is begun anew. A line that a kill left unfinished is dropped. Raises
    ArtifactError on a line that is not an answer.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path = path
        self.batches: list[list[Entry]] = []
        if path is None:
            return
        written = path.read_bytes() if path.exists() else b""
        lines = written[: written.rfind(b"\n") + 1].splitlines(keepends=True)
        if not lines or lines[0] != _line(identity):
            lines = [_line(identity)]
        try:
            self.batches = [[Entry(**entry) for entry in json.loads(line)] for line in lines[1:]]
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path}: not answers written by gr2: {error}; delete it to start again") from error
        write_atomic(path, b"".join(lines))

    def append(self, batch: list[Entry]) -> None:
        """Keep the answers of a batch."""
        self.batches.append(batch)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(_line([asdict(entry) for entry in batch]))
                file.flush()
                os.fsync(file.fileno())


def _line(value: object) -> bytes:
    return (json.dumps(value) + "\n").encode()
