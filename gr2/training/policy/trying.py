"""Learning by trying, as the stages share it: lists in; a model, the figures of every step, and rankings out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.answering import Answering, Writer
from gr2.models.reasoner import Reasoner, SidSpec
from gr2.prompts.render import PromptConfig
from gr2.training.loop.optimisation import threads
from gr2.training.loop.workers import TRAIN, Workers, follow_first
from gr2.training.policy.list_rollouts import ListRollouts, Worth
from gr2.training.policy.monitors import CopyGuard, monitor
from gr2.training.policy.rewards import GRADED, balance_weights, reward
from gr2.training.policy.training import STEPS, ends, steps_table, train_policy, training_lists
from gr2.training.policy.trying_settings import TryingConfig
from gr2.training.reasoner.contexts import Contexts, context_sources, context_stages, load_contexts
from gr2.training.reasoner.reranking import list_slates
from gr2.training.reasoner.split_ranks import rank_splits, refuse_missing_splits

__all__ = ["Teacher", "Trying", "read_by"]


def read_by(config: TryingConfig, start: str) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return tuple(dict.fromkeys(("prepare", "tokenize", config.lists, start, *context_stages(config))))


@dataclass(frozen=True)
class Teacher:
    """A frozen reasoner in a folder outside of the run, and that folder's files by the names that parents have."""

    folder: Path
    files: Mapping[str, Path]

    def load(self, student: Reasoner) -> PreTrainedModel:
        """Its model. Raises ConfigError if it does not speak of the same tokens, ArtifactError if it is no reasoner."""
        teacher = Reasoner.load(self.folder, sids=student.sids)
        if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
            raise ConfigError(
                f"{self.folder}: the teacher's tokenizer has {len(teacher.tokenizer):,} tokens which are not the "
                f"{len(student.tokenizer):,} of the student: both must come from one midtrain vocabulary"
            )
        return teacher.model


@dataclass(frozen=True, eq=False)
class Trying:
    """A stage that learns by trying, before it begins: the model of the stage `start` is what learns.

    Its recipe's divergence is from the teacher or, without one, from the start.
    """

    stage: str
    config: TryingConfig
    artifacts: Mapping[str, Artifact]
    seed: int
    start: str
    teacher: Teacher | None = None

    def learn(self, out: Path) -> Artifact:
        """The stage's artefact in the folder `out`.

        It holds `model/` (see `Reasoner`), `steps.parquet` (a row a step, see `monitor`), `ranks.parquet` of the test
        lists and `ranks-val.parquet` (see `evaluate_reasoner`), of the start, too, where that is asked for, and what a
        tracker kept in `logs/`. Raises DataError if no training list holds its target, Gr2Error if the training
        diverges or collapses to copying.
        """
        config, artifacts = self.config, self.artifacts
        parents = {name: artifacts[name].digest for name in read_by(config, self.start)}
        files = context_sources(config) | ({} if self.teacher is None else dict(self.teacher.files))
        parents |= {name: file_digest(path) for name, path in files.items()}
        with open_stage(out, self.stage, config, parents, self.seed) as work, threads(config.threads):
            began = time.monotonic()
            refuse_missing_splits(self.stage, config, artifacts[config.lists])
            lesson = self._lesson()
            workers = Workers()
            # Before the start is evaluated, which takes long.
            config.recipe().refuse(len(lesson.lists), workers.count)
            ranked: dict[str, Any] = {"lists": artifacts[config.lists], "work": work, "constrained": config.constrained}
            ranked["contexts"] = lesson.contexts
            if config.evaluate_start:
                if torch.cuda.is_available():
                    lesson.reasoner.model.to("cuda")  # type: ignore[arg-type]
                rank_splits(config, lesson.reasoner, lesson.dataset, lesson.codes, label="start", **ranked)
            workers.agree(TRAIN)
            history = self._train(lesson, work.checkpoints)
            work.metrics |= {"processes": workers.count, "lists": len(lesson.lists), **ends(history)}
            workers.end()
            lesson.reasoner.save(work.path / "model")
            pq.write_table(steps_table(history), work.path / STEPS)
            if (work.checkpoints / "logs").is_dir():
                shutil.copytree(work.checkpoints / "logs", work.path / "logs")
            work.metrics["train_seconds"] = time.monotonic() - began
            rank_splits(config, lesson.reasoner, lesson.dataset, lesson.codes, **ranked)
            work.metrics["total_seconds"] = time.monotonic() - began
        return Artifact.load(out, self.stage)

    def follow(self, out: Path) -> None:
        """What the other processes of a launch do while the first is in `learn`; see `follow_first`."""
        follow_first(out, self.config.threads, lambda _, checkpoints: self._train(self._lesson(), checkpoints))

    def _lesson(self) -> _Lesson:
        reasoner = _reasoner(self.artifacts, self.start)
        anchor = None
        if self.config.recipe().kl:
            found = self.teacher
            anchor = _reasoner(self.artifacts, self.start).model if found is None else found.load(reasoner)
        return _Lesson(
            reasoner,
            anchor,
            Dataset.load(self.artifacts["prepare"].path),
            self.artifacts["tokenize"].array("codes.npy"),
            training_lists(self.config, self.artifacts[self.config.lists], self.seed),
            load_contexts(self.config, self.artifacts),
        )

    def _train(self, lesson: _Lesson, checkpoints: Path) -> list[dict[str, float]]:
        """Train from the last checkpoint, or from the start; the figures of each step, the same in every process."""
        guard = CopyGuard(self.config.copy_limit, self.config.copy_patience)

        def watch(outcomes: Sequence[Any], before: Sequence[Mapping[str, float]]) -> dict[str, float]:
            figures = monitor(outcomes)
            guard.check(figures, before)
            return figures

        return train_policy(
            self.stage,
            self.config,
            lesson.reasoner,
            checkpoints,
            self.seed,
            tasks=len(lesson.lists),
            draw=lesson.rollouts(self.config),
            watch=watch,
            anchor=lesson.anchor,
        )


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Who learns from what; `anchor` is the frozen model that the recipe's divergence is from."""

    reasoner: Reasoner
    anchor: PreTrainedModel | None
    dataset: Dataset
    codes: NDArray[np.uint16]
    lists: CandidateLists
    contexts: Contexts | None

    def rollouts(self, config: TryingConfig) -> ListRollouts:
        """How answers are drawn."""
        return ListRollouts(
            self.reasoner,
            list_slates(self.dataset, self.codes, self.lists, self.contexts),
            _grades(self.lists),
            PromptConfig.of(config),
            _asking(config),
            _worth(config, self.lists),
            shuffle=config.shuffle,
            writer=_writer(config, self.reasoner) if config.engine == "vllm" else None,
        )


def _reasoner(artifacts: Mapping[str, Artifact], start: str) -> Reasoner:
    return Reasoner.load(artifacts[start].file("model"), sids=SidSpec.of(artifacts["tokenize"]))


def _writer(config: TryingConfig, reasoner: Reasoner) -> Writer:
    # TRL's use of vLLM is imported by those who ask for it alone.
    from accelerate import Accelerator

    from gr2.training.policy.vllm_explanations import VllmExplanations

    return VllmExplanations(reasoner, AnswerGrammar(reasoner), Accelerator(), memory=config.engine_memory)


def _asking(config: TryingConfig) -> Answering:
    return Answering(
        constrained=config.constrained,
        reasoning=config.reasoning,
        max_reasoning=config.max_reasoning,
        batch=config.answer_batch,
        temperature=config.temperature,
        samples=config.samples,
    )


def _grades(lists: CandidateLists) -> list[tuple[int, ...]]:
    """The grades of each list's candidates, without the padding."""
    kept = lists.candidates != PADDING
    grades = lists.candidates == lists.target[:, None] if lists.grades is None else lists.grades
    return [tuple(row[own].astype(int).tolist()) for row, own in zip(grades, kept, strict=True)]


def _worth(config: TryingConfig, lists: CandidateLists) -> Worth:
    if config.balance and config.reward in GRADED and lists.grades is not None and (lists.grades > 0).sum(1).max() > 1:
        raise ConfigError(
            f"balance weighs lists by the place of one target, but reward = {config.reward!r} pays for several and the "
            "lists have them: set balance = false, or reward = 'default', which looks at the best alone"
        )
    weights = balance_weights(lists.label(), lists.width) if config.balance else None
    named = reward(config.reward, config.format_bonus)
    return Worth(named, weights, config.overlong_tokens, config.overlong_penalty)
