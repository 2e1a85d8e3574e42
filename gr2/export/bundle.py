"""The stage `export`: the student as a serving bundle, refused unless it ranks as the student does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gr2.artifact import Artifact, file_digest, open_stage
from gr2.bundle import FeatureSpec, ModelSpec, write_bundle
from gr2.catalog import Catalog
from gr2.data.candidates import CandidateLists
from gr2.data.dataset import Dataset
from gr2.decoding import Codebook
from gr2.errors import ArtifactError, BundleError
from gr2.export.builder import OPSET
from gr2.export.onnx import graph_names
from gr2.export.parity import Parity, measure_parity
from gr2.export.split import export_graphs
from gr2.features import SCORE_FEATURES
from gr2.models.evidence import EVIDENCE
from gr2.models.student import Student
from gr2.training.distill import load_copurchases, load_student, student_features
from gr2.version import __version__

__all__ = ["INPUTS", "ExportConfig", "run", "sources"]

INPUTS = ("prepare", "prerank", "tokenize", "distill")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of the stage.

    Attributes:
        requests: how many test lists are scored by the student and by the graph.
        tolerance: how much their scores may differ at most.
        added: the folder that `gr2 tokenize --add` wrote: its new items are served, too. The student has not seen them;
            their semantic IDs say what it knows of them.
        batched: write the model for batches of requests, too, which a GPU serves; the bundle is about twice as large.
    """

    requests: int = 1000
    tolerance: float = 1e-3
    added: str | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, got {self.requests}")
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
        table = load_copurchases(inputs["distill"])
        codes = inputs["tokenize"].array("codes.npy")
        codebook, catalog = _served(config, inputs["tokenize"], dataset.catalog)
        graphs = export_graphs(student, table, codes, work.checkpoints, batched=config.batched)
        requests = _requests(
            CandidateLists.load(inputs["prerank"].file("test.parquet")), config.requests, seed & 0xFFFF_FFFF
        )
        parity = measure_parity(
            student,
            graphs,
            dataset,
            served_codes(codebook, dataset.catalog, codes),
            requests,
            student_features(dataset, codes, requests, table, longest=student.config.max_history),
            tolerance=config.tolerance,
        )
        _check(parity, config.tolerance)
        quality = {
            name: inputs["distill"].metrics[name]
            for name in ("incoming", "student")
            if name in inputs["distill"].metrics
        }
        bundle = write_bundle(
            work.checkpoints / "bundle",
            graph=graphs.pop("model.onnx"),
            others=graphs,
            codebook=codebook,
            catalog=catalog,
            model=model_spec(student),
            features=feature_spec(student, inputs["prerank"].metrics.get("feature_names")),
            parity=asdict(parity),
            quality={"validation": quality},
            created_by={"gr2": __version__, "parents": parents, "distill": inputs["distill"].config, "seed": seed},
        )
        for path in sorted(bundle.path.iterdir()):
            path.replace(work.path / path.name)
        work.metrics.update(version=bundle.version, parity=asdict(parity), **_sizes(work.path))
    return Artifact.load(out, "export")


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
        inputs=inputs,
        outputs=outputs,
    )


def feature_spec(student: Student, names: Sequence[str] | None = None) -> FeatureSpec:
    """The dense features beyond what the scores say of a candidate; impressions name theirs, lists do not."""
    width = student.config.features - len(SCORE_FEATURES) - len(EVIDENCE)
    return FeatureSpec(width, tuple(names or (f"feature_{column}" for column in range(width))))


def _requests(lists: CandidateLists, count: int, seed: int) -> CandidateLists:
    """A seeded sample of the lists that have candidates."""
    usable = np.flatnonzero((lists.candidates >= 0).any(1))
    drawn = np.random.default_rng(seed).permutation(usable)[:count]
    return lists.take(np.sort(drawn))


def _check(parity: Parity, tolerance: float) -> None:
    differences = (parity.max_abs_difference, parity.split_difference, parity.batched_difference or 0.0)
    if not all(each <= tolerance for each in differences) or parity.broken_order:
        raise BundleError(
            f"the ONNX graph does not rank as the student: on {parity.requests} requests scores differ by up to "
            f"{max(differences):.2g} (tolerance {tolerance:g}), and {parity.broken_order:.2%} of orders differ"
        )


def _sizes(folder: Path) -> dict[str, Any]:
    names = {"graph_bytes": folder / "model.onnx", "batch_graph_bytes": folder / "batch.onnx"}
    return {name: path.stat().st_size for name, path in names.items() if path.exists()}
