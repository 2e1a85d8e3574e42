"""The stage `sft`: the mid-trained model learns to re-rank from traces, by supervised fine-tuning.

The loss covers the assistant's tokens alone, and weighs reasoning and ranking apart (`weighted`). Afterwards the model
answers for validation and test lists, and its rankings are compared with the incoming order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.config import refuse_below
from gr2.data.dataset import Dataset
from gr2.errors import DataError
from gr2.models.answer_grammar import AnswerGrammar
from gr2.models.reasoner import Reasoner, SidSpec
from gr2.prompts.render import PromptConfig
from gr2.training.language.weighted import PROMPT, Example, Recipe, weighted_trainer
from gr2.training.loop.capacity import refuse_long_prompts
from gr2.training.loop.dropout import dropout
from gr2.training.loop.optimisation import in_bfloat16, threads
from gr2.training.loop.resumable import epoch_means
from gr2.training.loop.workers import TRAIN, Workers, follow_first, leave
from gr2.training.reasoner.contexts import STAGE, Contexts, context_sources, load_contexts
from gr2.training.reasoner.settings import RankedConfig, ReasonerConfig
from gr2.training.reasoner.split_ranks import rank_splits, refuse_missing_splits
from gr2.training.tracing.examples import TraceExamples
from gr2.training.tracing.table import Trace, load_traces

__all__ = ["SftConfig", "follow", "inputs", "leave", "run", "sources"]


@dataclass(frozen=True)
class SftConfig(ReasonerConfig, RankedConfig):
    """Prompts, lists and optimiser (see `ReasonerConfig`), the weights, and the evaluation (see `RankedConfig`).

    Attributes:
        reasoning_weight: of a token of the explanation in the loss.
        ranking_weight: of a token of the ranking; only the ratio of both matters.
        epochs: passes over the traces.
        accumulate: batches a step and process.
        dropout: on embeddings and block outputs.
        activation_checkpointing: compute activations twice instead of storing them.
    """

    reasoning_weight: float = 0.3
    ranking_weight: float = 1.0
    epochs: int = 3
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    dropout: float = 0.0
    activation_checkpointing: bool = False
    answer_batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, 1, "epochs", "accumulate")
        refuse_below(self, 0, "reasoning_weight", "ranking_weight")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.compressor == STAGE:
            raise ValueError("compressor: compress comes after sft in a run; name the folder of another run's")
        if self.ranking_weight == 0 and (self.reasoning_weight == 0 or not self.reasoning):
            raise ValueError("ranking_weight 0 leaves nothing to learn, since there is no reasoning with a weight")

    def recipe(self) -> Recipe:
        """What `weighted_trainer` needs to know."""
        return Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)})


def inputs(config: SftConfig) -> tuple[str, ...]:
    """The stages whose artefacts are read."""
    return ("prepare", "tokenize", "midtrain", "traces", *(["prerank"] if config.lists == "prerank" else []))


def sources(config: SftConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: another run's contexts."""
    return context_sources(config)


def run(config: SftConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `model/` (see `Reasoner`), `ranks.parquet` of the test lists and `ranks-val.parquet` (see
    `evaluate_reasoner`), and what a tracker kept to `logs/`.

    Raises DataError if there are no traces, ConfigError if lists that are to be re-ranked were not made, Gr2Error if
    the training diverges.
    """
    parents = {name: artifacts[name].digest for name in inputs(config)}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "sft", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        entropy = seed & 0xFFFF_FFFF
        refuse_missing_splits("sft", config, artifacts[config.lists])
        lesson = _lesson(config, artifacts, entropy)
        work.metrics |= lesson.metrics()
        workers = Workers()
        workers.agree(TRAIN)
        work.metrics |= {"processes": workers.count}
        work.metrics |= fine_tune(config, lesson.reasoner, lesson.examples, seed=entropy, checkpoints=work.checkpoints)
        workers.end()
        lesson.reasoner.save(work.path / "model")
        if (work.checkpoints / "logs").is_dir():
            shutil.copytree(work.checkpoints / "logs", work.path / "logs")
        lists = artifacts[config.lists]
        rank_splits(config, lesson.reasoner, lesson.dataset, lesson.codes, lists, work, contexts=lesson.contexts)
        work.metrics["total_seconds"] = time.monotonic() - began
    return Artifact.load(out, "sft")


def follow(config: SftConfig, artifacts: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `follow_first`."""
    entropy = seed & 0xFFFF_FFFF

    def train(_: Workers, checkpoints: Path) -> None:
        lesson = _lesson(config, artifacts, entropy)
        fine_tune(config, lesson.reasoner, lesson.examples, seed=entropy, checkpoints=checkpoints)

    follow_first(out, config.threads, train)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Who learns from what; `dropped` is the mean number of events a prompt that its budget has no room for."""

    reasoner: Reasoner
    dataset: Dataset
    codes: NDArray[np.uint16]
    contexts: Contexts | None
    examples: list[Example]
    traces: int
    dropped: float

    def metrics(self) -> dict[str, Any]:
        """What there is to learn from."""
        counts = np.sum([np.bincount(each.parts, minlength=3) for each in self.examples], axis=0)
        names = ("prompt_tokens", "reasoning_tokens", "ranking_tokens")
        return {
            "traces": len(self.examples),
            **dict(zip(names, counts.tolist(), strict=True)),
            "longest": max(len(each.ids) for each in self.examples),
            "history_dropped_mean": self.dropped,
            "unseen_citations": self.traces - len(self.examples),
        }


def _lesson(config: SftConfig, artifacts: Mapping[str, Artifact], seed: int) -> _Lesson:
    dataset = Dataset.load(artifacts["prepare"].path)
    codes = artifacts["tokenize"].array("codes.npy")
    traces = _traces(config, artifacts["traces"], seed)
    reasoner = Reasoner.load(artifacts["midtrain"].file("model"), sids=SidSpec.of(artifacts["tokenize"]))
    grammar, contexts = AnswerGrammar(reasoner), load_contexts(config, artifacts)
    encode = TraceExamples(reasoner, grammar, dataset, codes, PromptConfig.of(config), contexts)
    examples, dropped = encode(traces)
    if not examples:
        raise DataError(
            "every trace cites an item that its prompt does not show; give [sft] the max_history of [traces]",
            path=artifacts["traces"].path,
        )
    longest = max(int((each.parts != PROMPT).sum()) for each in examples)
    asked = grammar.length(config.list_size, config.max_reasoning if config.reasoning else 0)
    refuse_long_prompts(reasoner.model, budget=config.budget, answer=max(longest, asked))
    return _Lesson(reasoner, dataset, codes, contexts, examples, len(traces), dropped)


def fine_tune(
    config: SftConfig, reasoner: Reasoner, examples: Sequence[Example], *, seed: int, checkpoints: Path
) -> dict[str, Any]:
    """Train the reasoner in place, from the last checkpoint where there is one; the losses and the seconds it took."""
    began = time.monotonic()
    model: torch.nn.Module = reasoner.model
    dtype = reasoner.model.dtype
    # Steps of a low rate are lost in bfloat16; weights that adapters leave as they are lose nothing.
    model.to(dtype=dtype if config.lora_rank else torch.float32)
    with dropout(reasoner.model, config.dropout):
        trainer = weighted_trainer(
            reasoner.model,
            reasoner.tokenizer,
            examples,
            config.recipe(),
            seed=seed,
            checkpoints=checkpoints,
            bfloat16=in_bfloat16(config.precision, "cuda" if torch.cuda.is_available() else "cpu"),
        )
        trainer.fit("sft")
    if isinstance(trainer.model, PeftModel):
        trainer.model.merge_and_unload()
    model.to(dtype=dtype).requires_grad_(True).eval()
    return {
        "losses": epoch_means(trainer.history, config.epochs),
        "steps": len(trainer.history),
        "train_seconds": time.monotonic() - began,
    }


def _traces(config: SftConfig, artifact: Artifact, seed: int) -> list[Trace]:
    """The traces to learn from, in the order of the file."""
    traces = load_traces(artifact.file("traces.parquet"))
    if not traces:
        raise DataError("the teacher got no list right, so there is nothing to learn", path=artifact.path)
    if config.reasoning and not any(trace.explanation for trace in traces):
        raise DataError(
            "the traces have no explanations, while [sft] reasoning asks for them; set it to false, or run traces with "
            "reasoning = true",
            path=artifact.path,
        )
    if not 0 < config.limit < len(traces):
        return traces
    rows = np.sort(np.random.default_rng(seed).permutation(len(traces))[: config.limit])
    return [traces[row] for row in rows.tolist()]
