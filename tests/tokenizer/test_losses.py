"""Diversity and contrastive losses."""

from __future__ import annotations

import math

import pytest
import torch

from gr2.tokenizer.losses import diversity_loss, info_nce


def test_diversity_is_one_when_even_and_the_number_of_codes_when_collapsed() -> None:
    assert diversity_loss(torch.zeros(3, 8)).item() == pytest.approx(1.0)
    collapsed = torch.full((3, 8), 1e4)
    collapsed[:, 2] = 0.0
    assert diversity_loss(collapsed).item() == pytest.approx(8.0)


def test_diversity_equals_the_formula() -> None:
    distances = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.3, 0.4]])
    shares = torch.exp(-distances) / torch.exp(-distances).sum(1, keepdim=True)
    p = shares.mean(0)
    assert diversity_loss(distances).item() == pytest.approx((2 * (p[0] ** 2 + p[1] ** 2)).item())


def test_diversity_gradient_pushes_residuals_off_the_crowded_code() -> None:
    residuals = torch.tensor([[0.3], [0.2], [0.4]], requires_grad=True)
    codes = torch.tensor([[0.0], [1.0]])
    diversity_loss((residuals - codes.T).square()).backward()  # type: ignore[no-untyped-call]
    assert residuals.grad is not None
    assert (residuals.grad < 0).all()  # a descent step moves them towards the code at 1


def test_info_nce_equals_the_formula_and_does_not_depend_on_length() -> None:
    anchors, partners = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    half = math.sqrt(0.5)
    expected = -(1 / 0.5 - math.log(math.exp(1 / 0.5) + math.exp(half / 0.5)))
    expected += -(half / 0.5 - math.log(math.exp(0.0) + math.exp(half / 0.5)))
    loss = info_nce(anchors, partners, torch.tensor([4, 5]), temperature=0.5)
    assert loss.item() == pytest.approx(expected / 2)
    assert info_nce(9 * anchors, partners, torch.tensor([4, 5]), 0.5).item() == pytest.approx(expected / 2)


def test_the_same_partner_in_another_row_is_no_negative() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    partners = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert info_nce(anchors, partners, torch.tensor([4, 4]), 0.1).item() == pytest.approx(0.0)
    assert info_nce(anchors, partners, torch.tensor([4, 5]), 0.1).item() == pytest.approx(math.log(2))
