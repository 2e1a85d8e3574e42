"""Asking a teacher about lists, in this process or in the workers of a Ray Data job: both log the same attempts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import Gr2Error
from gr2.models.evidence import evidence_folds
from gr2.prompts.answer import AnswerError, parse_answer
from gr2.prompts.budget import estimated_tokens
from gr2.prompts.render import PromptConfig, render, slate_of
from gr2.prompts.semantic_id import sid_text
from gr2.training.teachers.claims import cited_ids, stray_token
from gr2.training.teachers.endpoint import EndpointTeacher, unwrap
from gr2.training.teachers.evidence import EvidenceTeacher
from gr2.training.teachers.ledger import Ledger
from gr2.training.teachers.scores import EvidenceScores
from gr2.training.teachers.teacher import Message, Reply, Teacher, TeacherRequest
from gr2.training.teachers.titles import Titles
from gr2.training.tracing.log import Attempt, LogWriter, Verdict, read_log
from gr2.training.tracing.settings import TracesConfig

__all__ = ["Desk", "TraceJob"]

TARGETED = "The user's next purchase is known: {target}. Put it first, and explain it without saying that you knew."
# Attempts that are free are made again after a kill rather than each be waited for on disk.
FREE = 256
TRIES = 3


@dataclass(frozen=True)
class TraceJob:
    """What all workers must know: folders and files that they see under the same paths.

    `tokenizer` is the folder of the model whose tokens the prompts' budget is in, "" where there is none yet and they
    are estimated.
    """

    config: TracesConfig
    dataset: str
    codes: str
    level_size: int
    lists: str
    evidence: str
    tokenizer: str
    log: str
    seed: int
    workers: int = 1

    @property
    def desk(self) -> Desk:
        """What they work with, loaded once a process."""
        return _load(self)

    def __call__(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Ask about the `rows` of a task and log it to its `segment`; the answer counts them.

        Ray calls again where a worker died: what that one has logged is not asked again.
        """
        number, segment, folder = task["attempt"], task["segment"], Path(self.log)
        tries = len(list(folder.glob(f"attempts-{segment}-*.jsonl")))
        if tries == TRIES:
            raise Gr2Error(f"{tries} workers died with the lists of {segment}; if memory is short, use fewer workers")
        before = read_log(folder, f"{segment}-*")
        done = [each.verdict for each in before.values() if each.settles(same=True)]
        rows = [row for row in task["rows"] if (row, number) not in before or before[row, number].verdict == "failed"]
        done += [each.verdict for each in self.desk.ask(rows, number, f"{segment}-{tries}")]
        return {"asked": len(done), "accepted": done.count("accepted")}


class Desk:
    """The lists, their prompts, the teacher, and the judge of its answers."""

    def __init__(self, job: TraceJob) -> None:
        self._job, self._config = job, job.config
        self.level_size = job.level_size
        self.dataset = Dataset.load(job.dataset)
        self.codes: NDArray[np.uint16] = np.load(job.codes, allow_pickle=False)
        self.lists = CandidateLists.load(job.lists)
        self.label = self.lists.label()
        self._prompt = PromptConfig.of(job.config)
        self._count = _counter(job.tokenizer) if job.tokenizer else estimated_tokens
        self._teacher = self._make_teacher()
        of_a_model = not isinstance(self._teacher, EvidenceTeacher)
        self._titles = Titles(self.dataset.catalog, shown=job.config.title_words) if of_a_model else None

    def ask(self, rows: Sequence[int], number: int, segment: str) -> Iterator[Attempt]:
        """Attempt `number` at each of the lists `rows`, as they come and are on disk."""
        together = FREE if self._config.teacher == "evidence" else 1
        with LogWriter(Path(self._job.log), segment) as log:
            done: list[Attempt] = []
            for request, reply in self._teacher.answer(self.requests(rows, number)):
                done.append(self.judge(request, reply))
                if len(done) == together:
                    log.append(done)
                    yield from done
                    done = []
            log.append(done)
            yield from done

    def requests(self, rows: Iterable[int], number: int) -> Iterator[TeacherRequest]:
        """The requests of an attempt."""
        for row in rows:
            user, position = int(self.lists.user[row]), int(self.lists.position[row])
            history = self.dataset.history(user, position).tolist()
            slate = slate_of(self.dataset.catalog, self.codes, history, self.candidates(row))
            prompt = render(slate, self._prompt, self._count)
            if self._config.sampling == "rejection":
                yield TeacherRequest(row, number, prompt.messages, prompt.kept)
                continue
            target = int(self.label[row])
            hint = TARGETED.format(target=sid_text(slate.candidates[target].codes))
            yield TeacherRequest(row, number, _with_hint(prompt.messages, hint), prompt.kept, target)

    def candidates(self, row: int) -> list[int]:
        """A list's items, in incoming order."""
        items = self.lists.candidates[row]
        kept: list[int] = items[items != PADDING].tolist()
        return kept

    def judge(self, request: TeacherRequest, reply: Reply) -> Attempt:
        """The attempt with its verdict."""
        verdict, why = self._verdict(request, reply)
        return Attempt(
            row=request.row,
            attempt=request.attempt,
            prompt=hashlib.sha256(json.dumps(request.messages, ensure_ascii=False).encode()).hexdigest(),
            shown=request.shown,
            answer=reply.text,
            verdict=verdict,
            why=why,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cost=reply.cost,
            retries=reply.retries,
        )

    def _verdict(self, request: TeacherRequest, reply: Reply) -> tuple[Verdict, str]:
        if reply.reason is not None or reply.text is None:
            why = f"{reply.reason}: {reply.detail}" if reply.detail else str(reply.reason)
            return ("refused" if reply.final else "failed"), why
        candidates = [tuple(self.codes[item].tolist()) for item in self.candidates(request.row)]
        try:
            answer = parse_answer(
                unwrap(reply.text), candidates, level_size=self.level_size, reasoning=self._config.reasoning
            )
        except AnswerError as error:
            return "refused", str(error)
        untrue = self._untrue(request, answer.explanation)
        if untrue is not None:
            return "refused", untrue
        rank = answer.ranking.index(int(self.label[request.row])) + 1
        return ("accepted", "") if rank == 1 else ("rejected", f"target at {rank}")

    def _untrue(self, request: TeacherRequest, explanation: str) -> str | None:
        """What an explanation cites that the data does not hold, None if there is nothing.

        Of a language model's words the IDs and the titles can be checked, of the evidence teacher's every claim.
        """
        row, shown = request.row, request.shown
        user, position = int(self.lists.user[row]), int(self.lists.position[row])
        items = [*self.dataset.history(user, position)[position - shown :].tolist(), *self.candidates(row)]
        ids = {sid_text(self.codes[item].tolist()): item for item in items}
        unknown = set(cited_ids(explanation)) - set(ids)
        if unknown:
            return f"unknown-citation: {min(unknown)} is neither in the history nor among the candidates"
        stray = stray_token(explanation)
        if stray is not None:
            return f"stray-token: {stray} would end the turn, or pass for an item, where the explanation is learnt from"
        if self._titles is not None:
            return self._titles.untrue(explanation, ids)
        if isinstance(self._teacher, EvidenceTeacher) and self._config.reasoning:
            return (
                None if self._teacher.holds(row, explanation, shown) else "untrue: a claim that the data does not hold"
            )
        return None

    def _make_teacher(self) -> Teacher:
        config, seed = self._config, self._job.seed
        if config.teacher == "endpoint":
            return EndpointTeacher(config.endpoint(temperature=config.temperature, workers=self._job.workers))
        if config.teacher == "local":
            from gr2.training.teachers.local import LocalTeacher

            return LocalTeacher(
                Path(config.model),
                batch=config.batch,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                seed=seed,
            )
        with np.load(self._job.evidence, allow_pickle=False) as stored:
            evidence = EvidenceScores(stored["scores"], stored["shares"])
        return EvidenceTeacher(
            Ledger(self.dataset, self.codes, shown=config.title_words),
            self.lists,
            evidence,
            evidence_folds(self.dataset.users, config.folds, seed),
            config.temperature,
            seed,
            config.reasoning,
        )


@lru_cache(maxsize=1)
def _load(job: TraceJob) -> Desk:
    return Desk(job)


def _counter(folder: str) -> Callable[[Sequence[Message]], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def count(messages: Sequence[Message]) -> int:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _with_hint(messages: tuple[Message, ...], hint: str) -> tuple[Message, ...]:
    *before, last = messages
    return (*before, last | {"content": f"{last['content']}\n\n{hint}"})
