"""The work of one request: trie, score, and generation, beside their lower bounds and the NumPy reference."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results import ROOT, Figure, Record
from gr2.decoding import CandidateDecoder, CandidateTrie
from gr2.decoding.reference_generate import reference_generate

__all__ = ["build_release", "generate", "logits_of", "request", "seconds", "slate"]

LEVELS, ROUNDS = 4, 15


def build_release(*targets: str) -> Path:
    """The folder of the optimised build, without assertions, after building the targets in it."""
    python = [f"-DPython_EXECUTABLE={sys.executable}"]
    commands = [
        ["cmake", "--preset", "release", *python],
        ["cmake", "--build", "--preset", "release", "--target", *targets],
    ]
    for command in commands:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return ROOT / "build" / "release"


def compiled() -> dict[str, dict[str, float]]:
    """The figures of csrc/benchmarks/request_benchmark.cc."""
    program = build_release("request_benchmark") / "request_benchmark"
    figures: dict[str, dict[str, float]] = json.loads(subprocess.run(program, check=True, capture_output=True).stdout)
    return figures


def slate(size: int, level_size: int, *, skewed: bool = False) -> NDArray[np.uint16]:
    """Codes (K, L): uniform, or such that half of them are among an eighth of the values."""
    draws = np.random.default_rng(size).random((size, LEVELS))
    return (level_size * (draws**3 if skewed else draws)).astype(np.uint16)


def logits_of(level_size: int) -> NDArray[np.float32]:
    """(64, V) logits; decisions take them in turn, so that the model's cost is none."""
    return (3 * np.random.default_rng(0).standard_normal((64, level_size))).astype(np.float32)


def generate(decoder: CandidateDecoder, table: NDArray[np.float32]) -> int:
    """The number of decisions of a whole generation."""
    decoder.reset()
    place = decisions = 0
    append, _ = decoder.next()
    while not decoder.done:
        place += len(append)
        decoder.push(table[place % 64])
        decisions += 1
        append, _ = decoder.next()
    return decisions


def seconds(call: Callable[[], Any], *, calls: int = 1) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def against_reference(*, skewed: bool) -> tuple[float, float]:
    """How many times faster than the reference a greedy generation of 100 is, and the share of codes not decoded."""
    codes, known, table = slate(100, 256, skewed=skewed), np.ones(100, dtype=np.bool_), logits_of(256)
    decoder = CandidateDecoder(CandidateTrie(codes, known, 256))

    def reference() -> list[int]:
        return reference_generate(codes, known, lambda context: table[len(context) % 64]).order

    decisions = generate(decoder, table)
    assert decoder.order.tolist() == reference()
    assert decisions == np.count_nonzero(~decoder.forced)
    ratios = [seconds(reference) / seconds(lambda: generate(decoder, table), calls=20) for _ in range(ROUNDS)]
    return float(np.median(ratios)), 1 - decisions / len(decoder.codes)


def request() -> Record:
    """The bars on build and score, and generation against the reference."""
    inside = compiled()
    gc.disable()
    uniform, skewed = against_reference(skewed=False), against_reference(skewed=True)
    gc.enable()
    figures = [
        Figure.judge("trie of 100 over std::sort of its keys, times", inside["build"]["ratio"], 6.0, at_most=True),
        *(
            Figure.judge(
                f"score of 100, {name}, over the log-sum-exps alone, times",
                inside[f"score_{name}"]["ratio"],
                1.5,
                at_most=True,
            )
            for name in ("raw", "local")
        ),
        Figure.judge("greedy generation of 100, times faster than NumPy, uniform codes", uniform[0], 10.0),
        Figure.judge("greedy generation of 100, times faster than NumPy, skewed codes", skewed[0], 10.0),
        Figure("codes of 100 items that are forced, uniform codes", f"{uniform[1]:.1%}", "measured", "ok"),
        Figure("codes of 100 items that are forced, skewed codes", f"{skewed[1]:.1%}", "measured", "ok"),
    ]
    bounds = {
        "title": "C++ alone, 100 candidates of 4 codes below 256, medians of interleaved rounds",
        "columns": ["", "bound us", "ours us", "ratio"],
        "rows": [
            [name, f"{each['base_us']:.2f}", f"{each['us']:.2f}", f"{each['ratio']:.2f}"]
            for name, each in inside.items()
        ],
    }
    notes = [
        "bounds: std::sort of the same packed keys for the trie, a log-sum-exp of every row for score",
        "local needs no log-sum-exp of whole rows, and so may cost less than the bound",
    ]
    return Record("decoding.request", "Decoding one request", "make show-decoding", figures, [bounds], notes)
