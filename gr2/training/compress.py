"""The stage `compress`: a model learns to shorten histories so that a reasoner ranks as well from what is left.

1. The model of `start` learns a simple selection of each training list's history (`warm`), so that trying finds
   something to learn from.
2. It learns by trying (DAPO), with a judge's reward (see `context_reward`).
3. The contexts of all lists are made once and kept, for the stages whose prompts ask for them (`compressor`), and the
   reasoner ranks test lists from them, from the whole histories, and from histories shortened without a model.

The technical report's compressor is a large model that writes freely (`form = "free"`). A model of a few million
weights does not learn to summarise from a reward, so by default it chooses among the lines that there are.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from peft import PeftModel

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError
from gr2.models.answering import Answering
from gr2.models.compressing import Compressor
from gr2.models.reasoner import Reasoner, SidSpec
from gr2.models.selection import selection_tokens
from gr2.prompts.context import Passage, covering, newest
from gr2.prompts.render import PromptConfig, Slate
from gr2.training.compression.judge import Judge, ReasonerJudge, TeacherJudge
from gr2.training.compression.making import make_contexts
from gr2.training.compression.quality import rank_contexts
from gr2.training.compression.ranking import AnswerRanker, LikelihoodRanker, Ranker
from gr2.training.compression.rollouts import ContextRollouts, ContextWorth, context_monitor
from gr2.training.compression.settings import CompressConfig
from gr2.training.language.weighted import PROMPT, RANKING, Example, weighted_trainer
from gr2.training.loop.capacity import context_length
from gr2.training.loop.optimisation import in_bfloat16, threads
from gr2.training.loop.resumable import epoch_means
from gr2.training.loop.workers import TRAIN, Workers, follow_first, leave
from gr2.training.policy.training import STEPS, ends, steps_table, train_policy, training_lists
from gr2.training.reasoner.contexts import CONTEXTS
from gr2.training.reasoner.reranking import list_slates
from gr2.training.teachers.endpoint import EndpointTeacher
from gr2.training.teachers.local import LocalTeacher

__all__ = ["CompressConfig", "follow", "inputs", "leave", "run", "sources"]

WARM = {"covering": covering, "newest": newest}
SPLITS = ("train", "val", "test")


def inputs(config: CompressConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return tuple(dict.fromkeys(("prepare", "tokenize", config.lists, config.start, config.reasoner)))


def sources(config: CompressConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: those of a local judge. Raises ConfigError if there are none."""
    files = config.judge_files()
    if config.judge == "local" and not files:
        raise ConfigError(f"[compress] model: no such folder: {config.model} (paths are relative to {Path.cwd()})")
    return files


def run(config: CompressConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `model/` (see `Reasoner`), `contexts.parquet` (see `Contexts`), `steps.parquet` (a row a step, see
    `context_monitor`), and the rankings of `rank_contexts`.

    Raises DataError if no training list holds its target, Gr2Error if the training diverges or the judge is gone.
    """
    parents = {name: artifacts[name].digest for name in inputs(config)}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "compress", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        lesson = _Lesson.of(config, artifacts, seed)
        workers = Workers()
        workers.agree(TRAIN)
        history, warm = _train(config, lesson, work.checkpoints, seed)
        work.metrics |= {"processes": workers.count, "lists": len(lesson.slates), "warm": warm, **ends(history)}
        workers.end()
        lesson.compressor.save(work.path / "model")
        pq.write_table(steps_table(history), work.path / STEPS)
        if (work.checkpoints / "policy" / "logs").is_dir():
            shutil.copytree(work.checkpoints / "policy" / "logs", work.path / "logs")
        work.metrics["train_seconds"] = time.monotonic() - began
        contexts = make_contexts(
            Compressor(lesson.compressor, PromptConfig.of(config), config.compressing(sampling=False)),
            lesson.dataset,
            lesson.codes,
            {split: _held(config, artifacts[config.lists], split) for split in SPLITS},
            checkpoints=work.checkpoints,
            seed=seed & 0xFFFF_FFFF,
        )
        contexts.save(work.path / CONTEXTS)
        work.metrics["contexts"] = contexts.cost(list(contexts.found))
        rank_contexts(config, lesson.reasoner, lesson.dataset, lesson.codes, artifacts[config.lists], contexts, work)
        work.metrics["total_seconds"] = time.monotonic() - began
    return Artifact.load(out, "compress")


def follow(config: CompressConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `follow_first`."""

    def train(_: Workers, checkpoints: Path) -> None:
        _train(config, _Lesson.of(config, artifacts, seed), checkpoints, seed)

    follow_first(out, config.threads, train)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Who learns to shorten which histories, and who ranks from what is left; `targets` are places in the slates."""

    compressor: Reasoner
    reasoner: Reasoner
    dataset: Dataset
    codes: NDArray[np.uint16]
    slates: Sequence[Slate]
    targets: NDArray[np.int64]

    @classmethod
    def of(cls, config: CompressConfig, artifacts: Mapping[str, Artifact], seed: int) -> _Lesson:
        dataset, codes = Dataset.load(artifacts["prepare"].path), artifacts["tokenize"].array("codes.npy")
        sids = SidSpec.of(artifacts["tokenize"])
        compressor, reasoner = (
            Reasoner.load(artifacts[stage].file("model"), sids=sids) for stage in (config.start, config.reasoner)
        )
        lists = training_lists(config, artifacts[config.lists], seed)
        # A user's first event has no history to shorten.
        lists = lists.take(lists.position > 0)
        return cls(compressor, reasoner, dataset, codes, list_slates(dataset, codes, lists), lists.label())


def _train(
    config: CompressConfig, lesson: _Lesson, checkpoints: Path, seed: int
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train from the last checkpoint, or from the start: the figures of each step, and those of the warm start."""
    compressor = Compressor(lesson.compressor, PromptConfig.of(config), config.compressing(sampling=True))
    passages = [compressor.passage(slate.history) for slate in lesson.slates]
    _refuse_long_passages(config, compressor, passages)
    warm = _warm_up(config, compressor, passages, checkpoints / "warm", seed)
    rank = PartialState().process_index
    draw = ContextRollouts(
        compressor,
        passages,
        _judge(config, lesson, checkpoints / f"verdicts-{rank}.jsonl", seed),
        ContextWorth(config.alpha, config.penalty),
    )
    history = train_policy(
        "compress",
        config,
        lesson.compressor,
        checkpoints / "policy",
        seed,
        tasks=len(passages),
        draw=draw,
        watch=lambda outcomes, _: context_monitor(outcomes),
        anchor=copy.deepcopy(lesson.compressor.model) if config.kl else None,
    )
    return history, warm


def _refuse_long_passages(config: CompressConfig, compressor: Compressor, passages: Sequence[Passage]) -> None:
    """Raise ConfigError if the compressor cannot read a history and write its context at once."""
    context = context_length(compressor.reasoner.model)
    longest = max(len(compressor.prompt(each)) + each.budget(config.share) + 1 for each in passages)
    if context is not None and longest > context:
        raise ConfigError(
            f"[compress] max_history: {config.max_history} events and their context take up to {longest:,} tokens, "
            f"more than the {context:,} that the model can read; lower max_history or title_words"
        )


def _warm_up(
    config: CompressConfig, compressor: Compressor, passages: Sequence[Passage], checkpoints: Path, seed: int
) -> dict[str, Any]:
    """Fine-tune the compressor on selections made without a model; the losses."""
    if config.warm == "none":
        return {}
    reasoner = compressor.reasoner
    dtype, weights = reasoner.model.dtype, _module(reasoner)
    weights.to(dtype=dtype if config.lora_rank else torch.float32)
    trainer = weighted_trainer(
        reasoner.model,
        reasoner.tokenizer,
        [_example(config, compressor, passage) for passage in passages],
        config.warm_recipe(),
        seed=seed & 0xFFFF_FFFF,
        checkpoints=checkpoints,
        bfloat16=in_bfloat16(config.precision, "cuda" if torch.cuda.is_available() else "cpu"),
        stage="compress",
    )
    trainer.fit("compress, warm start")
    if isinstance(trainer.model, PeftModel):
        trainer.model.merge_and_unload()
    weights.to(dtype=dtype).requires_grad_(True).eval()
    return {"losses": epoch_means(trainer.history, config.warm_epochs), "steps": len(trainer.history)}


def _held(config: CompressConfig, lists: Artifact, split: str) -> CandidateLists:
    return CandidateLists.load(lists.file(f"{split}.parquet")).top(config.list_size).with_target()


def _module(reasoner: Reasoner) -> torch.nn.Module:
    return reasoner.model


def _example(config: CompressConfig, compressor: Compressor, passage: Passage) -> Example:
    """The prompt for a context, and the selection as the compressor would emit it."""
    picks = WARM[config.warm](passage, passage.budget(config.share))
    prompt, reasoner = compressor.prompt(passage), compressor.reasoner
    if config.form == "select":
        answer = selection_tokens(compressor.options(passage), picks, reasoner.vocabulary.eos)
    else:
        answer = [*reasoner.encode("\n".join(passage.lines(picks))), reasoner.vocabulary.eos]
    parts = np.repeat([PROMPT, RANKING], [len(prompt), len(answer)]).astype(np.int8)
    return Example(np.array([*prompt, *answer], dtype=np.int64), parts)


def _judge(config: CompressConfig, lesson: _Lesson, log: Path, seed: int) -> Judge:
    prompt = PromptConfig.of(config)
    if config.judge == "reasoner":
        lesson.reasoner.model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        return ReasonerJudge(_ranker(config, lesson.reasoner), lesson.slates, lesson.targets)
    if config.judge == "endpoint":
        teacher: Any = EndpointTeacher(config.endpoint(temperature=0.0, workers=PartialState().num_processes))
    else:
        teacher = LocalTeacher(
            Path(config.model),
            batch=config.answer_batch,
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=seed & 0xFFFF_FFFF,
        )
    return TeacherJudge(teacher, lesson.slates, lesson.targets, prompt, log)


def _ranker(config: CompressConfig, reasoner: Reasoner) -> Ranker:
    prompt = PromptConfig.of(config)
    if config.ranking == "likelihood":
        return LikelihoodRanker(reasoner, prompt)
    asking = Answering(reasoning=config.reasoning, max_reasoning=config.max_reasoning, batch=config.answer_batch)
    return AnswerRanker(reasoner, prompt, asking)
