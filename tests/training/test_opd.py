from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact
from gr2.config import build, to_json
from gr2.errors import ArtifactError, ConfigError
from gr2.models.reasoner import Reasoner, SidSpec, from_scratch
from gr2.training import opd
from gr2.training.opd import OpdConfig

TEXTS = ["History, oldest first: Candidates: rank"]
# A model of the teacher's size on the way of one that has learnt something: its choices are far from even.
SHARPNESS = 6.0
TINY = OpdConfig(
    start="midtrain", teacher="elsewhere", reasoning=False, knowledge=False, max_history=2, title_words=1, steps=7,
    groups=2, samples=2, batch=4, answer_batch=4, redraws=0, learning_rate=2e-2, precision="float32",
    validation_lists=0, test_lists=0, checkpoint_seconds=0.0, threads=1, list_size=4, copy_limit=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(untrained: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reasoner of another size and the student's tokenizer."""
    folder = tmp_path_factory.mktemp("opd") / "teacher"
    made = from_scratch("small", TEXTS, SidSpec.of(untrained["tokenize"]), vocabulary=320, seed=4)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(SHARPNESS)
    made.save(folder)
    return folder


def config_of(folder: Path, **changes: object) -> OpdConfig:
    return build(OpdConfig, to_json(TINY) | {"teacher": str(folder)} | changes, "opd")


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return Reasoner.load(artifact.file("model")).model.state_dict()


@pytest.mark.parametrize("form", ["reverse", "forward", "task"])
def test_student_comes_close_to_a_teacher_of_another_size(
    untrained: dict[str, Artifact], teacher: Path, tmp_path: Path, form: str
) -> None:
    made = opd.run(config_of(teacher, form=form, kl=1.0), untrained, tmp_path / "opd", 3)
    away = pq.read_table(made.file("steps.parquet"))["divergence"].to_pylist()
    assert np.mean(away[-2:]) < 0.75 * np.mean(away[:2])
    assert {name for name in made.parents if name.startswith("teacher:")} >= {"teacher:model.safetensors"}
    kept = Reasoner.load(teacher).model.state_dict()
    assert Reasoner.load(made.file("model")).model.num_parameters() < sum(value.numel() for value in kept.values())


def test_pure_distillation_does_not_look_at_rewards_and_the_task_does(
    untrained: dict[str, Artifact], teacher: Path, tmp_path: Path
) -> None:
    made = {}
    for form in ("reverse", "forward", "task"):
        for scale in ("group", "none"):
            config = config_of(teacher, form=form, steps=1, scale=scale, warmup=0.0)
            made[form, scale] = weights(opd.run(config, untrained, tmp_path / f"{form}-{scale}", 3))
    for form, same in (("reverse", True), ("forward", True), ("task", False)):
        first, second = made[form, "group"], made[form, "none"]
        assert all(torch.equal(value, second[name]) for name, value in first.items()) == same
    others = made["forward", "group"]
    assert any(not torch.equal(value, others[name]) for name, value in made["reverse", "group"].items())


def test_kill_in_the_middle_changes_nothing(
    untrained: dict[str, Artifact], teacher: Path, kill_changes_nothing: Callable[..., None]
) -> None:
    kill_changes_nothing(opd, config_of(teacher, steps=6, test_lists=3), untrained, "ranks.parquet")


def test_another_tokenizer_is_refused(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    from_scratch("tiny", ["other words"], SidSpec.of(untrained["tokenize"]), vocabulary=310).save(folder)
    with pytest.raises(ConfigError, match=r"tokenizer has .* tokens which are not"):
        opd.run(config_of(folder), untrained, tmp_path / "opd", 0)


def test_other_semantic_ids_are_refused(untrained: dict[str, Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "teacher"
    sids = replace(SidSpec.of(untrained["tokenize"]), codebook="0" * 64)
    from_scratch("tiny", TEXTS, sids, vocabulary=320).save(folder)
    with pytest.raises(ArtifactError, match="semantic IDs are"):
        opd.run(config_of(folder), untrained, tmp_path / "opd", 0)


def test_a_changed_teacher_is_another_input(teacher: Path) -> None:
    files = opd.sources(config_of(teacher))
    assert files["teacher:model.safetensors"] == teacher / "model.safetensors"
    with pytest.raises(ConfigError, match="teacher: no such folder"):
        opd.sources(config_of(teacher / "none"))


def test_a_folder_without_a_reasoner_is_refused_and_the_one_inside_named(
    untrained: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds no reasoner .*; give one, such as .*/midtrain/model$"):
        opd.sources(config_of(untrained["midtrain"].path))
    with pytest.raises(ConfigError, match="such as runs/big/rl/model"):
        opd.sources(config_of(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"teacher": " "}, "teacher must name a folder"),
        ({"kl": 0.0}, "kl must be positive"),
        ({"divergence": "forward"}, "divergence is chosen by form"),
        ({"start": "opd"}, "start must be one of"),
    ],
)
def test_values_that_cannot_be_are_refused(teacher: Path, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_of(teacher, **change)
