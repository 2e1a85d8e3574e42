"""The stage `midtrain`: a language model learns the semantic IDs, by what users did and by what items are.

1. A model of the user's own gets a row for each level's code, which train alone at first, the rest being frozen. With
   no model at hand, one starts from scratch.
2. All of it, or low-rank adapters, trains on a mix of tasks (`midtrain_tasks`).
3. Beam search over the catalogue ranks the next item of every user (`next_item`): of the validation and test splits,
   and of the first training event that was held out, so that lists for training come from a model that has not seen
   their targets.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.errors import ConfigError, DataError
from gr2.models.code_rows import start_from_centroids
from gr2.models.pretrained import load_pretrained
from gr2.models.reasoner import RECORD, Reasoner, SidSpec, extend, from_scratch
from gr2.training.language.causal import CausalTrainer, Recipe
from gr2.training.language.causal_loss import CausalLoss, keeps_rows_apart
from gr2.training.language.midtrain_settings import MidtrainConfig
from gr2.training.language.mix import Mix
from gr2.training.language.tasks import TASKS, sequential_rows, task_texts, text_rows, tokenizer_texts
from gr2.training.loop.attention import fast_attention
from gr2.training.loop.capacity import context_length
from gr2.training.loop.dropout import dropout
from gr2.training.loop.lora import adapters, only_new_rows
from gr2.training.loop.optimisation import in_bfloat16, threads
from gr2.training.loop.workers import TRAIN, Workers, follow_first, leave
from gr2.training.reasoner.next_item import NextItem, list_metrics

__all__ = ["INPUTS", "MidtrainConfig", "follow", "leave", "positions", "run", "sources"]

INPUTS = ("prepare", "tokenize")


def sources(config: MidtrainConfig) -> dict[str, Path]:
    """The files outside the run that the stage reads: the corpus, and all of a given model's folder."""
    files = {f"file:corpus{number}": Path(name) for number, name in enumerate(config.corpus)}
    if config.model:
        folder = Path(config.model)
        if not folder.is_dir():
            raise ConfigError(f"[midtrain] model: no such folder: {folder}; give one with a causal language model")
        files |= {f"model:{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
    return files


def run(config: MidtrainConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write `model/` (see `Reasoner`) and train.parquet, val.parquet and test.parquet (CandidateLists).

    Raises Gr2Error if the training diverges.
    """
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "midtrain", config, parents, seed) as work, threads(config.threads):
        began = time.monotonic()
        logs = work.checkpoints / "logs"
        workers = Workers(tracker=config.tracker, folder=logs)
        workers.agree(TRAIN)
        reasoner, lists, metrics = midtrain(config, inputs, seed=seed, workers=workers, checkpoints=work.checkpoints)
        workers.end()
        reasoner.save(work.path / "model")
        for split, made in lists.items():
            made.save(work.path / f"{split}.parquet")
        if logs.is_dir():
            shutil.copytree(logs, work.path / "logs")
        work.metrics.update(metrics, total_seconds=time.monotonic() - began)
    return Artifact.load(out, "midtrain")


def follow(config: MidtrainConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> None:
    """What the other processes of a launch do; see `follow_first`."""

    def train(workers: Workers, checkpoints: Path) -> None:
        midtrain(config, inputs, seed=seed, workers=workers, checkpoints=checkpoints)

    follow_first(out, config.threads, train)


def midtrain(
    config: MidtrainConfig, inputs: Mapping[str, Artifact], *, seed: int, workers: Workers, checkpoints: Path
) -> tuple[Reasoner, dict[str, CandidateLists], dict[str, Any]]:
    """The trained reasoner, its lists by split, and the metrics; the same in every process."""
    dataset = Dataset.load(inputs["prepare"].path)
    codes = inputs["tokenize"].array("codes.npy")
    entropy = seed & 0xFFFF_FFFF
    texts = task_texts(dataset, codes, config.corpus, holdout=config.holdout)
    reasoner = _start(config, inputs["tokenize"], dataset, texts["general"], entropy)
    _refuse_long_rows(config, reasoner)
    dtype = reasoner.model.dtype
    reasoner.model.to(workers.device, torch.float32)  # type: ignore[arg-type]
    tasks = {name: text_rows(reasoner, lines, longest=config.max_tokens) for name, lines in texts.items()}
    tasks["sequential"] = sequential_rows(
        reasoner, dataset, codes, holdout=config.holdout, max_history=config.max_history
    )
    mix = Mix.of(tasks, {name: getattr(config, name) for name in TASKS})
    if not len(mix.rows):
        raise DataError("no task has anything to learn: every share is 0, or the users have too few events")
    metrics: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in reasoner.model.parameters()),
        "vocabulary": len(reasoner.tokenizer),
        "processes": workers.count,
        "task_tokens": {name: len(rows.tokens) for name, rows in tasks.items()},
    }
    bfloat16 = in_bfloat16(config.precision, workers.device.type)
    with fast_attention(reasoner.model):
        metrics |= _train(config, reasoner, mix, entropy, workers, checkpoints, bfloat16=bfloat16)
        began = time.monotonic()
        lists, metrics["lists"] = _lists(config, reasoner, dataset, codes, workers, bfloat16=bfloat16)
        metrics["list_seconds"] = time.monotonic() - began
    reasoner.model.to("cpu", dtype)  # type: ignore[arg-type]
    return reasoner, lists, metrics


def _start(config: MidtrainConfig, tokenize: Artifact, dataset: Dataset, general: list[str], seed: int) -> Reasoner:
    """The model before any training. A folder that holds a reasoner goes on from where that one is."""
    sids = SidSpec.of(tokenize)
    if not config.model:
        texts = tokenizer_texts(dataset.catalog, general)
        reasoner = from_scratch(config.from_scratch, texts, sids, vocabulary=config.vocabulary, seed=seed)
        if "centroids.npy" in tokenize.files:
            start_from_centroids(reasoner, torch.from_numpy(tokenize.array("centroids.npy")))
        return reasoner
    folder = Path(config.model)
    if (folder / RECORD).exists():
        return Reasoner.load(folder, sids=sids)
    model, tokenizer = load_pretrained(folder)
    return extend(model, tokenizer, sids, seed=seed)


def _refuse_long_rows(config: MidtrainConfig, reasoner: Reasoner) -> None:
    """Raise ConfigError if the model cannot read at once what a row or a search may hold."""
    context, width = context_length(reasoner.model), reasoner.vocabulary.levels + 2
    if context is None:
        return
    longest = (config.max_history + 1) * width
    if longest > context:
        raise ConfigError(
            f"[midtrain] max_history: {config.max_history} events and the next one, of {width} tokens each, make "
            f"{longest:,}, more than the {context:,} that the model can read; set it to at most {context // width - 1}"
        )
    if config.max_tokens > context:
        raise ConfigError(
            f"[midtrain] max_tokens: rows of up to {config.max_tokens:,} tokens are longer than the {context:,} that "
            f"the model can read; set it to at most {context}"
        )


def _train(
    config: MidtrainConfig,
    reasoner: Reasoner,
    mix: Mix,
    seed: int,
    workers: Workers,
    checkpoints: Path,
    *,
    bfloat16: bool,
) -> dict[str, Any]:
    """Train the reasoner's model; seconds, tokens a second and losses of each phase."""
    packed = _packs(config, reasoner)
    metrics: dict[str, Any] = {"packed": packed}
    if config.model and config.warmup_epochs:
        recipe = replace(
            config.recipe(packed=packed),
            epochs=config.warmup_epochs,
            learning_rate=config.warmup_learning_rate,
            weight_decay=0.0,
        )
        with only_new_rows(reasoner):
            metrics["warm_up"] = _phase("warm-up", reasoner, mix, recipe, seed, workers, checkpoints, bfloat16)
    recipe = config.recipe(packed=packed)
    lora = config.lora_rank if config.model else 0
    if lora:
        recipe = replace(recipe, weight_decay=0.0)
    with adapters(reasoner, lora, seed) if lora else nullcontext(), dropout(reasoner.model, config.dropout):
        metrics["training"] = _phase("training", reasoner, mix, recipe, seed, workers, checkpoints, bfloat16)
    return metrics


def _packs(config: MidtrainConfig, reasoner: Reasoner) -> bool:
    """Whether rows lie side by side. Raises ConfigError if they must, and the model would read them as one."""
    if config.packing == "off" or (config.packing == "auto" and reasoner.model.device.type == "cpu"):
        return False
    apart = keeps_rows_apart(reasoner.model)
    if config.packing == "on" and not apart:
        kind = type(reasoner.model).__name__
        raise ConfigError(f"[midtrain] packing: {kind} does not keep packed rows apart; set it to 'off' or 'auto'")
    return apart


def _phase(
    name: str,
    reasoner: Reasoner,
    mix: Mix,
    recipe: Recipe,
    seed: int,
    workers: Workers,
    checkpoints: Path,
    bfloat16: bool,
) -> dict[str, Any]:
    loss = CausalLoss(reasoner.model, bfloat16=bfloat16)
    trained = sum(parameter.numel() for parameter in loss.parameters() if parameter.requires_grad)
    trainer = CausalTrainer(
        loss, mix, recipe, seed=seed, workers=workers, name=name, checkpoint=checkpoints / f"{name}.pt"
    )
    trainer.train()
    workers.release()
    return {
        "trained_parameters": trained,
        "losses": trainer.losses,
        "seconds": trainer.seconds,
        "tokens": trainer.tokens,
        "tokens_per_second": trainer.tokens / max(trainer.seconds, 1e-9),
    }


def _lists(
    config: MidtrainConfig,
    reasoner: Reasoner,
    dataset: Dataset,
    codes: NDArray[np.uint16],
    workers: Workers,
    *,
    bfloat16: bool,
) -> tuple[dict[str, CandidateLists], dict[str, Any]]:
    """The lists of each split, divided among the processes, and what they are worth."""
    search = NextItem(reasoner, codes, beams=config.beams, max_history=config.max_history, bfloat16=bfloat16)
    lists, metrics = {}, {}
    for split, (user, position) in positions(dataset, holdout=config.holdout).items():
        if split != "train" and not config.evaluate:
            continue
        own = workers.share(len(user))
        # Metrics look at the first ten, whatever is written.
        size = max(config.list_size, 10)
        part = search.lists(
            dataset, user[own], position[own], size=size, description=f"next items, {split}", stream=workers.stream
        )
        whole = CandidateLists.join(workers.collect([part]))
        whole = whole.take(np.lexsort((whole.position, whole.user)))
        lists[split], metrics[split] = whole.top(config.list_size), list_metrics(whole)
    return lists, metrics


def positions(dataset: Dataset, *, holdout: int) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Users and positions, each (R,) int64, of the lists of each split.

    Those for training are the training events that were held out, as far as something came before them.
    """
    users, lengths = np.arange(dataset.users), dataset.lengths
    user = np.repeat(users, holdout)
    position = np.repeat(lengths - 2 - holdout, holdout) + np.tile(np.arange(holdout), dataset.users)
    kept = position >= 1
    return {"train": (user[kept], position[kept]), "val": (users, lengths - 2), "test": (users, lengths - 1)}
