from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from gr2.models.scratch import scratch_model, scratch_tokenizer
from gr2.training.language.causal_loss import CausalLoss, keeps_rows_apart
from gr2.training.language.packing import Batch, packed_batches, sequences
from gr2.training.language.token_rows import TokenRows
from gr2.training.loop.attention import fast_attention


def table_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 259, length).astype(np.int32) for length in lengths]
    return TokenRows.of(rows, [np.append(rng.random(length - 1) < 0.7, True) for length in lengths])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 200), st.integers(0, 3))
def test_packed_batches_hold_every_row_once_within_their_tokens(lengths, tokens, seed):
    table = table_of(lengths)
    batches = packed_batches(table, np.arange(len(table)), tokens, np.random.default_rng(seed))
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(len(table)))
    for batch in batches:
        ids, learnt, positions = batch.tensors(table)
        assert ids.shape == learnt.shape == positions.shape
        assert ids.shape[0] == 1 or ids.numel() <= tokens
        assert ids.shape[1] <= max(lengths)


def test_a_packed_sequence_is_its_rows_one_after_the_other():
    rows = [np.array([7, 8, 9]), np.array([5, 6]), np.array([1, 2, 3, 4])]
    table = TokenRows.of(rows, [np.ones(len(row), dtype=np.bool_) for row in rows])
    ids, learnt, positions = Batch(np.array([1, 0, 2]), np.array([0, 0, 1])).tensors(table)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [1, 2, 3, 4, 0]]
    assert positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    # No row's first token is learnt: it would be predicted from the row before.
    assert learnt.tolist() == [[False, True, False, True, True], [False, True, True, True, False]]


def test_next_to_no_padding_is_left():
    lengths = np.random.default_rng(0).integers(4, 200, 3000)
    held = sequences(lengths, 256)
    assert len(held) * 256 < 1.02 * lengths.sum()
    assert max(int(lengths[rows].sum()) for rows in held) <= 256


def test_the_generator_decides_what_lies_together():
    table = table_of([3, 5, 7] * 20)
    first, again, other = (
        [batch.rows.tolist() for batch in packed_batches(table, np.arange(60), 30, np.random.default_rng(seed))]
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("plain_attention", [True, False], ids=["eager", "sdpa"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused head", "logits"])
def test_packed_rows_give_the_loss_and_the_gradients_of_rows_apart(plain_attention, fused):
    table = table_of([9, 4, 6, 12, 3, 5, 8, 2, 7])
    (batch,) = packed_batches(table, np.arange(len(table)), 1000, np.random.default_rng(0))
    assert len(batch.tensors(table)[0]) < len(table)
    loss = CausalLoss(scratch_model("tiny", scratch_tokenizer(["some words"], 300), seed=2))
    loss.fused = fused

    def computed(tensors):
        loss.zero_grad()
        found = loss(*tensors)
        found.backward()
        return found.item(), [parameter.grad.clone() for parameter in loss.parameters()]

    with fast_attention(loss.model) if plain_attention else nullcontext():
        packed, mine = computed(batch.tensors(table))
        apart, theirs = computed(Batch(np.arange(len(table))).tensors(table))
    assert packed == pytest.approx(apart, abs=1e-5)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_model_that_would_read_rows_as_one_is_found_out():
    assert keeps_rows_apart(scratch_model("tiny", scratch_tokenizer(["some words"], 300), seed=2))
    torch.manual_seed(0)
    assert keeps_rows_apart(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)))
    # Its positions are in its attention, and it takes none.
    assert not keeps_rows_apart(BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2)))
