import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.language.causal_loss import CausalLoss, has_plain_head
from gr2.training.loop.attention import fast_attention


@pytest.fixture
def model():
    return scratch_model("tiny", scratch_tokenizer(["some words"], 300), seed=2)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 259, (4, 9), generator=generator)
    learnt = torch.rand(4, 9, generator=generator) < 0.5
    learnt[:, 0] = False
    return ids, learnt


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("plain_attention", [True, False])
def test_the_loss_is_the_mean_over_learnt_tokens(model, batch, fused, plain_attention):
    ids, learnt = batch
    reference = F.log_softmax(model(ids).logits.double(), -1)
    expected = -sum(
        reference[row, column - 1, ids[row, column]] for row in range(4) for column in range(9) if learnt[row, column]
    ) / int(learnt.sum())
    loss = CausalLoss(model)
    assert loss.fused
    loss.fused = fused
    if plain_attention:
        with fast_attention(model):
            found = loss(ids, learnt)
    else:
        found = loss(ids, learnt)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_both_ways_to_the_loss_have_the_same_gradients(model, batch):
    gradients = []
    for fused in (True, False):
        loss = CausalLoss(model)
        loss.fused = fused
        loss(*batch).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_padding_changes_nothing(model, batch):
    ids, learnt = batch
    loss = CausalLoss(model)
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.int64)], 1)
    more = torch.cat([learnt, torch.zeros(4, 3, dtype=torch.bool)], 1)
    assert loss(padded, more).item() == pytest.approx(loss(ids, learnt).item(), rel=1e-5)


def test_lower_precision_stays_near(model, batch):
    exact, low = CausalLoss(model)(*batch).item(), CausalLoss(model, bfloat16=True)(*batch).item()
    assert low == pytest.approx(exact, rel=0.02)


def test_a_head_with_more_than_a_product_is_not_plain(model):
    assert has_plain_head(model)
    head = model.get_output_embeddings()
    bent = nn.Linear(head.in_features, head.out_features)
    model.set_output_embeddings(bent)
    assert not has_plain_head(model)


def test_the_kernel_of_attention_is_put_back(model):
    before = model.config._attn_implementation
    with fast_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before
