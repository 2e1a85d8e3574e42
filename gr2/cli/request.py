"""The JSON form of a re-ranking request."""

from __future__ import annotations

import json
from dataclasses import dataclass

from gr2 import config as configuration
from gr2.errors import DataError

__all__ = ["Request", "parse_request"]


@dataclass(frozen=True)
class Request:
    """The keys of the JSON object, with the meaning of `RerankRequest`'s fields; `features` has a row a candidate."""

    candidates: tuple[int | str, ...]
    history: tuple[int | str, ...] = ()
    scores: tuple[float, ...] | None = None
    features: tuple[tuple[float, ...], ...] | None = None
    top_n: int = 0


def parse_request(text: str, source: str) -> Request:
    """The request in a JSON text. Raises DataError if it is no JSON object, ConfigError if a key or value is wrong."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", path=source) from error
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, got {type(record).__name__}", path=source)
    return configuration.build(Request, record, "request")
