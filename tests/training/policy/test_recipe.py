from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gr2.errors import ConfigError
from gr2.training.policy.recipe import Recipe, arguments

SAMPLES = 6


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "steps": 4, "groups": 2, "samples": SAMPLES, "updates": 1, "batch": SAMPLES, "redraws": 2,
        "learning_rate": 3e-3, "weight_decay": 0.0, "warmup": 0.0, "clip": 1.0, "clip_low": 0.1, "clip_high": 0.3,
        "temperature": 0.7, "scale": "group", "checkpoint_seconds": 0.0, "minutes": 0.0, "tracker": "none",
    }  # fmt: skip
    return Recipe(**(values | changes))


def test_what_a_recipe_says_is_what_the_trainer_is_told(tmp_path: Path) -> None:
    chosen = recipe(steps=10, groups=4, updates=2, learning_rate=3e-4, weight_decay=0.05, clip=0.7, warmup=0.1)
    settings = arguments(chosen, tmp_path, seed=3, cpu=True)
    assert (settings.learning_rate, settings.weight_decay, settings.max_grad_norm) == (3e-4, 0.05, 0.7)
    assert (settings.max_steps, settings.warmup_steps) == (20, 2)
    assert (settings.steps_per_generation, settings.gradient_accumulation_steps) == (4, 2)
    assert (settings.num_generations, settings.per_device_train_batch_size) == (SAMPLES, SAMPLES)
    assert (settings.epsilon, settings.epsilon_high, settings.temperature) == (0.1, 0.3, 0.7)
    assert (settings.beta, settings.loss_type, settings.seed) == (0.0, "dapo", 3)


def test_answers_that_cannot_be_divided_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="groups x samples = 12"):
        arguments(recipe(batch=5), tmp_path, seed=0, cpu=True)
    with pytest.raises(ConfigError, match="groups 2 must be a multiple of the 4 processes"):
        recipe().refuse(9, 4)
    with pytest.raises(ConfigError, match="groups = 2 lists, but there are 1"):
        recipe().refuse(1, 1)
    assert recipe().local(2) == SAMPLES
