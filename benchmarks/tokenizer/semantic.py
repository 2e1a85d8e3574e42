"""Uniqueness on two catalogues, and what a shared prefix means: ours against other people's quantisers and IDs.

`python -m benchmarks.tokenizer.semantic`. Needs the data sets, and the packages of the extra `bench`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.spine.quality import gr2
from benchmarks.tokenizer.agreement import Codes, agreement, leaf_numbers, pairs, resampled
from gr2 import config as configuration
from gr2.artifact import Artifact
from gr2.catalog import Catalog
from gr2.data.dataset import Dataset
from gr2.tokenizer.assign import assign_codes
from gr2.tokenizer.order import content_order
from gr2.tokenizer.pairs import training_partners
from gr2.tokenizer.quality import uniqueness
from gr2.tokenizer.residual_kmeans import fit_residual_kmeans, standardise
from gr2.tokenizer.rqvae import fit_rqvae
from gr2.tokenizer.tokenize import TokenizeConfig, item_vectors

__all__ = ["semantic"]

LEVELS, SIZE, SEED = 4, 256, 0


def semantic() -> Record:
    """Uniqueness of both catalogues, and the table of methods on Beauty."""
    figures = [figure for name in ("beauty", "games18") for figure in unique_figures(name)]
    inputs = Artifact.load(ROOT / "runs" / "beauty" / "prepare")
    catalog = Catalog.load(inputs.file("items.parquet"))
    contents, vectors = item_vectors(TokenizeConfig(), catalog)
    order = content_order(contents, catalog.ids, SEED)
    points = np.ascontiguousarray(standardise(vectors[order])[0])
    leaves = leaf_numbers([catalog.categories[row] for row in order.tolist()])
    partners = training_partners(Dataset.load(inputs.path), order)
    made: dict[str, Codes] = {}
    seconds: dict[str, float] = {}
    for name, method in methods(points, partners).items():
        began = time.monotonic()
        made[name] = method()
        seconds[name] = time.monotonic() - began
    made[LETTER] = letter_codes(catalog)[order]
    made["random codes"] = np.random.default_rng(SEED).integers(0, SIZE, made[OURS].shape)
    figures.append(beside_letter(*(len(np.unique(made[name], axis=0)) for name in (OURS, LETTER)), len(points)))
    figures.append(against_chance(made[OURS], leaves))
    figures += [against(made, leaves, baseline) for baseline in BASELINES]
    return Record(
        "tokenizer.semantic",
        "Unique and semantic",
        "make show-tokenizer",
        figures,
        [table(made, leaves, seconds)],
        [*NOTES, ranked(made, leaves)],
    )


OURS = "gr2, residual k-means (the default)"
LETTER = "LETTER's IDs"
BASELINES = (
    "faiss ResidualQuantizer, beam 1",
    "faiss ResidualQuantizer, beam 5",
    "vector-quantize-pytorch",
    LETTER,
    "random codes",
)
NOTES = [
    "same leaf: of the pairs of items that share the first 1, 2, 3 codes, the share with the same leaf category; of "
    "all pairs it is what random codes have at 1 code",
    "found: of the pairs with the same leaf category, the share with the same first 1, 2, 3 codes. Finer prefixes "
    "(more of them) raise the first share and lower this one by themselves, so that methods are comparable "
    "in both together, or in the adjusted Rand index of prefixes against leaf categories: 0 is chance, 1 is one "
    "prefix a category",
    "faiss with a beam chooses an item's first codes together with those that follow, the others level by level",
    "codes of all methods but LETTER's come from the same vectors, standardised; each has one seed. Ours differ by "
    "about .02 at the first code from seed to seed",
]


def methods(points: NDArray[np.float32], partners: Any) -> dict[str, Callable[[], Codes]]:
    """Each method's codes (N, L) of standardised points (N, D); the nearest ones where it says nothing else."""

    def kmeans(last_level: str) -> Codes:
        book = fit_residual_kmeans(points, levels=LEVELS, level_size=SIZE, iterations=25, seed=SEED)
        return assign_codes(points, book, last_level=last_level, seed=SEED).codes  # type: ignore[arg-type]

    def rqvae(**switches: Any) -> Codes:
        config = TokenizeConfig(method="rqvae", **switches)
        model = fit_rqvae(points, config, levels=LEVELS, level_size=SIZE, seed=SEED, partners=partners)
        return assign_codes(model.encode(points), model.codebook(SIZE), seed=SEED).codes

    return {
        OURS: lambda: kmeans("assign"),
        "gr2, residual k-means, nearest codes": lambda: kmeans("nearest"),
        "gr2, RQ-VAE (EMA)": rqvae,
        "gr2, RQ-VAE (EMA, contrastive)": lambda: rqvae(contrastive=0.1),
        "faiss ResidualQuantizer, beam 1": lambda: faiss_codes(points, 1),
        "faiss ResidualQuantizer, beam 5": lambda: faiss_codes(points, 5),
        "vector-quantize-pytorch": lambda: residual_vq_codes(points),
    }


def faiss_codes(points: NDArray[np.float32], beam: int) -> Codes:
    """faiss's residual quantiser with its own settings but the beam."""
    import faiss

    quantiser = faiss.ResidualQuantizer(points.shape[1], LEVELS, 8)
    quantiser.max_beam_size = beam
    quantiser.train(points)
    codes: Codes = quantiser.compute_codes(points)
    return codes


def residual_vq_codes(points: NDArray[np.float32]) -> Codes:
    """vector-quantize-pytorch's residual quantiser: EMA, k-means initialisation, dead codes replaced; 60 epochs."""
    import torch
    from vector_quantize_pytorch import ResidualVQ

    torch.manual_seed(SEED)
    quantiser = ResidualVQ(
        dim=points.shape[1], num_quantizers=LEVELS, codebook_size=SIZE, kmeans_init=True, threshold_ema_dead_code=1
    )
    data = torch.from_numpy(points)
    for _ in range(60):
        for batch in data[torch.randperm(len(data))].split(4096):
            quantiser(batch[None])
    quantiser.eval()
    with torch.no_grad():
        codes: Codes = quantiser(data[None])[1][0].numpy()
    return codes


def letter_codes(catalog: Catalog) -> Codes:
    """The IDs that come with the data, in catalogue order, as numbers a level."""
    rows = pq.read_table(ROOT.parent / "shared" / "data" / "beauty" / "items.parquet").select(["item_id", "letter_sid"])
    texts = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    levels = zip(*(parse(texts[item]) for item in catalog.ids), strict=True)
    return np.stack([np.unique(np.array(level), return_inverse=True)[1] for level in levels], axis=1)


def parse(text: str) -> list[str]:
    """The codes of an ID such as `<a_1>|<b_2>`."""
    return text.split("|")


def unique_figures(name: str) -> list[Figure]:
    """Unique IDs of a catalogue by the default settings, from its own run of the stage."""
    gr2("run", f"configs/{name}.toml", "--only", "prepare")
    gr2("run", f"configs/{name}.toml", "--only", "tokenize", "--force")
    artifact = Artifact.load(ROOT / "runs" / name / "tokenize")
    assert configuration.build(TokenizeConfig, artifact.config, "tokenize") == TokenizeConfig()
    metrics = artifact.metrics
    before = f"{name}: nearest codes {100 * metrics['nearest_unique']:.2f} % unique; after minimum-distance assignment"
    return [
        Figure.judge(f"{name}: unique with the default settings", 100 * metrics["unique"], 99.9, unit=" %"),
        Figure.judge(before, 100 * metrics["unique"], 100.0, unit=" %"),
    ]


def beside_letter(ours: int, letter: int, items: int) -> Figure:
    """How many IDs are distinct."""
    share = f"{100 * ours / items:.2f} % ({ours:,} of {items:,})"
    bar = f">={100 * letter / items:.2f} % ({letter:,} of {items:,})"
    return Figure("beauty: unique, beside LETTER's IDs", share, bar, "ok" if ours >= letter else "short")


def ranked(made: Mapping[str, Codes], leaves: NDArray[np.int64]) -> str:
    """The methods by adjusted Rand index at each length, best first, as a sentence."""
    orders = []
    for length in (1, 2, 3):
        rand = {name: agreement(codes, leaves, length).rand for name, codes in made.items()}
        orders.append(f"{length}: {', '.join(sorted(rand, key=lambda name: -rand[name])[:3])}")
    categories = len(np.unique(leaves[leaves >= 0]))
    return (
        f"the highest adjusted Rand index at so many codes: {'; '.join(orders)}. It favours about as many "
        f"prefixes as there are leaf categories, {categories:,}"
    )


def against_chance(codes: Codes, leaves: NDArray[np.int64]) -> Figure:
    """Ours at 1, 2 and 3 codes beside all pairs, in rising order."""
    known = leaves[leaves >= 0]
    chance = pairs(known) / pairs(np.zeros_like(known))
    shares = [agreement(codes, leaves, length).same_leaf or 0.0 for length in (1, 2, 3)]
    value = " ".join(f"{share:.3f}" for share in shares) + f" against {chance:.3f}"
    rising = all(low < high for low, high in itertools.pairwise([chance, *shares]))
    what = "same leaf among pairs with the same first 1, 2, 3 codes, ours against random pairs"
    return Figure(what, value, "rising, above random", "ok" if rising else "short")


def against(made: Mapping[str, Codes], leaves: NDArray[np.int64], baseline: str) -> Figure:
    """Ours minus a baseline at the first code, with the bootstrap interval over first codes' groups."""
    values = [agreement(made[name], leaves, 1).same_leaf or 0.0 for name in (OURS, baseline)]
    draws = [resampled(made[name][:, 0], leaves, seed) for seed, name in enumerate((OURS, baseline))]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    value = (
        f"{values[0]:.3f} against {values[1]:.3f}, difference {values[0] - values[1]:+.3f} [{low:+.3f}, {high:+.3f}]"
    )
    bar = "interval above 0" if baseline == "random codes" else "interval reaches 0"
    good = low > 0 if baseline == "random codes" else high > 0
    return Figure(
        f"same leaf among pairs with the same first code, ours against {baseline}",
        value,
        bar,
        "ok" if good else "short",
    )


def table(made: Mapping[str, Codes], leaves: NDArray[np.int64], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Uniqueness, agreement and the number of prefixes of every method."""
    rows = []
    for name, codes in made.items():
        found = [agreement(codes, leaves, length) for length in (1, 2, 3)]
        rows.append(
            [
                name,
                f"{100 * uniqueness(codes.astype(np.uint16))['unique']:.2f}",
                *("" if each.same_leaf is None else f"{each.same_leaf:.3f}" for each in found),
                " ".join(f"{each.found:.3f}" for each in found),
                " ".join(f"{each.rand:.3f}" for each in found),
                " ".join(f"{each.prefixes:,}" for each in found),
                f"{seconds[name]:.0f}" if name in seconds else "",
            ]
        )
    columns = ["", "unique, %", "same leaf, 1 code", "2 codes", "3 codes"]
    columns += ["found, 1 2 3 codes", "adjusted Rand, 1 2 3 codes", "prefixes of 1 2 3 codes", "seconds"]
    return {"title": f"Beauty, {LEVELS} x {SIZE}", "columns": columns, "rows": rows}


if __name__ == "__main__":
    print(store(semantic()).relative_to(Path.cwd()))
