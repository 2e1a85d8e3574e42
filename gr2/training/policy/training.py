"""A reasoner that learns from its own rollouts, as stages share it: the trainer, the lists, the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from gr2.artifact import Artifact
from gr2.data.candidates import PADDING, CandidateLists
from gr2.errors import DataError
from gr2.models.reasoner import Reasoner
from gr2.training.loop.lora import adapters
from gr2.training.loop.optimisation import in_bfloat16
from gr2.training.policy.dapo import DapoTrainer, Watch
from gr2.training.policy.recipe import arguments
from gr2.training.policy.rollouts import Draw
from gr2.training.policy.settings import PolicyConfig

__all__ = ["STEPS", "ends", "steps_table", "train_policy", "training_lists"]

STEPS = "steps.parquet"
# Figures of the training's start and end are means over this share of its steps.
ENDS = 0.1


def train_policy(
    stage: str,
    config: PolicyConfig,
    reasoner: Reasoner,
    checkpoints: Path,
    seed: int,
    *,
    tasks: int,
    draw: Draw,
    watch: Watch,
    anchor: PreTrainedModel | None = None,
) -> list[dict[str, float]]:
    """Train the reasoner in place, from the last checkpoint or from the start; see `DapoTrainer`.

    Returns the figures of each step, the same in every process of a launch.
    """
    recipe, model = config.recipe(), reasoner.model
    if config.lora_rank:
        recipe = replace(recipe, weight_decay=0.0)
    weights: torch.nn.Module = model
    dtype = model.dtype
    # Steps of a low rate are lost in bfloat16.
    weights.to(dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precise = {"cpu": device == "cpu", "bfloat16": in_bfloat16(config.precision, device)}
    with adapters(reasoner, config.lora_rank, seed & 0xFFFF_FFFF) if config.lora_rank else nullcontext():
        trainer = DapoTrainer(
            model,
            reasoner.tokenizer,
            arguments(recipe, checkpoints, seed=seed & 0xFFFF_FFFF, **precise),
            recipe,
            stage=stage,
            tasks=tasks,
            draw=draw,
            watch=watch,
            anchor=anchor,
        )
        trainer.fit(stage)
    weights.to(dtype=dtype).eval()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def training_lists(config: PolicyConfig, artifact: Artifact, seed: int) -> CandidateLists:
    """The training lists of an artefact that hold their target and another candidate, `limit` of them.

    Raises DataError if none does.
    """
    lists = CandidateLists.load(artifact.file("train.parquet"))
    held = lists.top(config.list_size).with_target() if lists.width else lists
    held = held.take((held.candidates != PADDING).sum(1) > 1)
    if not len(held):
        raise DataError(
            f"none of {len(lists)} training lists has its target among its top {config.list_size}, and another "
            "candidate beside it: nothing to learn",
            path=artifact.path / "train.parquet",
        )
    if not 0 < config.limit < len(held):
        return held
    return held.take(np.sort(np.random.default_rng(seed).permutation(len(held))[: config.limit]))


def steps_table(history: Sequence[Mapping[str, float]]) -> pa.Table:
    """A row for each step of the optimiser; figures of answers are null in steps that draw none."""
    names = sorted({name for entry in history for name in entry} - {"step", "epoch"})
    columns = {name: pa.array([entry.get(name) for entry in history], pa.float64()) for name in names}
    return pa.table({"step": pa.array([int(entry["step"]) for entry in history], pa.int64()), **columns})


def ends(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean figures of the first and the last steps."""
    drawn = [entry for entry in history if "valid" in entry]
    count = max(1, round(ENDS * len(drawn)))
    names = sorted({name for entry in drawn for name in entry} - {"step", "epoch"})

    def means(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
        values = {name: [entry[name] for entry in entries if entry.get(name) is not None] for name in names}
        return {name: float(np.mean(found)) for name, found in values.items() if found}

    return {"steps": len(drawn), "first_steps": means(drawn[:count]), "last_steps": means(drawn[-count:])}
