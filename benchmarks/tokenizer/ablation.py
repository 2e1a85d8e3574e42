"""What each switch of the tokenizer does on Beauty: uniqueness, meaning, and the ranking of the same student.

`python -m benchmarks.tokenizer.ablation [--seeds 0 1 2]`. Needs the run of `make beauty`, whose lists and split every
variant shares. A run that was killed goes on where it was: a variant is a run folder of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.data.candidates import PADDING, CandidateLists
from gr2.data.dataset import Dataset
from gr2.metrics import metric_values, rank_of_target

__all__ = ["main"]

BASE = ROOT / "runs" / "beauty"
FOLDER = ROOT / "runs" / "tokenizer-ablation"
METRIC = "N@5"
RESAMPLES = 10_000

RQVAE = {"method": "rqvae"}
PLAIN = RQVAE | {"codebook_update": "gradient", "kmeans_init": False}
EVERY = {"diversity": 0.01, "dead_after": 20, "contrastive": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "RQ-VAE: EMA, k-means init": RQVAE,
    "last level nearest": RQVAE | {"last_level": "nearest"},
    "last level random": RQVAE | {"last_level": "random"},
    "last two levels random": RQVAE | {"last_level": "random", "random_levels": 2},
    "EMA off (gradient codebooks)": RQVAE | {"codebook_update": "gradient"},
    "EMA of the optimiser's step": RQVAE | {"codebook_update": "ema_step"},
    "k-means init off": RQVAE | {"kmeans_init": False},
    "EMA and k-means init off": PLAIN,
    "diversity loss on": RQVAE | {"diversity": 0.01},
    "dead-code reset on": RQVAE | {"dead_after": 20},
    "contrastive loss on": RQVAE | {"contrastive": 0.1},
    "contrastive loss on, weight 1": RQVAE | {"contrastive": 1.0},
    "all on, last level random": RQVAE | EVERY | {"last_level": "random"},
    "residual k-means (the default)": {},
    "residual k-means, last level nearest": {"last_level": "nearest"},
    "residual k-means, last level random": {"last_level": "random"},
}
REFERENCE = next(iter(VARIANTS))


@dataclass(frozen=True)
class Result:
    """A variant's run: the stage's metrics, and N@5 of each test list by the student and by the path alone."""

    tokenize: dict[str, Any]
    student: NDArray[np.float64]  # (R,)
    path: NDArray[np.float64]  # (R,)


def overrides(settings: Mapping[str, Any], folder: Path, seed: int) -> list[str]:
    """The options of `gr2 run` for a variant."""
    values = {"run.out": folder, "run.seed": seed} | {f"tokenize.{name}": value for name, value in settings.items()}
    return [text for key, value in values.items() for text in ("--set", f"{key}={toml(value)}")]


def toml(value: object) -> str:
    """The value as TOML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def measure(name: str, seed: int) -> Result:
    """Run the variant on the shared lists, unless it was, and rank the test lists with it."""
    folder = FOLDER / f"{list(VARIANTS).index(name):02}-seed{seed}"
    for stage in ("prepare", "prerank"):
        if not (folder / stage).exists():
            shutil.copytree(BASE / stage, folder / stage, copy_function=os.link)
    gr2(
        "run",
        "configs/beauty.toml",
        *overrides(VARIANTS[name], folder, seed),
        "--only",
        "tokenize",
        "--only",
        "distill",
    )
    student, path = (metric_values(ranks)[METRIC] for ranks in test_ranks(folder))
    return Result(Artifact.load(folder / "tokenize").metrics, student, path)


def test_ranks(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) the target's rank in each test list by the student, and by the likelihood of the semantic IDs alone.

    By the model and not by its bundle, which takes unique IDs only.
    """
    from gr2.training.distill import load_memory, load_student, student_features, student_parts

    distill = Artifact.load(folder / "distill")
    dataset, codes = Dataset.load(folder / "prepare"), np.load(folder / "tokenize" / "codes.npy")
    student = load_student(distill)
    slates = CandidateLists.load(folder / "prerank" / "test.parquet").top(10).with_target()
    features = student_features(
        dataset, codes, slates, load_memory(distill), longest=int(distill.config["max_history"])
    )
    parts = student_parts(student, dataset, codes, slates, features)
    prior, head = student.weights.tolist()
    scores = (parts.path + np.float32(prior) * parts.prior + np.float32(head) * parts.head, parts.path)
    valid, label = slates.candidates != PADDING, slates.label()
    first, second = (rank_of_target(np.where(valid, each, -np.inf), label) for each in scores)
    return first, second


def interval(values: NDArray[np.float64]) -> str:
    """The mean of (R,) values and the 95 % bootstrap interval of its users."""
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.choice(values, (100, len(values))).mean(axis=1) for _ in range(RESAMPLES // 100)])
    low, high = np.quantile(means, [0.025, 0.975])
    sign = "+" if values.min() < 0 else ""
    return f"{values.mean():{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def rows(results: Mapping[str, Sequence[Result]]) -> Iterator[list[str]]:
    """The table: each variant's means over seeds."""
    reference = {part: mean(results[REFERENCE], part) for part in ("student", "path")}
    for name, runs in results.items():
        tokenize = [run.tokenize for run in runs]
        agreement = np.mean([list(values["category_agreement"].values())[1:4] for values in tokenize], axis=0)
        cells = [
            name,
            spread([100 * values["nearest_unique"] for values in tokenize]),
            spread([100 * values["unique"] for values in tokenize]),
            f"{np.mean([values['levels'][-1]['reconstruction_error'] for values in tokenize]):.3f}",
            " ".join(f"{value:.3f}" for value in agreement),
        ]
        for part in ("student", "path"):
            values = mean(runs, part)
            cells += [interval(values), interval(values - reference[part]) if name != REFERENCE else ""]
        yield cells


def mean(runs: Sequence[Result], part: str) -> NDArray[np.float64]:
    """(R,) each list's N@5, averaged over the seeds."""
    averaged: NDArray[np.float64] = np.mean([getattr(run, part) for run in runs], axis=0)
    return averaged


def spread(values: Sequence[float]) -> str:
    """The mean and, of several, the range."""
    text = f"{np.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f}-{max(values):.2f})"


def figures(results: Mapping[str, Sequence[Result]]) -> list[Figure]:
    """What the paper claims of the switches, judged."""

    def unique(name: str, key: str) -> float:
        return float(100 * min(run.tokenize[key] for run in results[name]))

    together = min(unique(name, "unique") for name in ("last level random", "all on, last level random"))
    assigned = min(unique(name, "unique") for name in results if "nearest" not in name)
    best = max(mean(runs, "student").mean() for runs in results.values())
    ours = mean(results["residual k-means (the default)"], "student").mean()
    return [
        Figure.judge("ablation: student N@5 of the default, against the best of all variants - .01", ours, best - 0.01),
        Figure.judge("EMA + random last level: unique, lowest of all seeds", together, 99.95, unit=" %"),
        Figure.judge(
            "assigned or random last level, every variant: unique, lowest of all seeds", assigned, 100.0, unit=" %"
        ),
    ]


def notes(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """How the effects compare with the paper's, in percentage points of uniqueness before the last level is changed."""

    def effect(name: str, base: str, key: str = "nearest_unique") -> str:
        pairs = zip(results[name], results[base], strict=True)
        return f"{np.mean([100 * (one.tokenize[key] - other.tokenize[key]) for one, other in pairs]):+.1f}"

    off, first = "EMA off (gradient codebooks)", REFERENCE
    return [
        f"EMA: ours {effect(first, off)} points with k-means init and "
        f"{effect('k-means init off', 'EMA and k-means init off')} without it; the paper +66.2",
        f"random last level: ours {effect('last level random', 'last level nearest', 'unique')}; the paper +28.7",
        f"diversity loss: ours {effect('diversity loss on', first)}; the paper +0.6",
        f"dead-code reset: ours {effect('dead-code reset on', first)}; the paper -4.0",
        f"contrastive loss: ours {effect('contrastive loss on', first)} at weight .1 and "
        f"{effect('contrastive loss on, weight 1', first)} at weight 1; the paper -13.2",
        "unique before: of plain nearest codes. unique after: with the variant's last level. same leaf: share of pairs "
        "with the same leaf category among those that share 1, 2 and 3 codes. Differences are paired by test list, "
        "against the first row; the intervals are over users and do not hold the spread over seeds",
    ]


def noise(results: Mapping[str, Sequence[Result]], other: Mapping[str, Result]) -> str:
    """How far another seed moves N@5: what a difference has to be larger than."""
    moved = [
        f"{part} {getattr(run, part).mean() - getattr(results[name][0], part).mean():+.4f}"
        for name, run in other.items()
        for part in ("student", "path")
    ]
    return (
        f"another seed moves N@5 of the first two rows by {', '.join(moved)} (path: the IDs alone): a difference that "
        "is not clearly larger says nothing, whatever its interval over users"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every variant with every seed and store the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--noise", type=int, default=1, help="another seed, for the first two variants alone")
    options = parser.parse_args(arguments)
    seeds = options.seeds
    results: dict[str, list[Result]] = {name: [] for name in VARIANTS}
    for seed in seeds:
        for name in VARIANTS:
            results[name].append(measure(name, seed))
    columns = ["", "unique before, %", "unique after, %", "error", "same leaf 1 2 3", "student N@5", "difference"]
    table = {
        "title": f"{len(results[REFERENCE][0].student)} test lists of Beauty, seeds {', '.join(map(str, seeds))}",
        "columns": [*columns, "IDs alone N@5", "difference"],
        "rows": list(rows(results)),
    }
    command = f"python -m benchmarks.tokenizer.ablation --seeds {' '.join(map(str, seeds))}"
    title = "The tokenizer's switches on Beauty"
    said = [*notes(results), noise(results, {name: measure(name, options.noise) for name in list(VARIANTS)[:2]})]
    print(store(Record("tokenizer.ablation", title, command, figures(results), [table], said)))


if __name__ == "__main__":
    main()
