"""What a run's semantic IDs look like: the use of their codes, the groups that share a prefix, and items' neighbours.

All of it is JSON values. An item that is shown has the keys `item_id`, `title` (or None), `categories`, its path, and
`codes`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2 import config as configuration
from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.errors import ArtifactError
from gr2.tokenizer.quality import category_agreement, uniqueness
from gr2.tokenizer.tokenize import TokenizeConfig
from gr2.version import __version__

__all__ = ["SemanticIds", "largest_groups", "level_usage", "prefix_neighbours", "tokenizer_report"]

GROUPS, GROUP_ITEMS, NEIGHBOURS = 10, 8, 5


@dataclass(frozen=True)
class SemanticIds:
    """The IDs of a run: `codes` (N, L) uint16, the `catalog` of their N items, and what the stage says of them.

    `figures` has `nearest_unique`, `reassigned` and `overflow` as `quality.code_metrics` has them, `errors` the
    reconstruction error of each level; `sources` the digests of the artefacts, by stage; `run` the folder's name.
    """

    codes: NDArray[np.uint16]
    catalog: Catalog
    config: TokenizeConfig
    figures: dict[str, float]
    errors: list[float]
    sources: dict[str, str]
    run: str

    @classmethod
    def load(cls, inputs: Mapping[str, Artifact]) -> SemanticIds:
        """Those of the artefacts `prepare` and `tokenize`.

        Raises ArtifactError if the two do not belong together, or the codes are not those of the catalogue.
        """
        prepare, tokenize = inputs["prepare"], inputs["tokenize"]
        if tokenize.parents.get("prepare") != prepare.digest:
            raise ArtifactError(
                f"{tokenize.path} was made from another prepare; run tokenize again first (`gr2 run` does)"
            )
        config = configuration.build(TokenizeConfig, tokenize.config, "tokenize")
        catalog, codes = Catalog.load(prepare.file("items.parquet")), tokenize.array("codes.npy")
        expected = (len(catalog), config.levels)
        if codes.dtype != np.uint16 or codes.shape != expected:
            raise tokenize.damaged("codes.npy", f"expected uint16 {expected}, got {codes.dtype} {codes.shape}")
        if codes.max(initial=0) >= config.level_size:
            raise tokenize.damaged("codes.npy", f"expected codes below {config.level_size}, got {codes.max()}")
        sources = {name: inputs[name].digest for name in ("prepare", "tokenize")}
        run = tokenize.path.absolute().parent.name
        return cls(codes, catalog, config, *_figures(tokenize, config.levels), sources, run)


def tokenizer_report(ids: SemanticIds, *, samples: int = 8, seed: int = 0) -> dict[str, Any]:
    """Everything that there is to say of semantic IDs; `seed` draws the `samples`, items with their neighbours."""
    codes, catalog, config = ids.codes, ids.catalog, ids.config
    # The codes after these are there to tell items apart.
    depth = config.levels - (config.random_levels if config.last_level == "random" else 1)
    return {
        "gr2": __version__,
        "run": ids.run,
        "sources": ids.sources,
        "config": configuration.to_json(config),
        "sample_seed": seed,
        "summary": {
            "items": len(catalog),
            "without_title": sum(not title for title in catalog.title),
            "without_category": sum(not path for path in catalog.categories),
            "levels": config.levels,
            "level_size": config.level_size,
            "code_bits": math.log2(config.level_size),
            **uniqueness(codes),
            **ids.figures,
        },
        "levels": [
            {**usage, "reconstruction_error": error}
            for usage, error in zip(level_usage(codes, config.level_size), ids.errors, strict=True)
        ],
        "same_id": largest_groups(codes, catalog, config.levels),
        "same_prefix": largest_groups(codes, catalog, depth),
        "category_agreement": category_agreement(codes, catalog.categories),
        "samples": prefix_neighbours(codes, catalog, samples=samples, seed=seed),
    }


def level_usage(codes: NDArray[np.uint16], level_size: int) -> list[dict[str, Any]]:
    """How each level of `codes` (N, L) below `level_size` is used.

    `entropy_bits` of the codes; `perplexity`, two to the power of it; `added_bits`, what is left of it once the codes
    before are known: the sum over the levels is log2(N) where IDs are unique. `top_share` of the items have the code
    `top_code`. `prefixes` up to this level, the items of the largest, and `alone`, the share of items that share theirs
    with no other.
    """
    items, known, levels = len(codes), 0.0, []
    for level in range(codes.shape[1]):
        counts = np.bincount(codes[:, level], minlength=level_size)
        sizes = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        entropy, prefix_entropy = _entropy(counts), _entropy(sizes)
        levels.append(
            {
                "codes_used": int((counts > 0).sum()),
                "entropy_bits": entropy,
                "perplexity": 2.0**entropy,
                "added_bits": max(0.0, prefix_entropy - known),
                "top_code": int(counts.argmax()) if items else None,
                "top_share": float(counts.max()) / max(items, 1),
                "prefixes": len(sizes),
                "largest_prefix": int(sizes.max(initial=0)),
                "alone": float((sizes == 1).sum()) / max(items, 1),
            }
        )
        known = prefix_entropy
    return levels


def largest_groups(codes: NDArray[np.uint16], catalog: Catalog, length: int) -> dict[str, Any]:
    """The items that share their first `length` codes with another.

    How many `groups` of them there are, with how many `items`, and the `largest`, some items of each.
    """
    prefixes, inverse, counts = np.unique(codes[:, :length], axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    largest = [group for group in np.argsort(-counts, kind="stable")[:GROUPS].tolist() if counts[group] > 1]
    return {
        "length": length,
        "groups": int((counts > 1).sum()),
        "items": int(counts[counts > 1].sum()),
        "largest": [
            {
                "prefix": prefixes[group].tolist(),
                "items": int(counts[group]),
                "some": [_item(codes, catalog, row) for row in np.flatnonzero(inverse == group)[:GROUP_ITEMS].tolist()],
            }
            for group in largest
        ],
    }


def prefix_neighbours(codes: NDArray[np.uint16], catalog: Catalog, *, samples: int, seed: int) -> list[dict[str, Any]]:
    """Some items, drawn with the seed, each with the items that share the longest prefix with it, drawn where they tie.

    `sharing` has, for each length, how many other items share a prefix of it. A neighbour has the length that it
    shares, `shared`, and says whether its category is the same (None where either has none).
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    result = []
    for row in order[:samples].tolist():
        others = order[order != row]
        shared = np.logical_and.accumulate(codes[others] == codes[row], axis=1).sum(axis=1)
        nearest = np.argsort(-shared, kind="stable")[:NEIGHBOURS]
        result.append(
            {
                **_item(codes, catalog, row),
                "sharing": [int((shared >= length).sum()) for length in range(1, codes.shape[1] + 1)],
                "neighbours": [
                    {
                        **_item(codes, catalog, other),
                        "shared": length,
                        "same_category": _same(catalog.categories[row], catalog.categories[other]),
                    }
                    for other, length in zip(others[nearest].tolist(), shared[nearest].tolist(), strict=True)
                    if length
                ],
            }
        )
    return result


def _figures(tokenize: Artifact, levels: int) -> tuple[dict[str, float], list[float]]:
    metrics = tokenize.metrics
    try:
        figures = {name: float(metrics[name]) for name in ("nearest_unique", "reassigned")}
        errors = [float(metrics["levels"][level]["reconstruction_error"]) for level in range(levels)]
        return {**figures, "overflow": int(metrics["overflow"])}, errors
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise tokenize.damaged("artifact.json", "these are not the metrics of tokenize") from error


def _item(codes: NDArray[np.uint16], catalog: Catalog, row: int) -> dict[str, Any]:
    return {
        "item_id": catalog.ids[row],
        "title": catalog.title[row] or None,
        "categories": list(catalog.categories[row]),
        "codes": codes[row].tolist(),
    }


def _same(path: list[str], other: list[str]) -> bool | None:
    return path == other if path and other else None


def _entropy(counts: NDArray[np.int64]) -> float:
    """In bits, of the distribution that is proportional to `counts`; 0 where there are none."""
    shares = counts[counts > 0] / max(int(counts.sum()), 1)
    return abs(float((shares * np.log2(shares)).sum()))
