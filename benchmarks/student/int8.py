"""What rounding to 8 bits costs in quality: `python -m benchmarks.student.int8`, after `make beauty`.

Students of several sizes are trained on Beauty's lists, shortly: each is compared with itself unrounded, over 10,000
requests. Stores student.int8; how fast int8 is, student.graphs says.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import ROOT, Figure, Record, store
from benchmarks.spine.quality import gr2
from gr2.artifact import Artifact
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.export.gate import Gate
from gr2.export.parity import Asked
from gr2.export.proof import export_variants, prove_variants, sample_lists
from gr2.graphs import Graphs
from gr2.training.distill import load_memory, load_student

__all__ = ["main"]

SIZES = {
    "dim 64, 1 layer": {"dim": 64, "layers": 1, "epochs": 3},
    "dim 128, 2 layers": {"dim": 128, "layers": 2, "epochs": 2},
}
FOLDER = Path("runs/student-int8")
VARIANTS = ("int8", "int8-static")
REQUESTS, CALIBRATION = 10_000, 512
OPEN = Gate(0.0, 0.0, 1.0)  # refuses nothing: what a variant costs is shown even where it would not be served


def train(name: str) -> Path:
    """The folder of a run whose student has the size, and of which the stages before are those of `make beauty`."""
    folder = ROOT / FOLDER / name.replace(", ", "-").replace(" ", "")
    for stage in ("prepare", "prerank", "tokenize"):
        if not (folder / stage).exists():
            shutil.copytree(ROOT / "runs" / "beauty" / stage, folder / stage)
    overrides: dict[str, Any] = {"run.out": folder.relative_to(ROOT)}
    overrides |= {f"distill.{key}": value for key, value in SIZES[name].items()}
    settings = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    gr2("run", "configs/beauty.toml", *settings, "--only", "distill")
    return folder


def measure(folder: Path, requests: int = REQUESTS) -> Graphs:
    """The parity figures of every variant of a run's student."""
    distill = Artifact.load(folder / "distill", "distill")
    test, val = (CandidateLists.load(folder / "prerank" / f"{split}.parquet") for split in ("test", "val"))
    codes = np.load(folder / "tokenize" / "codes.npy")
    asked = Asked(load_student(distill), Dataset.load(folder / "prepare"), codes, load_memory(distill))
    with tempfile.TemporaryDirectory() as work:
        lists = sample_lists(val, CALIBRATION, 0)
        made = export_variants(asked, VARIANTS, Path(work), batched=False, calibrated_on=lists)
        return prove_variants(
            asked, made, test, requests=requests, tolerance=1e-3, gate=OPEN, arithmetic="fp32", seed=0
        )


def int8_record(measured: dict[str, Graphs]) -> Record:
    """The figures and the table of all sizes."""
    figures, rows = [], []
    for name, graphs in measured.items():
        exact = graphs.variants["fp32"].parity["core"]["real"]["ndcg"]
        for variant in VARIANTS:
            way = "core" if graphs.variants[variant].native else "split"
            real, random = (graphs.variants[variant].parity[way][part] for part in ("real", "random"))
            if variant == "int8":
                what = f"{name}: N@5 of int8 beside fp32's, {real['labelled']} test lists that hold the target"
                lost = abs(1 - real["ndcg"] / exact) * 100
                figures.append(Figure.judge(what, lost, 0.5, at_most=True, unit=" %"))
            agreement = [f"{part[key]:.4f}" for part in (real, random) for key in ("top1", "tau")]
            rows.append([f"{name}, {variant}", f"{exact:.4f}", f"{real['ndcg']:.4f}", *agreement])
    columns = ["", "N@5 fp32", "N@5", "top-1 real", "tau real", "top-1 random", "tau random"]
    title = f"int8 beside fp32 over {REQUESTS:,} requests, half of them test lists and half random"
    notes = ["8-bit rows and 7-bit weights by column in the transformer's products; all else in float32"]
    table = {"title": title, "columns": columns, "rows": rows}
    return Record("student.int8", "The student in int8", "make student-int8", figures, [table], notes)


def main() -> None:
    """Train and measure every size, and store the record."""
    print(store(int8_record({name: measure(train(name)) for name in SIZES})).relative_to(ROOT))


if __name__ == "__main__":
    main()
