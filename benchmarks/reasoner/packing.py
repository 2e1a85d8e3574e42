"""Mid-training with rows packed side by side against rows grouped by length: real tokens a second, interleaved.

    python -m benchmarks.reasoner.packing RUN [--size small] [--batch-tokens 2048]

RUN holds the artefacts of `prepare` and `tokenize`. On a GPU matrix products are in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from gr2.artifact import Artifact
from gr2.data.dataset import Dataset
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.training.language.causal_loss import CausalLoss, keeps_rows_apart
from gr2.training.language.midtrain_settings import MidtrainConfig
from gr2.training.language.mix import Mix
from gr2.training.language.packing import Batch, packed_batches
from gr2.training.language.tasks import TASKS, sequential_rows, task_texts, text_rows, tokenizer_texts
from gr2.training.loop.attention import fast_attention

__all__ = ["Pace", "compare"]

ROUNDS, BATCHES = 5, 8


@dataclass(frozen=True)
class Pace:
    """Of one way to batch: median real tokens a second over the rounds, and the share of slots that are padding."""

    tokens_per_second: float
    padding: float


def mix_of(reasoner: Reasoner, config: MidtrainConfig, run: Path) -> Mix:
    """What mid-training with this configuration learns from."""
    dataset, codes = Dataset.load(run / "prepare"), Artifact.load(run / "tokenize").array("codes.npy")
    texts = task_texts(dataset, codes, (), holdout=config.holdout)
    tasks = {name: text_rows(reasoner, lines, longest=config.max_tokens) for name, lines in texts.items()}
    tasks["sequential"] = sequential_rows(
        reasoner, dataset, codes, holdout=config.holdout, max_history=config.max_history
    )
    return Mix.of(tasks, {name: getattr(config, name) for name in TASKS})


def compare(run: Path, config: MidtrainConfig, *, device: str) -> dict[str, Pace]:
    """The pace of both ways; each round times forward and backward passes of the same number of batches of each."""
    tokenize = Artifact.load(run / "tokenize")
    texts = tokenizer_texts(Dataset.load(run / "prepare").catalog, ())
    reasoner = from_scratch(config.from_scratch, texts, SidSpec.of(tokenize), vocabulary=config.vocabulary, seed=0)
    reasoner.model.to(device)
    assert keeps_rows_apart(reasoner.model)
    mix = mix_of(reasoner, config, run)
    generator = np.random.default_rng(0)
    drawn = mix.draw(generator)
    ways = {
        "grouped": [Batch(rows) for rows in mix.rows.batches(drawn, config.batch_tokens, generator)],
        "packed": packed_batches(mix.rows, drawn, config.batch_tokens, generator),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    with fast_attention(reasoner.model):
        loss = CausalLoss(reasoner.model, bfloat16=device != "cpu")
        for number in range(-1, ROUNDS):  # the first warms up
            for name, batches in ways.items():
                chosen = [batches[(number * BATCHES + place) % len(batches)] for place in range(BATCHES)]
                rates[name].append(_rate(loss, mix, chosen, device))
    slots = {name: sum(batch.tensors(mix.rows)[0].numel() for batch in batches) for name, batches in ways.items()}
    tokens = int(mix.rows.lengths[drawn].sum())
    return {name: Pace(median(rates[name][1:]), 1 - tokens / slots[name]) for name in ways}


def _rate(loss: CausalLoss, mix: Mix, batches: list[Batch], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    for batch in batches:
        loss(*(tensor.to(device) for tensor in batch.tensors(mix.rows))).backward()
        loss.zero_grad()
    _wait(device)
    return float(sum(mix.rows.lengths[batch.rows].sum() for batch in batches)) / (time.perf_counter() - began)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    """Print both paces and their ratio as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", default="small")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--persona", type=float, default=MidtrainConfig.persona)
    options = parser.parse_args()
    config = replace(
        MidtrainConfig(), from_scratch=options.size, batch_tokens=options.batch_tokens, persona=options.persona
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = compare(options.run, config, device=device)
    paces = {name: vars(pace) for name, pace in found.items()}
    ratio = found["packed"].tokens_per_second / found["grouped"].tokens_per_second
    print(json.dumps({"device": device, **vars(options), "run": str(options.run), **paces, "ratio": ratio}))


if __name__ == "__main__":
    main()
