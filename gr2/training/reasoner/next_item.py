"""The next item by a reasoner: beam search over the whole catalogue's semantic IDs, many histories at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import CatalogTrie, ItemFilter, Retriever
from gr2.models.reasoner import Reasoner
from gr2.progress import track
from gr2.training.language.causal_loss import has_plain_head
from gr2.training.prerankers.retrieval import NOT_RANKED, catalogue_metrics, target_of

__all__ = ["NextItem", "list_metrics"]

# Tokens of histories in one pass: enough to keep the matrix products busy.
TOKENS = 8192


class NextItem:
    """Beam search for one model and one catalogue.

    A user's beams are tokens of one sequence that share the cache of the history: each sees the history and the codes
    of its own path, by a mask, so that no cache is copied.
    """

    def __init__(
        self, reasoner: Reasoner, codes: NDArray[np.uint16], *, beams: int, max_history: int, bfloat16: bool = False
    ) -> None:
        self.reasoner, self.max_history, self.bfloat16 = reasoner, max_history, bfloat16
        # The trie takes sorted codes; `order` leads back to item indices.
        self.order = np.lexsort(codes.T[::-1])
        self.row = np.empty(len(codes), dtype=np.int64)
        self.row[self.order] = np.arange(len(codes))
        self.trie = CatalogTrie(np.ascontiguousarray(codes[self.order]), reasoner.sids.level_size)
        self.retriever = Retriever(min(beams, len(codes)))
        self.item_tokens = reasoner.item_tokens(codes)
        self.plain = has_plain_head(reasoner.model)

    def lists(
        self,
        dataset: Dataset,
        user: NDArray[np.integer],
        position: NDArray[np.integer],
        *,
        size: int,
        description: str = "next items",
        stream: TextIO | None = None,
    ) -> CandidateLists:
        """The `size` best items (at most the beams) for each row that `events[:position]` does not hold."""
        width = min(size, self.retriever.beams)
        candidates = np.full((len(user), width), PADDING, dtype=np.int32)
        scores = np.full((len(user), width), -np.inf, dtype=np.float32)
        self.reasoner.model.train(False)
        with track(len(user), description, unit="users", stream=stream) as bar, torch.no_grad():
            for rows, history in self._groups(dataset, user, position):
                seen = [dataset.history(int(user[row]), int(position[row])) for row in rows]
                items, values = self._search(history, seen)
                found = items[:, :width]
                candidates[rows] = np.where(found < 0, PADDING, self.order[np.maximum(found, 0)])
                scores[rows] = values[:, :width]
                bar.advance(len(rows))
        target = target_of(dataset, user, position)
        return CandidateLists(user.astype(np.int32), position.astype(np.int32), target, candidates, scores)

    def _groups(
        self, dataset: Dataset, user: NDArray[np.integer], position: NDArray[np.integer]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Row numbers (B,) and their histories (B, n), all of one length, so that no row is padded."""
        lengths = np.minimum(position, self.max_history)
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            step = max(1, TOKENS // (max(1, length) * self.item_tokens.shape[1]))
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                start = dataset.offsets[user[part]] + position[part] - length
                yield part, dataset.items[start[:, None] + np.arange(length)]

    def _search(
        self, history: NDArray[np.int32], seen: list[NDArray[np.int32]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The trie's rows of the best items and their scores, both (B, M)."""
        vocabulary, model = self.reasoner.vocabulary, self.reasoner.model
        count = len(history)
        filters = [ItemFilter(self.trie, deny=self.row[items]) for items in seen]
        self.retriever.start(self.trie, count, filters=filters)
        begin = np.full((count, 1), vocabulary.begin[0])
        ids = np.concatenate([self.item_tokens[history].reshape(count, -1), begin], 1)
        prefix = ids.shape[1]
        cache = DynamicCache(config=model.config)
        ancestors = np.zeros((count, 1, 0), dtype=np.int64)
        for level in range(vocabulary.levels):
            if level == 0:
                logits = self._logits(ids, None, None, cache, level)[:, -1:]
            else:
                mask = _tree_mask(ancestors, prefix)
                places = np.full(ids.shape, prefix + level - 1)
                logits = self._logits(ids, places, mask, cache, level)
            parents, codes, _ = self.retriever.step(logits)
            ancestors = np.concatenate(
                [
                    np.take_along_axis(ancestors, parents[..., None], 1),
                    np.broadcast_to(np.arange(parents.shape[1]), parents.shape)[..., None],
                ],
                2,
            )
            ids = vocabulary.tokens[level][codes]
        return self.retriever.finish()

    def _logits(
        self,
        ids: NDArray[np.int64],
        places: NDArray[np.int64] | None,
        mask: Tensor | None,
        cache: DynamicCache,
        level: int,
    ) -> NDArray[np.float32]:
        """(B, q, V) logits over the codes of `level` after the tokens `ids` (B, q), of the last alone at level 0."""
        model = self.reasoner.model
        device = model.device
        options = {
            "input_ids": torch.from_numpy(ids).to(device),
            "past_key_values": cache,
            "use_cache": True,
        }
        if places is not None and mask is not None:
            options["position_ids"] = torch.from_numpy(places).to(device)
            options["attention_mask"] = mask.to(device)
        tokens = torch.from_numpy(self.reasoner.vocabulary.tokens[level]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            if self.plain:
                hidden = model.base_model(**options).last_hidden_state
                hidden = hidden[:, -1:] if level == 0 else hidden
                logits = hidden @ model.get_output_embeddings().weight[tokens].T  # type: ignore[no-untyped-call]
            else:
                logits = model(**options, logits_to_keep=1 if level == 0 else 0).logits[..., tokens]
        values: NDArray[np.float32] = logits.float().cpu().numpy()
        return values


def _tree_mask(ancestors: NDArray[np.int64], prefix: int) -> Tensor:
    """(B, 1, M, prefix + M l) float32, 0 where a beam sees and -inf elsewhere.

    `ancestors` (B, M, l) are the ranks of each beam's ancestors, and its own, at the levels so far.
    """
    count, beams, levels = ancestors.shape
    mask = torch.full((count, beams, prefix + levels * beams), -torch.inf)
    mask[..., :prefix] = 0.0
    columns = torch.from_numpy(ancestors + prefix + beams * np.arange(levels))
    return mask.scatter_(2, columns, 0.0)[:, None]


def list_metrics(lists: CandidateLists) -> dict[str, float]:
    """How many lists there are, the share that holds its target, and R@k and N@k over all of them.

    `distinct_items` is how many items all lists are made of. A model that knows nothing gives everybody the same few;
    a re-ranker then gains much by learning which of these sell, and nothing by reading a history.
    """
    label = lists.label()
    share = float((label >= 0).mean()) if len(lists) else 0.0
    found = catalogue_metrics(np.where(label < 0, NOT_RANKED, label + 1))
    distinct = len(np.unique(lists.candidates[lists.candidates != PADDING]))
    return {"lists": len(lists), "with_target": share, "distinct_items": distinct, **found}
