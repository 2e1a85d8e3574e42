from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from trl.trainer.grpo_trainer import GRPOTrainer

from gr2.errors import ConfigError, Gr2Error
from gr2.models.reasoner import Reasoner
from gr2.training.loop.workers import Workers
from gr2.training.policy.rollouts import Group, Rollout, training_batch


def load(name: str) -> ModuleType:
    """A module beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


policy = load("toy_policy")
REWARD, SAMPLES = policy.REWARD, policy.SAMPLES
draw, every_answer, exact_log_probs = policy.draw, policy.every_answer, policy.exact_log_probs
prompt_of, recipe, start, trainer_of = policy.prompt_of, policy.recipe, policy.start, policy.trainer_of


@pytest.fixture
def toy() -> Reasoner:
    """A reasoner with the same weights in each test."""
    reasoner: Reasoner = policy.fresh()
    return reasoner


def gradients(loss: Tensor, reasoner: Reasoner) -> Tensor:
    weights = [weight for weight in reasoner.model.parameters() if weight.requires_grad]
    return torch.cat([gradient.reshape(-1) for gradient in torch.autograd.grad(loss, weights)])


def test_hooks_of_trl_are_what_this_trainer_replaces() -> None:
    names = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
        "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
        "_prepare_inputs": ["self", "generation_batch"],
    }
    for name, expected in names.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[: len(expected)] == expected
    source = inspect.getsource(GRPOTrainer._compute_loss)
    read = ["prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages"]
    for name in [*read, "old_per_token_logps", "num_items_in_batch"]:
        assert f'"{name}"' in source
    assert source.count("self._get_per_token_logps_and_entropies(") == 1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_probabilities_of_all_answers_add_up_to_one(toy: Reasoner, tmp_path: Path, temperature: float) -> None:
    found = every_answer(toy)
    trainer = trainer_of(toy, tmp_path, recipe(temperature=temperature))
    rollouts = [Rollout(prompt_of(toy, 0), tokens, sets, 0.0) for _, tokens, sets in found]
    batch, _ = training_batch(
        rollouts, np.zeros(len(found), np.float32), np.ones(len(found), np.bool_), pad=0, vocabulary=270
    )
    with torch.no_grad():
        ours = trainer._log_probs(batch).sum(1)
        torch.testing.assert_close(ours, exact_log_probs(toy, 0, found, temperature=temperature))
        # Those that the loss is made of are the same.
        trainer._choices = trainer._chosen(batch)
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        learnt, _, _ = trainer._get_per_token_logps_and_entropies(toy.model, ids, mask)
        torch.testing.assert_close(learnt.sum(1), ours)
    assert ours.exp().sum().item() == pytest.approx(1.0, abs=1e-4)


def test_gradient_is_the_policy_gradient_and_over_the_vocabulary_it_would_not_be(toy: Reasoner, tmp_path: Path) -> None:
    found = every_answer(toy)
    rewards = torch.tensor([REWARD[order] for order, _, _ in found])
    trainer = trainer_of(toy, tmp_path, recipe())
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    exact = exact_log_probs(toy, 0, found)
    expected = gradients(-(exact.exp() * rewards).sum(), toy)
    # Each answer once, weighed by its probability: the expectation of the sampled gradient, without the sampling.
    advantage = (exact.detach().exp() * rewards).numpy()
    rollouts = [Rollout(prompt_of(toy, 0), tokens, sets, 0.0) for _, tokens, sets in found]
    batch, _ = training_batch(rollouts, advantage, np.ones(len(found), np.bool_), pad=0, vocabulary=270)
    batch["num_items_in_batch"] = torch.tensor(1.0)
    ours = gradients(trainer._compute_loss(toy.model, batch), toy)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    batch["allowed_counts"] = torch.zeros_like(batch["allowed_counts"])
    wrong = gradients(trainer._compute_loss(toy.model, batch), toy)
    assert torch.cosine_similarity(wrong, expected, dim=0) < 0.9


def test_sampled_groups_give_that_gradient_on_average(toy: Reasoner, tmp_path: Path) -> None:
    groups = 40
    chosen = recipe(groups=groups, batch=groups * SAMPLES, scale="none")
    trainer = trainer_of(
        toy, tmp_path, chosen, tasks=groups, draw=lambda tasks, seed: draw(toy, [0] * len(tasks), seed)
    )
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    found = every_answer(toy)
    rewards = torch.tensor([REWARD[order] for order, _, _ in found])
    expected = gradients(-(exact_log_probs(toy, 0, found).exp() * rewards).sum(), toy)
    batch = trainer._generate_and_score_completions([{}] * groups * SAMPLES)
    toy.model.eval()
    sampled = gradients(trainer._compute_loss(toy.model, batch), toy)
    # The loss is a mean over tokens, and a group's own mean takes 1/G off.
    sampled *= batch["num_items_in_batch"] / batch["tool_mask"].any(1).sum() * SAMPLES / (SAMPLES - 1)
    share = float(np.mean([len({r.reward for r in group}) > 1 for group in draw(toy, [0] * 50, 5)]))
    assert torch.cosine_similarity(sampled, expected, dim=0) > 0.9
    assert (sampled.norm() / expected.norm()).item() * share == pytest.approx(1.0, abs=0.35)


def test_training_raises_the_reward(toy: Reasoner, tmp_path: Path) -> None:
    def mean() -> float:
        return float(np.mean([rollout.reward for group in draw(toy, range(8), 9) for rollout in group]))

    before = mean()
    trainer_of(toy, tmp_path, recipe(steps=12, learning_rate=1e-2)).fit("rl")
    assert before < 0.1
    assert mean() > 0.5


def test_loss_is_clipped_and_a_mean_over_tokens(toy: Reasoner, tmp_path: Path) -> None:
    trainer = trainer_of(toy, tmp_path, recipe())
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
    group = draw(toy, [1], 4)[0]
    advantage = np.array([1.0, -1.0, 0.5, -0.5, 2.0, 0.0], dtype=np.float32)
    live = np.array([True, True, True, True, True, False])
    batch, _ = training_batch(group, advantage, live, pad=0, vocabulary=270)
    batch["num_items_in_batch"] = batch["tool_mask"].sum()
    with torch.no_grad():
        now = trainer._log_probs(batch)
        shift = torch.linspace(-0.6, 0.6, now.numel()).reshape(now.shape)
        batch["old_per_token_logps"] = now - shift
        loss = trainer._compute_loss(toy.model, batch).item()
    ratio, signed = shift.exp(), torch.from_numpy(advantage)[:, None]
    surrogate = torch.minimum(ratio * signed, ratio.clamp(0.8, 1.28) * signed)
    mask = torch.from_numpy(live)[:, None] & (batch["made"])
    assert loss == pytest.approx(-(surrogate * mask).sum().item() / mask.sum().item(), rel=1e-4)


@pytest.mark.parametrize("updates", [1, 2])
def test_loss_is_the_weighed_surrogate_and_divergence_of_a_token(toy: Reasoner, tmp_path: Path, updates: int) -> None:
    """Summed over the parts of an update, whose number it does not depend on."""
    chosen = recipe(groups=4, updates=updates, policy=0.3, kl=0.7, redraws=0)
    teacher = type(toy.model)(toy.model.config).eval()
    trainer = trainer_of(toy, tmp_path, chosen, tasks=8, anchor=teacher)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    parts = [trainer._prepare_inputs([{}] * 4 * SAMPLES)]
    tokens = parts[0]["num_items_in_batch"].item()
    for trainer._step in (1, 2, 3):
        parts.append(trainer._prepare_inputs([]))
    found, expected = 0.0, 0.0
    for part in parts:
        found += trainer._compute_loss(toy.model, part).item()
        trainer._choices = trainer._chosen(part)
        ids, mask = (torch.cat([part[f"prompt_{name}"], part[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        with torch.no_grad():
            trainer._get_per_token_logps_and_entropies(toy.model, ids, mask)
        assert trainer._divergences is not None
        surrogate = -(part["advantages"][:, None] * part["tool_mask"]).sum()
        away = (trainer._divergences * part["tool_mask"]).sum()
        assert away > 0.1
        expected += (0.3 * surrogate + 0.7 * away).item() / tokens * updates
    assert found == pytest.approx(expected, rel=1e-4)


def test_several_updates_are_compared_with_the_weights_that_answered(toy: Reasoner, tmp_path: Path) -> None:
    trainer = trainer_of(toy, tmp_path, recipe(updates=2, redraws=0))
    first = trainer._prepare_inputs([{}] * 2 * SAMPLES)
    answered = [trainer._log_probs(part) for part in trainer._parts]
    torch.testing.assert_close(first["old_per_token_logps"], answered[0])
    with torch.no_grad():
        toy.model.get_input_embeddings().weight.mul_(1.5)
    trainer._step += 1
    second = trainer._prepare_inputs([])
    torch.testing.assert_close(second["old_per_token_logps"], answered[1])
    assert not torch.allclose(trainer._log_probs(second), answered[1], atol=1e-2)
    single = trainer_of(toy, tmp_path, recipe(redraws=0))
    assert "old_per_token_logps" not in single._prepare_inputs([{}] * 2 * SAMPLES)


def test_every_batch_of_answers_is_of_other_tasks_and_another_seed(toy: Reasoner, tmp_path: Path) -> None:
    calls: list[tuple[list[int], int]] = []

    def noted(tasks: Sequence[int], seed: int) -> list[Group]:
        calls.append((list(tasks), seed))
        return draw(toy, tasks, seed)

    trainer_of(toy, tmp_path, recipe(steps=2, updates=2, redraws=0), draw=noted).fit("rl")
    assert sorted(task for tasks, _ in calls for task in tasks) == [0, 1, 2, 3]
    assert len({seed for _, seed in calls}) == 2


def test_groups_without_signal_are_redrawn(toy: Reasoner, tmp_path: Path) -> None:
    trainer = trainer_of(toy, tmp_path, recipe(redraws=20), flat=2)
    groups, drawn = trainer._live_groups(0, 0, 2)
    rewards = [{rollout.reward for rollout in group} for group in groups]
    assert all(len(each) > 1 for each in rewards)
    assert 2 <= len(drawn) <= 22
    again, _ = trainer._live_groups(0, 0, 2)
    assert [[r.tokens for r in group] for group in again] == [[r.tokens for r in group] for group in groups]


def test_redraws_are_bounded_and_what_is_missing_counts_for_nothing(toy: Reasoner, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(tasks: Sequence[int], seed: int) -> list[Group]:
        calls.append(len(tasks))
        flat = 4 if len(calls) > 1 else 0
        groups = draw(toy, tasks, seed, flat=flat)
        dead = draw(toy, tasks[:1], seed, flat=4)
        return [*dead, *groups[1:]]

    trainer = trainer_of(toy, tmp_path, recipe(redraws=3), draw=counted)
    batch = trainer._generate_and_score_completions([{}] * 2 * SAMPLES)
    assert calls == [2, 1, 1, 1]
    live = batch["tool_mask"].any(1)
    assert int(live.sum()) == SAMPLES
    assert bool((batch["advantages"][~live] == 0).all())
    assert batch["num_items_in_batch"] == batch["made"][live].sum()
    assert trainer._metrics["train"]["rollouts/live"] == [0.5]
    assert trainer._metrics["train"]["rollouts/drawn"] == [2.5]


def test_parts_are_whole_groups_without_needless_padding(toy: Reasoner, tmp_path: Path) -> None:
    def uneven(tasks: Sequence[int], seed: int) -> list[Group]:
        first, second = draw(toy, tasks, seed)
        longer = [replace(each, prompt=[*each.prompt, *each.prompt], reward=0.5) for each in second]
        return [first, longer]

    trainer = trainer_of(toy, tmp_path, recipe(redraws=0), draw=uneven)
    live = trainer._prepare_inputs([{}] * 2 * SAMPLES)
    assert live["prompt_ids"].shape == (SAMPLES, len(prompt_of(toy, 0)))
    assert bool((live["prompt_ids"] == live["prompt_ids"][:1]).all())
    assert bool(live["completion_mask"].any(0).all())
    trainer._step += 1
    # All of the other group's answers earn the same, so that nothing of it has to be read.
    dead = trainer._prepare_inputs([])
    assert dead["prompt_ids"].shape == dead["completion_ids"].shape == (SAMPLES, 1)
    assert dead["num_items_in_batch"] == live["num_items_in_batch"] == live["made"].sum()


def test_every_pass_over_the_tasks_has_each_once(toy: Reasoner, tmp_path: Path) -> None:
    trainer = trainer_of(toy, tmp_path, recipe(groups=2), tasks=5)
    order = np.concatenate([trainer._schedule(step) for step in range(5)]).tolist()
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert order[:5] != order[5:]


@pytest.mark.parametrize("updates", [1, 2])
def test_a_checkpoint_continues_exactly(toy: Reasoner, tmp_path: Path, updates: int) -> None:
    chosen = recipe(updates=updates)
    whole = trainer_of(toy, tmp_path / "whole", chosen)
    whole.fit("rl")
    expected = {name: value.clone() for name, value in toy.model.state_dict().items()}
    toy.model.load_state_dict(start()[1])
    cut = trainer_of(toy, tmp_path / "cut", chosen)

    class Cut(TrainerCallback):
        """With several updates, between those of one batch of answers."""

        def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
            if state.global_step == 2 * updates + 1:
                raise Gr2Error("cut")

    cut.add_callback(Cut)
    with pytest.raises(Gr2Error, match="cut"):
        cut.fit("rl")
    toy.model.load_state_dict(start()[1])
    resumed = trainer_of(toy, tmp_path / "cut", chosen)
    resumed.fit("rl")
    assert len(resumed.history) == 4 * updates
    for name, value in toy.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.history == whole.history
    first, second = (
        [{name: value for name, value in entry.items() if "time" not in name} for entry in each.state.log_history[:-1]]
        for each in (whole, resumed)
    )
    assert first == second


@pytest.mark.parametrize("form", ["reverse", "forward"])
def test_pure_distillation_comes_close_to_the_anchor(toy: Reasoner, tmp_path: Path, form: str) -> None:
    teacher = type(toy.model)(toy.model.config)
    teacher.load_state_dict(toy.model.state_dict())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        rows = teacher.get_input_embeddings().weight
        rows += 0.3 * torch.randn(rows.shape, generator=generator)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    chosen = recipe(steps=14, policy=0.0, kl=1.0, divergence=form, redraws=0, learning_rate=1e-2)
    trainer = trainer_of(toy, tmp_path, chosen, flat=4, anchor=teacher)
    trainer.fit("rl")
    away = [entry["divergence"] for entry in trainer.state.log_history if "divergence" in entry]
    assert np.mean(away[-3:]) < 0.6 * np.mean(away[:3])
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())


def test_a_training_without_anything_to_learn_from_ends_and_says_why(toy: Reasoner, tmp_path: Path) -> None:
    flat = recipe(steps=9, redraws=0, idle_steps=3)
    with pytest.raises(
        Gr2Error, match=r"each of the first 3 steps all 6 answers to a list earned the same.*constrained"
    ):
        trainer_of(toy, tmp_path / "flat", flat, flat=4).fit("rl")
    # What has taught something before may come to an end of it.
    calls: list[int] = []

    def fading(tasks: Sequence[int], seed: int) -> list[Group]:
        calls.append(seed)
        return draw(toy, tasks, seed, flat=0 if len(calls) == 1 else 4)

    trainer_of(toy, tmp_path / "fading", recipe(steps=5, redraws=0, idle_steps=3), draw=fading).fit("rl")
    assert len(calls) == 5
    # Whoever wants it all the same gets it.
    trainer_of(toy, tmp_path / "flat", replace(flat, idle_steps=0), flat=4).fit("rl")


def test_fewer_tasks_than_groups_are_refused(toy: Reasoner, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="groups = 2 lists, but there are 1"):
        trainer_of(toy, tmp_path, recipe(), tasks=1)


def work(folder: Path) -> None:
    """What each process of `test_processes_agree` does: one task of two has no signal."""
    torch.set_num_threads(1)
    reasoner = start()[0]
    chosen = recipe(groups=4, redraws=3, steps=2)
    seen: list[int] = []

    def watch(outcomes: Sequence[Any], history: Sequence[Any]) -> dict[str, float]:
        seen.append(len(outcomes))
        return {}

    drawn: list[list[int]] = []

    def noted(tasks: Sequence[int], seed: int) -> list[Group]:
        drawn.append(list(tasks))
        groups: list[Group] = draw(reasoner, tasks, seed, flat=4)
        return groups

    trainer = trainer_of(reasoner, folder / "trainer", chosen, tasks=8, draw=noted, watch=watch)
    trainer.fit("rl")
    record = {
        "weights": sum(float(value.double().abs().sum()) for value in reasoner.model.state_dict().values()),
        "seen": seen,
        "processes": trainer.accelerator.num_processes,
        "history": trainer.history,
        "checkpoints": sorted(path.name for path in (folder / "trainer").glob("checkpoint-*")),
    }
    rank = trainer.accelerator.process_index
    (folder / f"{rank}.json").write_text(json.dumps(record))
    (folder / f"tasks-{rank}.json").write_text(json.dumps(drawn[0]))
    # As every stage does: threads of a connection that is still open abort the interpreter's end.
    del trainer
    Workers().end()


def test_processes_agree(tmp_path: Path) -> None:
    loader = (
        "import importlib.util, pathlib, sys; spec = importlib.util.spec_from_file_location('toy', sys.argv[1]); "
        "toy = importlib.util.module_from_spec(spec); sys.modules['toy'] = toy; spec.loader.exec_module(toy); "
        "toy.work(pathlib.Path(sys.argv[2]))"
    )
    script = tmp_path / "work.py"
    script.write_text(loader)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), __file__, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["processes"] == 2
    # Groups of both processes are seen by both, and some had to be redrawn.
    assert len(first["seen"]) == 2
    assert max(first["seen"]) > 4 * SAMPLES
    assert first["checkpoints"] == ["checkpoint-2"]
    # Each has its own share of the step's tasks.
    mine, others = (set(json.loads((tmp_path / f"tasks-{rank}.json").read_text())) for rank in (0, 1))
    assert (len(mine), len(others), mine & others) == (2, 2, set())
