"""Rankings by an exported decoder with a key-value cache: scored in one pass, or emitted item after item. No torch.

One ONNX graph, of batch 1, serves the prompt, the pass over the candidates' trie, and the decoding steps:

| input | type | shape | |
|---|---|---|---|
| ids | int64 | [1, n] | tokens |
| positions | int64 | [1, n] | their places in the sequence, from 0 |
| mask | float32 | [1, 1, n, T + n] | added to attention logits: 0 where the row's token sees the column's |
| past_X | float32 | one axis symbolic: T | what was computed for T tokens before; any number of them |

| output | type | shape | |
|---|---|---|---|
| logits | float32 | [1, n, N] | of the next token after each of `ids` |
| present_X | float32 | as past_X, with T + n | past_X and what was computed for `ids` |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gr2.decoding import CandidateTrie
from gr2.decoding.tokens import CodeVocabulary, TokenDecoder
from gr2.errors import BundleError, Gr2Error

__all__ = ["CachedModel", "Context", "GeneratedRanking", "SequenceRanker"]

MASKED = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class Context:
    """Tokens that the model has taken in: their cache, by input name, and the last one's logits (N,). Immutable."""

    past: dict[str, NDArray[np.float32]]
    length: int
    logits: NDArray[np.float32]


class CachedModel:
    """A session of a graph as the module describes it. Safe to call from many threads at once."""

    def __init__(self, graph: str | os.PathLike[str] | bytes, *, threads: int = 1) -> None:
        """Load the graph, a file or its bytes. Raises BundleError if it is not as the module describes."""
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Shapes grow with every step: memory planned for one is of no use to the next.
        options.enable_mem_pattern = False
        source = graph if isinstance(graph, bytes) else str(Path(graph))
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"onnxruntime cannot load the graph: {error}") from error
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        self._past = {name: _empty_shape(value) for name, value in inputs.items() if name.startswith("past_")}
        self._outputs = ["logits", *(name.replace("past_", "present_", 1) for name in self._past)]
        wrong = [f"{name} is absent" for name in ("ids", "positions", "mask") if name not in inputs]
        wrong += [f"{name} is not expected" for name in inputs if name not in {"ids", "positions", "mask", *self._past}]
        wrong += [f"{name} is absent" for name in self._outputs if name not in outputs]
        if wrong or not self._past:
            raise BundleError(f"not a decoder graph with a cache: {'; '.join(wrong) or 'no input past_X'}")

    def start(self) -> Context:
        """The context without tokens."""
        past = {name: np.zeros(shape, dtype=np.float32) for name, shape in self._past.items()}
        return Context(past, 0, np.zeros(0, dtype=np.float32))

    def extend(self, context: Context, tokens: Sequence[int] | NDArray[np.int64]) -> Context:
        """The context with `tokens` (n,) after it, n at least 1."""
        count = len(tokens)
        mask = np.triu(np.full((count, context.length + count), MASKED, dtype=np.float32), context.length + 1)
        positions = np.arange(context.length, context.length + count)
        logits, *present = self._run(context, np.asarray(tokens, dtype=np.int64), positions, mask)
        return Context(dict(zip(self._past, present, strict=True)), context.length + count, logits[0, -1])

    def branch(
        self, context: Context, tokens: NDArray[np.int64], depths: NDArray[np.int64], mask: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(n, N) logits after `tokens` (n,), a tree that follows the context: `mask` (n, n) says which sees which.

        `depths` (n,) are 1 for what follows the context at once. The context is unchanged.
        """
        seen = np.concatenate([np.zeros((len(tokens), context.length), dtype=np.float32), mask], axis=1)
        logits: NDArray[np.float32] = self._run(context, tokens, context.length - 1 + depths, seen)[0][0]
        return logits

    def _run(
        self, context: Context, ids: NDArray[np.int64], positions: NDArray[np.int64], mask: NDArray[np.float32]
    ) -> list[Any]:
        feed = {"ids": ids[None], "positions": positions[None], "mask": mask[None, None], **context.past}
        outputs: list[Any] = self._session.run(self._outputs, feed)
        return outputs


@dataclass(frozen=True, slots=True)
class GeneratedRanking:
    """A ranking `order` (K,) of which the first `emitted` were generated, with their log-probabilities (emitted,).

    `steps` are the runs of the model after the prompt's; `codes` the codes that were emitted, forced ones included.
    """

    order: NDArray[np.int32]
    emitted: int
    log_probs: NDArray[np.float32]
    steps: int
    codes: int


class SequenceRanker:
    """Ranks candidates after a prompt, by a cached model whose vocabulary holds their codes. Thread-safe."""

    def __init__(self, model: CachedModel, vocabulary: CodeVocabulary) -> None:
        self.model, self.vocabulary = model, vocabulary

    def score(
        self, prompt: NDArray[np.int64], trie: CandidateTrie, *, normalization: Literal["raw", "local"] = "raw"
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Order (K,) and scores (K,) of CandidateTrie.score for a first item after `prompt` (T,), T at least 1.

        Raises Gr2Error if the model gives a value that is not finite.
        """
        return self._score(self._prefill(prompt), trie, normalization)

    def generate(
        self,
        prompt: NDArray[np.int64],
        trie: CandidateTrie,
        *,
        mode: Literal["greedy", "sample"] = "greedy",
        seed: int = 0,
        temperature: float = 1.0,
        top_n: int | None = None,
    ) -> GeneratedRanking:
        """The candidates as CandidateDecoder emits them after `prompt` (T,); those below `top_n` by raw scores.

        Forced codes cost no step of their own: they are taken in together with the next choice. Raises Gr2Error if the
        model gives a value that cannot be ranked.
        """
        stream = TokenDecoder(trie, self.vocabulary, mode=mode, seed=seed, temperature=temperature, top_n=top_n)
        decoder, steps = stream.decoder, 0
        first = context = self._prefill(prompt)
        # The prompt's context holds `begin` already.
        tokens = stream.next()[len(self.vocabulary.begin) :]
        while not decoder.done:
            if tokens:
                context = self.model.extend(context, tokens)
                steps += 1
            try:
                decoder.push(stream.logits(context.logits))
            except ValueError as error:
                raise Gr2Error(f"the model's output cannot be ranked: {error}") from error
            tokens = stream.next()
        order = decoder.ranking(self._score(first, trie, "raw")[1] if decoder.remaining > 1 else None)
        return GeneratedRanking(order, len(decoder.order), decoder.item_log_probs(), steps, len(decoder.codes))

    def _prefill(self, prompt: NDArray[np.int64]) -> Context:
        """The context up to the first item's first code."""
        if prompt.dtype != np.int64 or prompt.ndim != 1 or not len(prompt):
            raise ValueError(f"prompt must be int64 (T,) with T at least 1, got {prompt.dtype} {prompt.shape}")
        context = self.model.extend(self.model.start(), [*prompt.tolist(), *self.vocabulary.begin])
        if len(context.logits) <= self.vocabulary.tokens.max():
            raise BundleError(f"the model has {len(context.logits)} tokens, not token {self.vocabulary.tokens.max()}")
        return context

    def _score(
        self, context: Context, trie: CandidateTrie, normalization: Literal["raw", "local"]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        vocabulary = self.vocabulary.tokens
        levels = [trie.nodes(depth) for depth in range(1, trie.levels)]
        logits = np.empty((trie.node_count, trie.level_size), dtype=np.float32)
        logits[0] = context.logits[vocabulary[0]]
        if trie.node_count > 1:
            depths = np.repeat(np.arange(1, trie.levels), [len(codes) for codes in levels])
            tokens = np.concatenate([vocabulary[level, codes] for level, codes in enumerate(levels)])
            # The root is the context's last token.
            rows = self.model.branch(context, tokens, depths, trie.mask()[1:, 1:])
            logits[1:] = rows[np.arange(len(rows))[:, None], vocabulary[depths]]
        try:
            return trie.score(logits, normalization=normalization)
        except ValueError as error:
            raise Gr2Error(f"the model's output cannot be ranked: {error}") from error


def _empty_shape(value: Any) -> list[int]:
    """The shape of a cache without tokens. Raises BundleError."""
    dynamic = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
    if value.type != "tensor(float)" or len(dynamic) != 1:
        raise BundleError(f"{value.name} must be float32 with one symbolic axis, got {value.type} {value.shape}")
    return [0 if axis in dynamic else size for axis, size in enumerate(value.shape)]
