import pytest
import torch

from gr2.models.scratch import scratch_model, scratch_tokenizer

TEXTS = ["Rose water soap, 200 ml", "Herbal shampoo for dry hair"] * 4


@pytest.mark.parametrize("text", ["Rose water soap", "Crème brûlée\n«ünïcode» 石鹸", " two  spaces "])
def test_any_text_reads_back(text):
    tokenizer = scratch_tokenizer(TEXTS, 320)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_vocabulary_is_bounded_and_learns_the_texts():
    tokenizer = scratch_tokenizer(TEXTS, 320)
    assert len(tokenizer) <= 320
    assert len(tokenizer("shampoo")["input_ids"]) < len("shampoo")


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="no room for 256 bytes"):
        scratch_tokenizer(TEXTS, 200)


def test_the_seed_decides_the_weights_and_nothing_else_random():
    tokenizer = scratch_tokenizer(TEXTS, 300)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second, other = (scratch_model("tiny", tokenizer, seed=seed) for seed in (0, 0, 1))
    rows = [model.get_input_embeddings().weight for model in (first, second, other)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), state)
