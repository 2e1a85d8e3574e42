"""The stage `export`: the student as a serving bundle, refused unless it ranks as the student does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.bundle import FeatureSpec, ModelSpec, default_limits, write_bundle
from gr2.catalog import Catalog
from gr2.config import LATER, refuse_below
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import Codebook
from gr2.errors import ArtifactError
from gr2.export.builder import OPSET
from gr2.export.card import Card, model_card
from gr2.export.gate import Gate
from gr2.export.onnx import graph_names
from gr2.export.parity import Asked
from gr2.export.proof import export_variants, prove_variants, sample_lists
from gr2.features import SCORE_FEATURES
from gr2.graphs import VARIANTS, graph_file
from gr2.manifest import MAX_CANDIDATES
from gr2.manifest import MEMORY as MEMORY_FILE
from gr2.models.memory import MEMORY
from gr2.models.student import Student
from gr2.training.distill import load_memory, load_student
from gr2.version import __version__

__all__ = ["INPUTS", "ExportConfig", "run", "sources"]

INPUTS = ("prepare", "prerank", "tokenize", "distill")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of the stage.

    Attributes:
        requests: how many requests are scored by the student and by every graph, half of them test lists and half
            random.
        tolerance: how much the scores of a graph in float32 may differ at most.
        variants: what is exported beside fp32: "int8", "int8-static" (rounded by the ranges that validation lists
            have) and "fp16" (for GPUs).
        arithmetic: the variant that a CPU serves; "auto" takes int8 where it is faster. One beyond the gate is never
            served, and not in the bundle.
        gpu_arithmetic: the variant that a GPU serves, "fp32" or, if it is among `variants` and within the gate, "fp16".
        min_top1: the gate: share of requests whose first candidate must be the student's.
        min_tau: the gate: least mean of Kendall's tau to the student's order.
        max_lost: the gate: largest share of the student's N@5 on test lists that may be lost.
        calibration: validation lists that int8-static is calibrated on.
        added: the folder that `gr2 tokenize --add` wrote: its new items are served, too. The student has not seen them;
            their semantic IDs say what it knows of them.
        batched: write the model for batches of requests, too, which a GPU serves; the bundle is about twice as large.
        title: what the model card calls the model.
        license: the licence that the model card names, such as "apache-2.0"; without it the card says that none was
            given.
    """

    requests: int = 10_000
    tolerance: float = 1e-3
    variants: tuple[str, ...] = ("int8",)
    arithmetic: str = "auto"
    gpu_arithmetic: str = field(default="fp32", metadata=LATER)
    min_top1: float = 0.98
    min_tau: float = 0.98
    max_lost: float = 0.005
    calibration: int = 512
    added: str | None = None
    batched: bool = True
    title: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        refuse_below(self, 1, "requests", "calibration")
        known = VARIANTS[1:]
        if unknown := sorted(set(self.variants) - set(known)):
            raise ValueError(f"variants must be some of {', '.join(known)}, got {', '.join(unknown)}")
        served = ("auto", "fp32", "int8", "int8-static")
        if self.arithmetic not in served:
            hint = "; fp16 is for GPUs: gpu_arithmetic" if self.arithmetic == "fp16" else ""
            raise ValueError(f"arithmetic must be one of {', '.join(served)}, got {self.arithmetic!r}{hint}")
        if self.gpu_arithmetic not in ("fp32", "fp16"):
            raise ValueError(f"gpu_arithmetic must be fp32 or fp16, got {self.gpu_arithmetic!r}")
        for name in ("arithmetic", "gpu_arithmetic"):
            if getattr(self, name) in known and getattr(self, name) not in self.variants:
                raise ValueError(f"{name} is {getattr(self, name)}, which is not among variants")
        if "fp16" in self.variants and not self.batched:
            raise ValueError("batched must be true for fp16 among variants: it has a graph for batches alone")
        for name in ("min_top1", "min_tau", "max_lost"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.tolerance <= 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")


def sources(config: ExportConfig) -> dict[str, Path]:
    """The files outside the run's stages that the stage reads, by the name they have among its parents."""
    return {} if config.added is None else {"file:added": Path(config.added) / "artifact.json"}


def run(config: ExportConfig, inputs: Mapping[str, Artifact], out: Path, seed: int) -> Artifact:
    """Write the bundle; the artefact's folder is the bundle's. Raises BundleError if the graph is not the student."""
    parents = {name: inputs[name].digest for name in INPUTS}
    parents |= {name: file_digest(path) for name, path in sources(config).items()}
    with open_stage(out, "export", config, parents, seed) as work:
        shutil.rmtree(work.checkpoints / "bundle", ignore_errors=True)  # a killed run may have moved some of its files
        student = load_student(inputs["distill"])
        dataset = Dataset.load(inputs["prepare"].path)
        memory = load_memory(inputs["distill"])
        codes = inputs["tokenize"].array("codes.npy")
        codebook, catalog = _served(config, inputs["tokenize"], dataset.catalog)
        asked = Asked(student, dataset, served_codes(codebook, dataset.catalog, codes), memory)
        test, val = (_requests(inputs["prerank"], split) for split in ("test", "val"))
        draw = seed & 0xFFFF_FFFF
        made = export_variants(
            asked,
            config.variants,
            work.checkpoints,
            batched=config.batched,
            calibrated_on=sample_lists(val, config.calibration, draw),
        )
        graphs = prove_variants(
            asked,
            made,
            test,
            requests=config.requests,
            tolerance=config.tolerance,
            gate=Gate(config.min_top1, config.min_tau, config.max_lost),
            arithmetic=config.arithmetic,
            gpu_arithmetic=config.gpu_arithmetic,
            seed=draw,
        )
        held = {
            path.name: path for name, paths in made.items() for path in paths.values() if graphs.variants[name].roles
        }
        held[MEMORY_FILE] = work.checkpoints / MEMORY_FILE
        quality = {
            name: inputs["distill"].metrics[name]
            for name in ("incoming", "student")
            if name in inputs["distill"].metrics
        }
        model = model_spec(student)
        features = feature_spec(student, inputs["prerank"].metrics.get("feature_names"))
        card = Card(
            title=config.title,
            license=config.license,
            model=model,
            features=features,
            limits=default_limits(catalog, features),
            graphs=graphs,
            fingerprint=Codebook(str(codebook)).fingerprint,
            seed=seed,
        )
        bundle = write_bundle(
            work.checkpoints / "bundle",
            graph=held.pop(graph_file("whole")),
            others=held,
            graphs=graphs,
            codebook=codebook,
            catalog=catalog,
            model=model,
            features=features,
            card=model_card(card, inputs),
            parity=graphs.variants["fp32"].parity["whole"]["real"],
            quality={"validation": quality},
            created_by={"gr2": __version__, "parents": parents, "distill": inputs["distill"].config, "seed": seed},
        )
        for path in sorted(bundle.path.iterdir()):
            path.replace(work.path / path.name)
        if "propensities" in inputs["distill"].metrics:
            work.metrics["propensities"] = inputs["distill"].metrics["propensities"]
        work.metrics.update(version=bundle.version, graphs=asdict(graphs), **_sizes(work.path))
    return Artifact.load(out, "export")


def _requests(prerank: Artifact, split: str) -> CandidateLists:
    """The lists of a split, none longer than a request may be."""
    return CandidateLists.load(prerank.file(f"{split}.parquet")).top(MAX_CANDIDATES)


def _served(config: ExportConfig, tokenize: Artifact, catalog: Catalog) -> tuple[Path, Catalog]:
    """The codebook and the catalogue of the bundle: those of `tokenize`, or those with the items added to it."""
    if config.added is None:
        return tokenize.file("codebook.bin"), catalog
    added = Artifact.load(config.added, "tokenize-add", verify=True)
    if added.parents.get("tokenize") != tokenize.digest:
        raise ArtifactError(f"{added.path}: added to the IDs of another tokenize; run `gr2 tokenize --add` again")
    return added.file("codebook.bin"), Catalog.load(added.file("items.parquet"))


def served_codes(path: Path, catalog: Catalog, codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(N, L) uint16: the codes that the serving codebook at `path` has for the catalogue's items.

    Raises ArtifactError if they are not `codes`, with which the student was trained, and if items share an ID: the
    graph knows an item by its codes.
    """
    if shared := len(codes) - len(np.unique(codes, axis=0)):
        raise ArtifactError(
            f"{path}: {shared:,} of {len(codes):,} items have the semantic ID of another item, and the bundle could "
            'not tell them apart; set [tokenize] last_level = "assign" or "random" and run from tokenize on'
        )
    try:
        served, known = Codebook(path).lookup(catalog.keys())
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: not the catalogue's codebook: {error}; run tokenize again") from error
    if served.shape != codes.shape:
        raise ArtifactError(f"{path}: codes {served.shape}, but {codes.shape} in codes.npy; run tokenize again")
    different = int((~known | (served != codes).any(1)).sum())
    if different:
        raise ArtifactError(
            f"{path}: {different:,} of {len(catalog):,} items have no codes here or others than in codes.npy, with "
            "which the student was trained; run tokenize again"
        )
    return served


def model_spec(student: Student) -> ModelSpec:
    """What the manifest says of the model."""
    config = student.config
    inputs, outputs = graph_names(config.levels)
    return ModelSpec(
        levels=config.levels,
        level_size=config.level_size,
        max_history=config.max_history,
        dim=config.dim,
        layers=config.layers,
        onnx_opset=OPSET,
        encoding=config.encoding,
        inputs=inputs,
        outputs=outputs,
    )


def feature_spec(student: Student, names: Sequence[str] | None = None) -> FeatureSpec:
    """The dense features beyond what the scores say of a candidate; impressions name theirs, lists do not."""
    width = student.config.features - len(SCORE_FEATURES) - len(MEMORY)
    return FeatureSpec(width, tuple(names or (f"feature_{column}" for column in range(width))))


def _sizes(folder: Path) -> dict[str, Any]:
    names = {"graph_bytes": folder / "model.onnx", "batch_graph_bytes": folder / "batch.onnx"}
    return {name: path.stat().st_size for name, path in names.items() if path.exists()}
