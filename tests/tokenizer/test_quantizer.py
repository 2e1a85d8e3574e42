"""Residual quantisation and the ways its codes move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr2.tokenizer.quantizer import SMOOTHING, ResidualQuantizer
from gr2.tokenizer.residual_kmeans import nearest_codes
from gr2.tokenizer.settings import RqvaeSettings


def quantizer(codes: list[list[list[float]]], **settings: object) -> ResidualQuantizer:
    return ResidualQuantizer(torch.tensor(codes), RqvaeSettings(**settings))  # type: ignore[arg-type]


def test_codes_are_the_nearest_of_each_residual() -> None:
    rng = np.random.default_rng(0)
    books, points = rng.normal(size=(3, 5, 4)).astype(np.float32), rng.normal(size=(20, 4)).astype(np.float32)
    made = ResidualQuantizer(torch.from_numpy(books), RqvaeSettings())(torch.from_numpy(points))
    residual = points.copy()
    for level, book in enumerate(books):
        expected, _ = nearest_codes(residual, book)
        np.testing.assert_array_equal(made.codes[:, level], expected)
        residual -= book[expected]
    np.testing.assert_allclose(made.total, points - residual, atol=1e-5)


def test_ema_step_equals_the_one_by_hand() -> None:
    model = quantizer([[[0.0], [10.0]]], ema_decay=0.9)
    points = torch.tensor([[1.0], [2.0], [9.0]])
    model.ema_update(model(points))
    sizes = [0.9 * 1 + 0.1 * 2, 0.9 * 1 + 0.1 * 1]
    sums = [0.9 * 0.0 + 0.1 * 3.0, 0.9 * 10.0 + 0.1 * 9.0]
    smoothed = [(size + SMOOTHING) / (sum(sizes) + 2 * SMOOTHING) * sum(sizes) for size in sizes]
    torch.testing.assert_close(model.sizes[0], torch.tensor(sizes))
    torch.testing.assert_close(model.sums[0, :, 0], torch.tensor(sums))
    expected = torch.tensor([total / size for total, size in zip(sums, smoothed, strict=True)])
    torch.testing.assert_close(model.codes[0, :, 0], expected)


def test_ema_codes_are_no_parameters_and_the_others_are() -> None:
    assert not list(quantizer([[[0.0]]], codebook_update="ema").parameters())
    assert list(quantizer([[[0.0]]], codebook_update="gradient").parameters())
    assert list(quantizer([[[0.0]]], codebook_update="ema_step").parameters())


def test_damped_step_is_one_minus_decay_of_the_whole_step() -> None:
    model = quantizer([[[0.0], [4.0]]], codebook_update="ema_step", ema_decay=0.75)
    before = model.codes.detach().clone()
    with torch.no_grad():
        model.codes += 4.0
    model.damp_step(before)
    assert model.codes.flatten().tolist() == [1.0, 5.0]


def test_gradients_reach_codes_by_one_loss_and_latents_by_the_other() -> None:
    model = quantizer([[[0.0], [10.0]]], codebook_update="gradient")
    points = torch.tensor([[1.0], [2.0]], requires_grad=True)
    model.codebook_loss(model(points)).backward()  # type: ignore[no-untyped-call]
    assert points.grad is None
    assert model.codes.grad is not None
    assert model.codes.grad.flatten().tolist() == [-3.0, 0.0]
    model.codes.grad = None
    model.commitment_loss(model(points)).backward()  # type: ignore[no-untyped-call]
    assert model.codes.grad is None
    assert points.grad is not None
    assert points.grad.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("update", ["ema", "gradient", "ema_step"])
def test_dead_codes_come_back_at_the_worst_residuals(update: str) -> None:
    model = quantizer([[[0.0], [100.0], [200.0]]], codebook_update=update, dead_after=2)
    points = torch.tensor([[0.0], [7.0], [-1.0], [9.0]])
    assert model.reset_dead(model(points)) == 0
    assert model.codes.flatten().tolist() == [0.0, 100.0, 200.0]
    assert model.reset_dead(model(points)) == 2
    assert model.codes.flatten().tolist() == [0.0, 9.0, 7.0]
    assert sorted(model(points).codes[:, 0].tolist()) == [0, 0, 1, 2]
    assert model.reset_dead(model(points)) == 0


def test_a_code_in_use_is_never_dead() -> None:
    model = quantizer([[[0.0], [10.0]]], dead_after=2)
    for points in ([[0.0]], [[10.0]], [[0.0]], [[10.0]]):
        assert model.reset_dead(model(torch.tensor(points))) == 0
