"""Judges of shortened contexts: a frozen reasoner that ranks from them, or a language model that is asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gr2.errors import ArtifactError, Gr2Error
from gr2.prompts.render import PromptConfig, Slate, history_lines
from gr2.prompts.verdict import Verdict, VerdictError, parse_verdict, verdict_messages
from gr2.training.compression.ranking import Ranker
from gr2.training.policy.rewards import rank_of
from gr2.training.reasoner.reranking import kendall_tau
from gr2.training.teachers.endpoint import unwrap
from gr2.training.teachers.teacher import Teacher, TeacherRequest

__all__ = ["Case", "Judge", "ReasonerJudge", "TeacherJudge", "VerdictLog"]

Context = tuple[str, ...]
UNREADABLE = 50  # replies in a row that are no verdict: a judge who says nothing else teaches nothing


@dataclass(frozen=True)
class Case:
    """A context of the history of task `task`, whose lines, oldest first, these are."""

    task: int
    context: Context


class Judge(Protocol):
    """Whoever says what contexts are worth."""

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """A verdict a case, None where there is none. Raises Gr2Error where going on is useless."""


class ReasonerJudge:
    """The verifiable judge: task n is slate n, whose target came in at place `targets[n]` (R,).

    With the target's rank r_in in the incoming order, r_full from the whole history and r from the context,

        solvable     r_full <= r_in: the reasoner makes something of the whole history
        preservation (1 + tau) / 2, tau Kendall's between the rankings from the context and from the history
        quality      1 / log2(1 + r): the NDCG of the one target
    """

    def __init__(self, ranker: Ranker, slates: Sequence[Slate], targets: NDArray[np.int64]) -> None:
        self._ranker, self._slates, self._targets = ranker, slates, targets
        self._whole: dict[int, tuple[int, ...]] = {}

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """A verdict a case; equal cases are judged once."""
        tasks = sorted({case.task for case in cases} - self._whole.keys())
        different = list(dict.fromkeys(cases))
        slates = [self._slates[task] for task in tasks]
        slates += [replace(self._slates[case.task], context=case.context) for case in different]
        rankings = self._ranker.rank(slates)
        self._whole |= dict(zip(tasks, rankings[: len(tasks)], strict=True))
        found = dict(zip(different, rankings[len(tasks) :], strict=True))
        return [self._verdict(case.task, found[case]) for case in cases]

    def _verdict(self, task: int, ranking: tuple[int, ...]) -> Verdict:
        target, whole = int(self._targets[task]), self._whole[task]
        place = {candidate: number for number, candidate in enumerate(whole)}
        tau = kendall_tau([place[candidate] for candidate in ranking])
        quality = 1 / float(np.log2(1 + rank_of(ranking, target)))
        return Verdict(rank_of(whole, target) <= target + 1, (1 + tau) / 2, quality)


class VerdictLog:
    """Replies that were paid for, by a hash of the question, one line of JSON each: none is asked for twice.

    A line that a kill left unfinished is dropped. Raises ArtifactError on a line that is not a verdict.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if whole != written:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        self.found: dict[str, dict[str, Any]] = {}
        try:
            for line in whole.splitlines():
                entry = json.loads(line)
                self.found[entry.pop("question")] = {"verdict": entry["verdict"], "why": entry["why"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not verdicts written by gr2: {error}; delete it to start again") from error

    def add(self, question: str, verdict: Verdict | None, why: str, **more: Any) -> None:
        """Keep a reply."""
        self.found[question] = {"verdict": None if verdict is None else asdict(verdict), "why": why}
        with self._path.open("ab") as file:
            file.write((json.dumps({"question": question, **self.found[question], **more}) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


class TeacherJudge:
    """A language model that is asked for verdicts, through whatever answers for a teacher.

    Task n is slate n with its target at place `targets[n]`. A reply that does not parse, or did not come, is no
    verdict; those that were paid for are kept in `log` and not asked for again. After `UNREADABLE` in a row that do
    not parse, asking for more is useless.
    """

    def __init__(
        self, teacher: Teacher, slates: Sequence[Slate], targets: NDArray[np.int64], prompt: PromptConfig, log: Path
    ) -> None:
        self._teacher, self._slates, self._targets, self._prompt = teacher, slates, targets, prompt
        self._log = VerdictLog(log)
        self._unreadable = 0

    def verdicts(self, cases: Sequence[Case]) -> list[Verdict | None]:
        """A verdict a case; equal cases are asked about once. Raises Gr2Error if the judge gives no verdicts."""
        questions = {case: self._request(row, case) for row, case in enumerate(dict.fromkeys(cases))}
        keys = {case: _key(request) for case, request in questions.items()}
        missing = {request.row: keys[case] for case, request in questions.items() if keys[case] not in self._log.found}
        asked = [request for request in questions.values() if request.row in missing]
        for request, reply in self._teacher.answer(asked):
            verdict, why = None, reply.reason or ""
            if reply.reason is None:
                try:
                    verdict = parse_verdict(unwrap(reply.text or ""))
                except VerdictError as error:
                    why = str(error)
            if reply.final:
                tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
                self._log.add(missing[request.row], verdict, why, cost=reply.cost, **tokens)
                self._refuse_babble(verdict, why)
        stored = [self._log.found.get(keys[case], {}).get("verdict") for case in cases]
        return [None if each is None else Verdict(**each) for each in stored]

    def _refuse_babble(self, verdict: Verdict | None, why: str) -> None:
        self._unreadable = self._unreadable + 1 if verdict is None else 0
        if self._unreadable >= UNREADABLE:
            raise Gr2Error(
                f"{UNREADABLE} replies of the judge in a row were no verdicts, the last one because of {why}; ask a "
                "model that can answer in JSON, or raise max_tokens"
            )

    def _request(self, row: int, case: Case) -> TeacherRequest:
        slate = self._slates[case.task]
        history = history_lines(replace(slate, context=None), self._prompt)
        messages = verdict_messages(
            history,
            case.context,
            slate.candidates,
            int(self._targets[case.task]),
            title_words=self._prompt.title_words,
        )
        return TeacherRequest(row, 0, messages, len(history))


def _key(request: TeacherRequest) -> str:
    return hashlib.sha256(json.dumps(list(request.messages)).encode()).hexdigest()
