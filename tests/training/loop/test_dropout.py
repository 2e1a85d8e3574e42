import pytest
import torch

from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.loop.dropout import dropout


@pytest.fixture
def model():
    return scratch_model("tiny", scratch_tokenizer(["some words"], 300), seed=2)


IDS = torch.arange(1, 61).reshape(3, 20)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_training_drops_by_the_seed_and_evaluation_does_not(model):
    plain = logits(model.eval())
    with dropout(model, 0.3):
        assert torch.equal(logits(model), plain)
        model.train()
        dropped = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            dropped.append(logits(model))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    assert not torch.equal(dropped[0], plain)
    assert torch.equal(logits(model), plain)


def test_the_share_is_dropped_and_the_rest_made_up_for(model):
    seen = []
    embedding = model.get_input_embeddings()
    model.train()
    torch.manual_seed(0)
    with dropout(model, 0.25):
        hook = embedding.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for _ in range(20):
            logits(model)
        hook.remove()
    kept = torch.stack(seen) / embedding(IDS)
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 256 / 192))
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)


def test_no_dropout_leaves_no_trace(model):
    plain = logits(model.train())
    with dropout(model, 0.0):
        assert torch.equal(logits(model), plain)
