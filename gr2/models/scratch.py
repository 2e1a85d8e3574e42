"""Models from scratch: a Qwen3 architecture of a stated size, and a tokenizer trained on the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

__all__ = ["CHAT_TEMPLATE", "END_OF_TURN", "SIZES", "Shape", "Size", "scratch_model", "scratch_tokenizer"]

Size = Literal["tiny", "small", "base"]
END_OF_TURN, START_OF_TURN, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
BYTES = 256

# ChatML, as the Qwen family speaks it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Width, transformer blocks, attention heads and width of the feed-forward layers."""

    dim: int
    layers: int
    heads: int
    inner: int


SIZES: dict[Size, Shape] = {
    "tiny": Shape(dim=32, layers=2, heads=2, inner=64),
    "small": Shape(dim=128, layers=4, heads=4, inner=384),
    "base": Shape(dim=256, layers=6, heads=4, inner=768),
}


def scratch_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, trained on `texts`, with the ChatML template.

    Raises ValueError if `vocabulary` leaves no room for the bytes.
    """
    special = [PAD, START_OF_TURN, END_OF_TURN]
    if vocabulary < BYTES + len(special):
        raise ValueError(
            f"a vocabulary of {vocabulary} has no room for {BYTES} bytes and {len(special)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=END_OF_TURN, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def scratch_model(size: Size, tokenizer: PreTrainedTokenizerBase, *, context: int = 4096, seed: int) -> PreTrainedModel:
    """A randomly initialised Qwen3 for the tokenizer's vocabulary, in float32; `seed` decides its weights."""
    shape = SIZES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.dim,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.dim // shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3(config)
