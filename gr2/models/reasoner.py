"""A causal language model that reads and writes semantic IDs, and its tokenizer, as one folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gr2.artifact import Artifact, write_json
from gr2.decoding.tokens import CodeVocabulary
from gr2.errors import ArtifactError, ConfigError
from gr2.models.pretrained import load_pretrained
from gr2.models.scratch import CHAT_TEMPLATE, END_OF_TURN, START_OF_TURN, Size, scratch_model, scratch_tokenizer
from gr2.prompts.semantic_id import BEGIN, END, level_tokens
from gr2.quiet import without_bars

__all__ = ["RECORD", "Reasoner", "SidSpec", "extend", "from_scratch", "vocabulary_rows"]

SCHEMA = 1
RECORD = "gr2_reasoner.json"
SHARD = "2GB"
# Of the spread of the rows that exist: new rows must differ, and none may start far from what the model knows.
NOISE = 0.1


@dataclass(frozen=True)
class SidSpec:
    """What a model's semantic IDs mean: `codebook` is the SHA-256 of the `codes.npy` that numbered the items."""

    levels: int
    level_size: int
    codebook: str

    @classmethod
    def of(cls, tokenize: Artifact) -> SidSpec:
        """The IDs of a `tokenize` artefact."""
        levels = tokenize.array("codes.npy").shape[1]
        return cls(int(levels), int(tokenize.config["level_size"]), tokenize.files["codes.npy"])


@dataclass(frozen=True, eq=False)
class Reasoner:
    """A model with one token for each level's code. An item is `<|sid_begin|>`, its L codes, `<|sid_end|>`.

    `Reasoner.of` builds it from a model and a tokenizer that have the tokens already; `extend` gives them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sids: SidSpec
    vocabulary: CodeVocabulary

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sids: SidSpec) -> Reasoner:
        """Raises ArtifactError if a token of the semantic IDs is missing, or the model has no row for it."""
        known = tokenizer.get_vocab()
        names = [BEGIN, END, *(name for level in level_tokens(sids.levels, sids.level_size) for name in level)]
        missing = [name for name in names if name not in known]
        if missing:
            raise ArtifactError(
                f"the tokenizer has no token {missing[0]!r} ({len(missing):,} are missing): its semantic IDs are not "
                f"{sids.levels} levels of {sids.level_size}; run midtrain again"
            )
        rows = len(_rows(model.get_input_embeddings()))
        if rows < len(tokenizer):
            raise ArtifactError(f"the tokenizer has {len(tokenizer):,} tokens, the model rows for {rows:,}")
        begin, end, *codes = (known[name] for name in names)
        tokens = np.array(codes, dtype=np.int64).reshape(sids.levels, sids.level_size)
        vocabulary = CodeVocabulary(tokens, _end_of_turn(tokenizer), begin=(begin,), end=(end,))
        return cls(model, tokenizer, sids, vocabulary)

    @cached_property
    def new_tokens(self) -> NDArray[np.int64]:
        """(2 + L V,) the token IDs of the semantic IDs, markers first."""
        vocabulary = self.vocabulary
        return np.concatenate([[*vocabulary.begin, *vocabulary.end], vocabulary.tokens.reshape(-1)]).astype(np.int64)

    def item_tokens(self, codes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(N, L + 2) the tokens of items with the codes (N, L)."""
        vocabulary = self.vocabulary
        middle = vocabulary.tokens[np.arange(vocabulary.levels), codes.astype(np.int64)]
        begin, end = (
            np.full((len(codes), 1), token[0], dtype=np.int64) for token in (vocabulary.begin, vocabulary.end)
        )
        return np.concatenate([begin, middle, end], 1)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` alone: nothing is added before or after."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]], *, answer: str | None = None) -> list[int]:
        """The prompt's tokens up to where the assistant speaks, thinking turned off.

        With `answer`, its tokens and the end of the turn follow.
        """
        prompt = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        ids = self.encode(str(prompt))
        return ids if answer is None else [*ids, *self.encode(answer), self.vocabulary.eos]

    def save(self, folder: Path) -> None:
        """Write weights (safetensors, sharded when large), tokenizer and what the IDs mean to `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        with without_bars():
            self.model.save_pretrained(folder, max_shard_size=SHARD)
        self.tokenizer.save_pretrained(folder)
        record = {"schema": SCHEMA, **asdict(self.sids), "vocabulary": _vocabulary_digest(self.tokenizer)}
        write_json(folder / RECORD, record)

    @classmethod
    def load(cls, folder: Path, *, sids: SidSpec | None = None) -> Reasoner:
        """The reasoner that `save` wrote, in evaluation mode.

        Raises ArtifactError if the folder holds none, if it is damaged, if its tokenizer is not the one it was saved
        with, or if its IDs are not `sids`.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            found = SidSpec(*(record[name] for name in ("levels", "level_size", "codebook")))
            vocabulary, schema = record["vocabulary"], record["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder / RECORD}: not the record of a reasoner ({error}); run midtrain") from error
        if schema != SCHEMA:
            raise ArtifactError(f"{folder / RECORD}: schema {SCHEMA} expected, got {schema!r}; run midtrain again")
        if sids is not None and found != sids:
            raise ArtifactError(f"{folder}: the model's semantic IDs are {found}, expected {sids}; run midtrain again")
        model, tokenizer = load_pretrained(folder)
        if _vocabulary_digest(tokenizer) != vocabulary:
            raise ArtifactError(f"{folder}: the tokenizer's vocabulary is not the one that the model was saved with")
        return cls.of(model, tokenizer, found)


def extend(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sids: SidSpec, *, seed: int = 0) -> Reasoner:
    """The model with rows for the semantic IDs: the mean of the rows that it has, and a little noise drawn by `seed`.

    Model and tokenizer are changed in place. A tokenizer without a chat template gets ChatML's.
    """
    before = len(tokenizer)
    _add_tokens(tokenizer, sids)
    if len(tokenizer) > len(_rows(model.get_input_embeddings())):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for weight in vocabulary_rows(model):
        _start_rows(weight.data, before, len(tokenizer), generator)
    reasoner = Reasoner.of(model, tokenizer, sids)
    _name_special_tokens(reasoner)
    return reasoner


def from_scratch(size: Size, texts: Iterable[str], sids: SidSpec, *, vocabulary: int = 4096, seed: int = 0) -> Reasoner:
    """A randomly initialised Qwen3 of the named size whose tokenizer has at most `vocabulary` tokens, IDs included.

    The tokenizer is trained on `texts`. Raises ConfigError if the IDs leave too little room for text.
    """
    taken = sids.levels * sids.level_size + 2
    try:
        tokenizer = scratch_tokenizer(texts, vocabulary - taken)
    except ValueError as error:
        raise ConfigError(f"vocabulary {vocabulary}, less {taken} tokens of semantic IDs: {error}") from error
    _add_tokens(tokenizer, sids)
    reasoner = Reasoner.of(scratch_model(size, tokenizer, seed=seed), tokenizer, sids)
    _name_special_tokens(reasoner)
    return reasoner


def vocabulary_rows(model: PreTrainedModel) -> list[Tensor]:
    """The model's (N, D) input and output rows of its vocabulary, once where they are tied."""
    both = [_rows(model.get_input_embeddings()), _rows(model.get_output_embeddings())]  # type: ignore[no-untyped-call]
    return list({id(weight): weight for weight in both}.values())


def _add_tokens(tokenizer: PreTrainedTokenizerBase, sids: SidSpec) -> None:
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.add_tokens([START_OF_TURN, END_OF_TURN], special_tokens=True)
    names = [BEGIN, END, *(name for level in level_tokens(sids.levels, sids.level_size) for name in level)]
    # Not special: special tokens vanish when an answer is decoded.
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])


def _rows(module: Any) -> Tensor:
    """(N, D) the rows of an embedding or of the layer over the vocabulary."""
    weight: Tensor = module.weight
    return weight


def _start_rows(weight: Tensor, before: int, after: int, generator: torch.Generator) -> None:
    """Set rows `before` to `after` of `weight` (N, D) from the rows ahead of them."""
    known = weight[:before].float()
    noise = torch.randn(after - before, weight.shape[1], generator=generator).to(weight.device)
    weight[before:after] = (known.mean(0) + NOISE * known.std(0) * noise).to(weight.dtype)


def _name_special_tokens(reasoner: Reasoner) -> None:
    """Tell `generate` how an answer ends and what pads it."""
    model, tokenizer = reasoner.model, reasoner.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(reasoner.vocabulary.eos)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = reasoner.vocabulary.eos
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token by which the chat template ends the assistant's turn."""
    mark = "gr2"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    ids = tokenizer(text.rpartition(mark)[2].lstrip(), add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.added_tokens_decoder:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise ArtifactError("the tokenizer's chat template ends a turn by no token of its own, and it has no eos token")
    return int(tokenizer.eos_token_id)


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
