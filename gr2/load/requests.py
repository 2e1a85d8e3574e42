"""Serialised requests to send: drawn from a bundle's catalogue, or read from a file."""

from __future__ import annotations

from typing import Any

import numpy as np

from gr2.bundle import Bundle
from gr2.catalog import ItemId
from gr2.errors import ConfigError, DataError
from gr2.v1 import reranker_pb2

__all__ = ["draw_requests", "encode_request"]


def draw_requests(
    bundle: Bundle, count: int, *, history: int = 50, candidates: int = 50, users: int = 0, seed: int = 0
) -> list[bytes]:
    """`count` serialised `RerankRequest`s over the bundle's catalogue; the same seed draws the same.

    Each has `history` items of one of `users` users, or of a new user where `users` is 0, and `candidates` distinct
    items with falling scores and, where the bundle has a feature width, normal features. Raises ConfigError if the
    bundle allows no such request.
    """
    limits, ids = bundle.manifest.limits, bundle.catalog().ids
    most = min(limits.max_candidates, len(ids))
    if not 1 <= candidates <= most or not 0 <= history <= limits.max_history:
        allowed = f"1..{most} candidates and 0..{limits.max_history} history items"
        raise ConfigError(f"this bundle allows {allowed}, got {candidates} and {history}")
    rng, width = np.random.default_rng(seed), bundle.manifest.features.width
    pasts = [_pick(ids, rng.integers(0, len(ids), history)) for _ in range(users)]
    requests = []
    for _ in range(count):
        past = pasts[int(rng.integers(0, users))] if users else _pick(ids, rng.integers(0, len(ids), history))
        slate = _pick(ids, rng.choice(len(ids), candidates, replace=False))
        scores = np.sort(rng.normal(size=candidates))[::-1]
        requests.append(encode_request(past, slate, scores=scores, features=rng.normal(size=candidates * width)))
    return requests


def encode_request(
    history: list[ItemId], candidates: list[ItemId], *, scores: Any = (), features: Any = (), top_n: int = 0
) -> bytes:
    """A serialised `RerankRequest`. Raises DataError if the IDs are not all int64 or all strings."""
    request = reranker_pb2.RerankRequest(scores=scores, features=features, top_n=top_n)
    for field, items in (("history", history), ("candidates", candidates)):
        ids = getattr(request, field)
        try:
            (ids.strings if items and isinstance(items[0], str) else ids.ints).extend(items)
        except (TypeError, ValueError) as error:
            raise DataError(f"{field}: item IDs must be all int64 or all strings: {error}") from error
    return request.SerializeToString()


def _pick(ids: list[ItemId], rows: Any) -> list[ItemId]:
    return [ids[row] for row in rows.tolist()]
