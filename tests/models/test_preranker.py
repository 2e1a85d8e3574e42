from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gr2.models.linear_cross_entropy import CHUNK, linear_cross_entropy
from gr2.models.preranker import PreRanker


def model(items: int = 30, **shape: int) -> PreRanker:
    torch.manual_seed(0)
    return PreRanker(items, dim=16, **shape).eval()


@pytest.mark.parametrize("rows", [1, 63, CHUNK, 2 * CHUNK + 1])
def test_fused_cross_entropy_equals_torch(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=generator, requires_grad=True)
    weight = torch.randn(1000, 8, generator=generator, requires_grad=True)
    target = torch.randint(0, 1000, (rows,), generator=generator)

    expected = functional.cross_entropy(hidden @ weight.t(), target)
    expected_gradients = torch.autograd.grad(3.0 * expected, [hidden, weight])
    loss = linear_cross_entropy(hidden, weight, target)
    gradients = torch.autograd.grad(3.0 * loss, [hidden, weight])

    torch.testing.assert_close(loss, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_fused_cross_entropy_in_bfloat16_is_close() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 16, generator=generator, requires_grad=True)
    weight = 0.2 * torch.randn(500, 16, generator=generator)
    target = torch.randint(0, 500, (300,), generator=generator)
    expected = functional.cross_entropy(hidden @ weight.t(), target)
    (wanted,) = torch.autograd.grad(expected, [hidden])
    loss = linear_cross_entropy(hidden, weight, target, dtype=torch.bfloat16)
    (gradient,) = torch.autograd.grad(loss, [hidden])
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    assert torch.linalg.vector_norm(gradient - wanted) < 0.02 * torch.linalg.vector_norm(wanted)


def test_fused_cross_entropy_stays_finite_when_the_target_is_hopeless() -> None:
    hidden = torch.tensor([[200.0]], requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(2.0)


def test_fused_cross_entropy_names_the_shapes_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(5, 4\), \(2,\)"):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="no rows"):
        linear_cross_entropy(torch.zeros(0, 3), torch.zeros(5, 3), torch.zeros(0, dtype=torch.int64))


def test_a_later_item_changes_no_earlier_query() -> None:
    network = model(layers=2)
    items = torch.arange(12).reshape(1, 12)
    changed = items.clone()
    changed[0, 7:] = 29
    before, after = network(items), network(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=0)
    assert not torch.allclose(after[:, 7:], before[:, 7:])


def test_padding_changes_no_query_and_no_loss() -> None:
    network = model()
    short, lengths = torch.tensor([[3, 5, 7]]), torch.tensor([3])
    padded = torch.tensor([[3, 5, 7, 11, 13]])
    torch.testing.assert_close(network.last_query(padded, lengths), network.last_query(short, lengths))
    loss, count = network.loss(short, lengths)
    padded_loss, padded_count = network.loss(padded, lengths)
    torch.testing.assert_close(padded_loss, loss)
    assert count == padded_count == 2


def test_loss_is_the_cross_entropy_of_the_next_item() -> None:
    network = model()
    sequence = torch.tensor([[3, 5, 7, 9]])
    logits = network(sequence[:, :-1])[0] @ network.item.weight.t()
    loss, _ = network.loss(sequence, torch.tensor([4]))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, sequence[0, 1:]))


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="dim 16 and heads 3"):
        model(heads=3)
    with pytest.raises(ValueError, match="at most 4 events expected, got 5"):
        model(max_history=4)(torch.zeros(1, 5, dtype=torch.int64))
