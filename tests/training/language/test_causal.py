from dataclasses import replace

import numpy as np
import pytest
import torch

from gr2.errors import Gr2Error
from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.language.causal import CausalTrainer, Recipe, schedule
from gr2.training.language.causal_loss import CausalLoss
from gr2.training.language.mix import Mix
from gr2.training.language.packing import Batch
from gr2.training.language.token_rows import TokenRows
from gr2.training.loop.dropout import dropout
from gr2.training.loop.workers import Workers

RECIPE = Recipe(
    epochs=3,
    batch_tokens=60,
    accumulate=2,
    learning_rate=1e-2,
    weight_decay=0.01,
    warmup=0.1,
    clip=1.0,
    checkpoint_seconds=0.0,
)


@pytest.fixture(scope="module")
def mix():
    rng = np.random.default_rng(0)
    rows = [np.arange(length) % 7 + 260 for length in rng.integers(4, 12, 40)]
    return Mix.of({"count": TokenRows.of(rows, [np.ones(len(row), np.bool_) for row in rows])}, {"count": 0.75})


def trainer_of(mix, recipe=RECIPE, checkpoint=None, seed=0):
    model = scratch_model("tiny", scratch_tokenizer(["some words to learn"], 300), seed=1)
    return CausalTrainer(
        CausalLoss(model), mix, recipe, seed=seed, workers=Workers(), name="test", checkpoint=checkpoint
    )


def weights(trainer):
    return trainer.loss.state_dict()


def test_training_learns_the_rows(mix):
    trainer = trainer_of(mix)
    trainer.train()
    assert len(trainer.losses) == 3
    assert trainer.losses[-1] < 0.75 * trainer.losses[0]
    assert trainer.tokens > 0


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(("at", "packed"), [(1, False), (5, False), (9, False), (5, True)])
def test_a_killed_training_ends_as_one_that_nobody_disturbed(mix, tmp_path, monkeypatch, at, packed):
    torch.manual_seed(99)
    recipe = replace(RECIPE, packed=packed)
    whole = trainer_of(mix, recipe)
    with dropout(whole.loss.model, 0.2):
        whole.train()
    checkpoint = tmp_path / "state.pt"
    killed = trainer_of(mix, recipe, checkpoint=checkpoint)
    step = CausalTrainer._step

    def counted(self, *arguments):
        step(self, *arguments)
        if self.step == at:
            raise Stopped

    with monkeypatch.context() as patch, dropout(killed.loss.model, 0.2):
        patch.setattr(CausalTrainer, "_step", counted)
        with pytest.raises(Stopped):
            killed.train()
    resumed = trainer_of(mix, recipe, checkpoint=checkpoint)
    assert resumed.step == at
    with dropout(resumed.loss.model, 0.2):
        resumed.train()
    assert resumed.losses == whole.losses
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_a_finished_training_does_nothing_more(mix, tmp_path):
    checkpoint = tmp_path / "state.pt"
    first = trainer_of(mix, checkpoint=checkpoint)
    first.train()
    again = trainer_of(mix, checkpoint=checkpoint)
    again.train()
    assert again.step == first.step
    assert all(torch.equal(value, weights(first)[name]) for name, value in weights(again).items())


def test_accumulated_batches_make_the_step_of_one_batch(mix):
    ids, learnt = mix.rows.batch(np.arange(6))
    halves = [np.arange(2), np.arange(2, 6)]
    trainer = trainer_of(mix)
    total = trainer._gradients([Batch(rows) for rows in halves], int(learnt.sum()))
    accumulated = [parameter.grad.clone() for parameter in trainer.loss.parameters()]
    trainer.loss.zero_grad()
    loss = trainer.loss(ids, learnt)
    loss.backward()
    assert total == pytest.approx(loss.item(), rel=1e-5)
    for one, parameter in zip(accumulated, trainer.loss.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_seed_decides_the_result(mix):
    trainers = [trainer_of(mix, seed=seed) for seed in (0, 0, 1)]
    for trainer in trainers:
        trainer.train()
    assert trainers[0].losses == trainers[1].losses
    assert trainers[0].losses != trainers[2].losses


def test_a_training_that_diverges_says_what_to_lower(mix):
    trainer = trainer_of(mix)
    with torch.no_grad():
        next(trainer.loss.parameters()).fill_(float("nan"))
    with pytest.raises(Gr2Error, match="learning_rate"):
        trainer.train()


def test_the_learning_rate_rises_and_falls():
    values = [schedule(progress, 0.1) for progress in np.linspace(0, 0.999, 200)]
    peak = int(np.argmax(values))
    assert values[peak] == pytest.approx(1.0, abs=0.01)
    assert peak == pytest.approx(20, abs=1)
    assert values == sorted(values[: peak + 1]) + sorted(values[peak + 1 :], reverse=True)
    assert values[-1] == pytest.approx(0.01, abs=1e-3)
