from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact
from gr2.config import build
from gr2.errors import ConfigError
from gr2.models.reasoner import Reasoner
from gr2.training import bypass, rl
from gr2.training.bypass import BypassConfig
from gr2.training.rl import RlConfig

TINY = BypassConfig(
    start="midtrain", knowledge=False, max_history=4, title_words=1, steps=3, groups=2, samples=4, batch=8,
    answer_batch=8, redraws=1, learning_rate=1e-2, precision="float32", validation_lists=0, test_lists=12,
    checkpoint_seconds=0.0, threads=1, list_size=5,
)  # fmt: skip


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return Reasoner.load(artifact.file("model")).model.state_dict()


def test_the_second_pass_ranks_without_reasoning_and_says_what_it_began_with(
    untrained: dict[str, Artifact], tmp_path: Path
) -> None:
    shared = {name: value for name, value in vars(TINY).items() if name in RlConfig.__dataclass_fields__}
    lesson = RlConfig(**{**shared, "reasoning": False, "steps": 1, "test_lists": 0, "evaluate_start": False})
    first = rl.run(lesson, untrained, tmp_path / "rl", 3)
    made = bypass.run(replace(TINY, start="rl"), {**untrained, "rl": first}, tmp_path / "bypass", 3)
    assert made.parents["rl"] == first.digest
    assert len(pq.read_table(made.file("start-ranks.parquet"))) == 12
    assert made.metrics["start"]["test"]["valid"] == made.metrics["test"]["valid"] == 1.0
    with pytest.raises(ConfigError, match="reasoning must be false"):
        build(BypassConfig, {"reasoning": True}, "bypass")


def test_kill_in_the_middle_changes_nothing(
    untrained: dict[str, Artifact], kill_changes_nothing: Callable[..., None]
) -> None:
    kill_changes_nothing(
        bypass, replace(TINY, steps=6, test_lists=3), untrained, "ranks.parquet", "start-ranks.parquet"
    )


@pytest.mark.parametrize("change", [{"groups": 16, "limit": 3}, {"batch": 7}])
def test_what_the_training_would_refuse_is_refused_before_the_start_is_evaluated(
    untrained: dict[str, Artifact], tmp_path: Path, change: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="groups"):
        bypass.run(replace(TINY, **change), untrained, tmp_path / "bypass", 3)
    assert not list((tmp_path / "bypass.partial").rglob("*.jsonl"))
