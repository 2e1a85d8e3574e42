from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gr2.artifact import Artifact, is_current, open_stage
from gr2.config import build
from gr2.data.candidates import CandidateLists
from gr2.errors import ConfigError, DataError, Gr2Error
from gr2.models.reasoner import Reasoner
from gr2.training import rl
from gr2.training.loop.resumable import Resumable
from gr2.training.policy import rewards, trying
from gr2.training.policy.monitors import monitor
from gr2.training.policy.training import training_lists
from gr2.training.rl import RlConfig

TINY = RlConfig(
    start="midtrain", reasoning=False, knowledge=False, max_history=4, title_words=1, steps=3, groups=2, samples=4,
    batch=8, answer_batch=8, redraws=1, learning_rate=1e-2, precision="float32", validation_lists=0, test_lists=12,
    checkpoint_seconds=0.0, threads=1, list_size=5,
)  # fmt: skip


@pytest.fixture
def parents(untrained: dict[str, Artifact]) -> dict[str, Artifact]:
    return untrained


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return Reasoner.load(artifact.file("model")).model.state_dict()


def test_the_artefact_holds_a_model_and_the_figures_of_every_step(parents: dict[str, Artifact], tmp_path: Path) -> None:
    made = rl.run(replace(TINY, tracker="tensorboard"), parents, tmp_path / "rl", 3)
    assert [path for path in made.files if path.startswith("logs/") and "tfevents" in path]
    steps = pq.read_table(made.file("steps.parquet"))
    assert steps["step"].to_pylist() == [1, 2, 3]
    for name in ("reward", "valid", "copies/near", "first/from_1", "target/at_5", "rollouts/drawn", "entropy", "loss"):
        assert np.isfinite(np.array(steps[name].to_pylist())).all(), name
    assert steps["valid"].to_pylist() == [1.0] * 3
    ranks = pq.read_table(made.file("ranks.parquet"))
    assert len(ranks) == 12
    assert made.metrics["test"]["valid"] == 1.0
    assert made.metrics["steps"] == 3
    assert made.metrics["last_steps"]["reward"] == steps["reward"].to_pylist()[-1]
    before, after = weights(parents["midtrain"]), weights(made)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def graded(parents: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
    """These artefacts, with lists of several positives: the target is bought, and what stands behind it is clicked."""
    with open_stage(folder, "midtrain", TINY, {}, 0) as work:
        Reasoner.load(parents["midtrain"].file("model")).save(work.path / "model")
        for split in ("train", "val", "test"):
            lists = CandidateLists.load(parents["midtrain"].file(f"{split}.parquet"))
            bought = lists.candidates == lists.target[:, None]
            grades = (2 * bought + np.roll(bought, 1, axis=1)).astype(np.int8)
            places = np.tile(np.arange(1, lists.width + 1, dtype=np.int32), (len(lists), 1))
            replace(lists, grades=grades, places=places).save(work.path / f"{split}.parquet")
    return parents | {"midtrain": Artifact.load(folder, "midtrain")}


@pytest.mark.parametrize("reward", ["auc", "ndcg", "identity_gate", "default"])
def test_lists_of_several_positives_are_learnt_from_and_judged_by_all_of_them(
    parents: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reward: Any
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(trying, "monitor", lambda outcomes: seen.extend(outcomes) or monitor(outcomes))
    config = replace(TINY, reward=reward, steps=1, shuffle=True, format_bonus=0.3)
    made = rl.run(config, graded(parents, tmp_path / "graded"), tmp_path / "rl", 3)
    assert max(sum(grade > 0 for grade in each.grades) for each in seen) == 2
    for each in seen:
        assert each.reward == rewards.reward(reward, 0.3)(each.ranking, each.grades)
    assert len({each.shown for each in seen}) > 1
    test = made.metrics["test"]
    assert test["graded"]["slates"] == len(pq.read_table(made.file("ranks.parquet"))) == 12
    assert 0 < test["graded"]["reasoner"]["AUC"] < 1
    assert test["graded"]["incoming"]["N@5"] != test["all"]["incoming"]["N@5"]
    assert "untied" not in test


def test_weights_by_the_place_of_one_target_are_refused_where_several_are_paid(
    parents: dict[str, Artifact], tmp_path: Path
) -> None:
    config = replace(TINY, reward="ndcg", shuffle=True, balance=True)
    with pytest.raises(ConfigError, match="balance weighs lists by the place of one target, but reward = 'ndcg'"):
        rl.run(config, graded(parents, tmp_path / "graded"), tmp_path / "rl", 3)


def test_balance_weighs_rewards_by_the_place_of_the_target(
    parents: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(trying, "monitor", lambda outcomes: seen.extend(outcomes) or monitor(outcomes))
    config = replace(TINY, steps=2, shuffle=True, balance=True, limit=9, test_lists=0)
    rl.run(config, parents, tmp_path / "rl", 3)
    targets = training_lists(config, parents["midtrain"], 3).label()
    weights = rewards.balance_weights(targets, 5)
    assert len(set(weights[targets])) > 1
    for each in seen:
        assert each.reward == weights[each.target] * rewards.promotion(each.ranking, each.target)


def test_answers_are_as_free_and_as_sure_as_was_asked(parents: dict[str, Artifact], tmp_path: Path) -> None:
    free = rl.run(replace(TINY, steps=1, constrained=False, test_lists=3), parents, tmp_path / "free", 3)
    (step,) = pq.read_table(free.file("steps.parquet")).to_pylist()
    assert step["valid"] == 0.0
    assert step["reward"] == -1.0
    assert free.metrics["test"]["valid"] < 1.0
    sure = rl.run(replace(TINY, steps=1, temperature=0.01, test_lists=0), parents, tmp_path / "sure", 3)
    (step,) = pq.read_table(sure.file("steps.parquet")).to_pylist()
    assert step["entropy"] < 0.2 < pq.read_table(free.file("steps.parquet"))["entropy"][0].as_py()


def test_reasoning_is_learnt_from_too_and_its_length_is_penalised(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(
        TINY, reasoning=True, max_reasoning=6, overlong_tokens=6, overlong_penalty=5.0, steps=1, test_lists=0
    )
    made = rl.run(config, parents, tmp_path / "rl", 3)
    (step,) = pq.read_table(made.file("steps.parquet")).to_pylist()
    # A model that knows nothing does not come to an end before it must.
    assert step["reward"] < -3.0
    assert step["rollouts/tokens"] > 40
    assert "test" not in made.metrics


def test_kill_in_the_middle_changes_nothing(
    parents: dict[str, Artifact], kill_changes_nothing: Callable[..., None]
) -> None:
    kill_changes_nothing(rl, replace(TINY, steps=6, test_lists=3), parents, "ranks.parquet")


def test_where_the_clock_ends_a_training_is_its_end_for_good(
    parents: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, steps=500, minutes=1e-6, warmup=0.0, test_lists=3)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trying, "rank_splits", killed)
        rl.run(config, parents, tmp_path / "rl", 3)
    # Another time is no other training: what was killed goes on, and what has ended is current.
    free = replace(config, minutes=0.0)
    made = rl.run(free, parents, tmp_path / "rl", 3)
    assert made.metrics["steps"] == len(pq.read_table(made.file("steps.parquet"))) == 1
    for other, current in ((config, True), (replace(config, minutes=5.0), True), (replace(free, steps=600), False)):
        assert is_current(made.path, "rl", other, made.parents, 3) == current
    assert len(pq.read_table(made.file("ranks.parquet"))) == 3
    before, after = weights(parents["midtrain"]), weights(made)
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_that_copies_is_ended(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, copy_limit=1e-9, copy_patience=1, temperature=0.01, list_size=2, steps=4, redraws=0)
    with pytest.raises(Gr2Error, match="the policy copies: over the last 1 steps"):
        rl.run(config, parents, tmp_path / "rl", 3)
    # Whoever wants it all the same goes on from where it ended.
    left = (tmp_path / "rl.partial" / "fingerprint").read_text()
    made = rl.run(replace(config, copy_limit=1.0), parents, tmp_path / "rl", 3)
    assert made.fingerprint == left


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_alone_learn_and_are_merged_after_a_kill_too(
    parents: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, lora_rank=2, warmup=0.0, steps=4, test_lists=0)
    whole = rl.run(config, parents, tmp_path / "whole", 3)
    before, after = weights(parents["midtrain"]), weights(whole)
    assert before.keys() == after.keys()
    sids = Reasoner.load(whole.file("model")).new_tokens
    embeddings = next(name for name in before if "embed_tokens" in name)
    others = np.setdiff1d(np.arange(len(before[embeddings])), sids)
    assert torch.equal(before[embeddings][others], after[embeddings][others])
    assert not torch.equal(before[embeddings][sids], after[embeddings][sids])
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name for name in changed)
    stepped = Resumable._stepped

    def killed(trainer: Resumable, state: Any, control: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt
        stepped(trainer, state, control)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Resumable, "_stepped", killed)
        rl.run(config, parents, tmp_path / "cut", 3)
    resumed = weights(rl.run(config, parents, tmp_path / "cut", 3))
    assert all(torch.equal(value, resumed[name]) for name, value in after.items())


def test_divergence_from_the_start_is_held_down(parents: dict[str, Artifact], tmp_path: Path) -> None:
    config = replace(TINY, steps=4, kl=5.0, test_lists=0)
    held = pq.read_table(rl.run(config, parents, tmp_path / "held", 3).file("steps.parquet"))
    assert held["divergence"].to_pylist()[0] == pytest.approx(0.0, abs=1e-5)
    # Every list teaches: none is dropped.
    assert held["rollouts/drawn"].to_pylist() == [1.0] * 4


def test_weights_that_are_lost_end_it_before_the_next_answers(parents: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(Gr2Error, match=r"weights after step \d is (nan|inf), so the training .* lower \[rl\] learning"):
        rl.run(replace(TINY, learning_rate=1e38), parents, tmp_path / "rl", 3)


@pytest.mark.parametrize("alone", [False, True])
def test_lists_without_their_target_or_another_item_are_nothing_to_learn_from(
    parents: dict[str, Artifact], tmp_path: Path, alone: bool
) -> None:
    folder = tmp_path / "midtrain"
    lists = CandidateLists.load(parents["midtrain"].file("train.parquet"))
    with open_stage(folder, "midtrain", TINY, {}, 0) as work:
        Reasoner.load(parents["midtrain"].file("model")).save(work.path / "model")
        kept = lists.take(lists.label() == 0).top(1) if alone else lists.take(lists.label() >= 5)
        kept.save(work.path / "train.parquet")
    with pytest.raises(DataError, match=r"none of .* training lists has its target among its top 5"):
        rl.run(replace(TINY, test_lists=0), parents | {"midtrain": Artifact.load(folder)}, tmp_path / "rl", 0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"samples": 1}, "samples must be at least 2"),
        ({"temperature": 1e-320}, "temperature must be at least 0.01"),
        ({"temperature": 1e300}, "at most 100, got 1e\\+300"),
        ({"clip_high": 1e300}, r"clip_high must be in \(0, 100\]"),
        ({"format_bonus": 1e300}, "format_bonus must be at most 100"),
        ({"overlong_penalty": 1e300}, "overlong_penalty must be at most 100"),
        ({"answer_batch": 4, "samples": 8}, "answer_batch 4 must be at least samples, 8"),
        ({"threads": 4096}, "threads must be at most 1024"),
        ({"copy_limit": 0.0}, "copy_limit must be in"),
        ({"balance": True}, "the prompt must not tell it"),
        ({"balance": True, "shuffle": True, "incoming_rank": True}, "the prompt must not tell it"),
        ({"reward": "defualt"}, "must be one of 'default', 'conditional'"),
        ({"kl": -0.1}, "kl must not be negative"),
        ({"engine": "vllm", "reasoning": False}, "writes the explanations of constrained answers"),
        ({"engine_memory": 1.0}, "engine_memory must be between 0 and 1"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        build(RlConfig, change, "rl")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_its_engine_is_refused_and_says_what_to_install(
    parents: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"engine = 'vllm' needs vLLM and a GPU .* pip install 'trl\[vllm\]'"):
        rl.run(replace(TINY, reasoning=True, max_reasoning=6, engine="vllm"), parents, tmp_path / "rl", 3)


def test_two_processes_make_one_artefact(
    parents: dict[str, Artifact], made_by_two: Callable[..., tuple[Artifact, str]]
) -> None:
    keys = {name: getattr(TINY, name) for name in ("start", "reasoning", "max_history", "title_words", "list_size")}
    keys |= {"steps": 2, "groups": 2, "samples": 4, "batch": 4, "validation_lists": 0, "test_lists": 3, "threads": 1}
    artifact, said = made_by_two("rl", parents, keys)
    assert artifact.metrics["steps"] == 2
    assert said.count("rl: 2/2 steps") == 1
    assert len(pq.read_table(artifact.file("ranks.parquet"))) == 3
