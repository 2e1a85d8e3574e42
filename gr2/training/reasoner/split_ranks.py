"""What a trained reasoner does to the validation and test lists, as every stage that trains one reports it."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gr2.artifact import Artifact, Workspace
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError
from gr2.models.reasoner import Reasoner
from gr2.prompts.render import PromptConfig
from gr2.training.reasoner.contexts import Contexts
from gr2.training.reasoner.reranking import evaluate_reasoner

__all__ = ["RANKS", "Evaluated", "rank_splits", "refuse_missing_splits"]

RANKS = {"val": "ranks-val.parquet", "test": "ranks.parquet"}


class Evaluated(Protocol):
    """The keys of a configuration that say what is evaluated, and how; `validation_lists` and so on: -1 is all."""

    @property
    def validation_lists(self) -> int: ...  # noqa: D102
    @property
    def test_lists(self) -> int: ...  # noqa: D102
    @property
    def list_size(self) -> int: ...  # noqa: D102
    @property
    def max_reasoning(self) -> int: ...  # noqa: D102
    @property
    def answer_batch(self) -> int: ...  # noqa: D102


def refuse_missing_splits(stage: str, config: Evaluated, lists: Artifact) -> None:
    """Raise ConfigError if `rank_splits` would miss a split's lists, which is to be known before the training."""
    for split, key in (("val", "validation_lists"), ("test", "test_lists")):
        count = getattr(config, key)
        if count and f"{split}.parquet" not in lists.files:
            raise ConfigError(
                f"[{stage}] {key} is {count}, but {lists.path} has no {split}.parquet; set {key} to 0, or run "
                f"{lists.stage} again with evaluate = true"
            )


def rank_splits(
    config: Evaluated,
    reasoner: Reasoner,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    lists: Artifact,
    work: Workspace,
    *,
    constrained: bool = True,
    label: str = "",
    contexts: Contexts | None = None,
) -> None:
    """Write RANKS and the metrics of each split that is asked for and has a list with its target.

    `config` says how prompts are written, too, with `contexts` where there are any; `lists` has the splits' candidate
    lists. Files and metrics of a `label` are named by it.
    """
    prefix = f"{label}-" if label else ""
    found = work.metrics.setdefault(label, {}) if label else work.metrics
    for split, count in (("val", config.validation_lists), ("test", config.test_lists)):
        if not count:
            continue
        made = CandidateLists.load(lists.file(f"{split}.parquet"))
        if not len(made.top(config.list_size).with_target()):
            continue
        began = time.monotonic()
        metrics, answers = evaluate_reasoner(
            reasoner,
            dataset,
            codes,
            made,
            PromptConfig.of(config),
            slate=config.list_size,
            limit=max(0, count),
            constrained=constrained,
            max_reasoning=config.max_reasoning,
            batch=config.answer_batch,
            seed=work.seed & 0xFFFF_FFFF,
            checkpoint=work.checkpoints / f"{prefix}{split}-answers.jsonl",
            contexts=contexts,
        )
        pq.write_table(answers, work.path / f"{prefix}{RANKS[split]}")
        found[split] = metrics | {"answer_seconds": time.monotonic() - began}
