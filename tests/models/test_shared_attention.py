"""Attention whose prompts are shared gives what attention with copies of them gives."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gr2.models.reading import Context
from gr2.models.shared_attention import can_share_prompts, sharing_prompts

SHAPE = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
PROMPTS = [[3, 4, 5, 6, 7], [8, 9]]
ANSWERS = [[1, 2], [3], [4, 5, 6], [7]], [[9], [], list(range(20)), [8, 1]]


def make(heads, groups, family=Qwen3ForCausalLM, config=Qwen3Config, **more):
    torch.manual_seed(3)
    return family(config(**SHAPE, num_attention_heads=heads, num_key_value_heads=groups, **more)).eval()


@torch.no_grad()
def copied(model):
    context = Context(model, 2)
    context.read(PROMPTS)
    context.repeat(2)
    return [context.read(tokens) for tokens in ANSWERS]


@torch.no_grad()
def shared(model):
    context = Context(model, 2)
    context.read(PROMPTS)
    with sharing_prompts(model):
        context.repeat(2, share=True)
        return [context.read(tokens) for tokens in ANSWERS]


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (4, 1)])
def test_rows_that_share_a_prompt_read_what_rows_with_copies_of_it_read(heads, groups):
    model = make(heads, groups, head_dim=8)
    for number, (expected, found) in enumerate(zip(copied(model), shared(model), strict=True)):
        # A row that is given nothing has logits that mean nothing.
        rows = [row for row, tokens in enumerate(ANSWERS[number]) if tokens]
        torch.testing.assert_close(found[rows], expected[rows], rtol=1e-4, atol=1e-5)


def test_other_families_share_prompts_too():
    model = make(4, 2, LlamaForCausalLM, LlamaConfig)
    for expected, found in zip(copied(model)[:1], shared(model)[:1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_shared_prompt_is_seen_by_its_own_rows_alone():
    model = make(2, 2)
    before = shared(model)[0]
    PROMPTS[1][0] += 1
    try:
        after = shared(model)[0]
    finally:
        PROMPTS[1][0] -= 1
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[2:], after[2:])


def test_a_model_attends_as_before_after_sharing():
    model = make(2, 2)
    expected = copied(model)[0]
    with pytest.raises(RuntimeError, match="stop"), sharing_prompts(model):
        raise RuntimeError("stop")
    assert torch.equal(copied(model)[0], expected)


def test_attention_that_cannot_be_put_in_parts_is_left_alone():
    model = make(2, 2)
    assert can_share_prompts(model)
    model.set_attn_implementation("eager")
    assert not can_share_prompts(model)
