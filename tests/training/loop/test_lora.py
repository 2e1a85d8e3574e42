import pytest
import torch

from gr2.models.reasoner import SidSpec, extend, vocabulary_rows
from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.language.causal_loss import CausalLoss
from gr2.training.loop.lora import adapters, only_new_rows
from gr2.training.loop.optimisation import adamw

# peft asks transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def reasoner():
    tokenizer = scratch_tokenizer(["some words to learn from"] * 3, 300)
    return extend(scratch_model("tiny", tokenizer, seed=2), tokenizer, SidSpec(3, 8, "f00d"))


def steps(reasoner, count=3):
    ids = torch.from_numpy(reasoner.new_tokens)[:24].reshape(2, 12)
    ids = torch.cat([torch.tensor([[65], [66]]), ids], 1)
    learnt = torch.ones_like(ids, dtype=torch.bool)
    loss = CausalLoss(reasoner.model)
    optimiser = adamw(loss, 1e-2, 0.0)
    values = []
    for _ in range(count):
        optimiser.zero_grad()
        value = loss(ids, learnt)
        value.backward()
        optimiser.step()
        values.append(value.item())
    return values


def test_only_the_new_rows_change(reasoner):
    before = {name: value.clone() for name, value in reasoner.model.state_dict().items()}
    with only_new_rows(reasoner):
        losses = steps(reasoner)
    assert losses[-1] < losses[0]
    changed = {name for name, value in reasoner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    (rows,) = vocabulary_rows(reasoner.model)
    moved = (rows != before["model.embed_tokens.weight"]).any(1).nonzero().flatten().tolist()
    assert set(moved) <= set(reasoner.new_tokens.tolist())
    assert len(moved) >= 24
    assert all(parameter.requires_grad for parameter in reasoner.model.parameters())


def test_adapters_train_in_the_place_of_weights_and_are_merged(reasoner):
    before = {name: value.clone() for name, value in reasoner.model.state_dict().items()}
    ids = torch.from_numpy(reasoner.new_tokens)[None, :10]
    with adapters(reasoner, 4, 0):
        trained = [name for name, value in reasoner.model.named_parameters() if value.requires_grad]
        assert all("lora" in name or "embed_tokens" in name for name in trained)
        losses = steps(reasoner)
        with torch.no_grad():
            adapted = reasoner.model(ids).logits
    assert losses[-1] < losses[0]
    after = reasoner.model.state_dict()
    assert after.keys() == before.keys()
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    with torch.no_grad():
        torch.testing.assert_close(reasoner.model(ids).logits, adapted, rtol=1e-3, atol=1e-4)
    assert all(parameter.requires_grad for parameter in reasoner.model.parameters())


def test_the_seed_draws_the_adapters(reasoner):
    found = []
    for seed in (0, 0, 1):
        with adapters(reasoner, 2, seed):
            found.append([value.clone() for name, value in reasoner.model.named_parameters() if "lora_A" in name])
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])
